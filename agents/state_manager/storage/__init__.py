"""Where the state manager keeps everything durable. Only the state manager imports this package."""
