"""What touches the world and is shared by the processes: settings, clock, logging, metrics, process start."""
