"""What can go wrong with a simulation itself.

SimulationError
├── EndlessLoop       too many steps in one second of virtual time
└── Deadlock          nothing can ever happen again
"""


class SimulationError(Exception):
    """The run cannot go on. What the product did wrong in a run is a finding, not an error."""


class EndlessLoop(SimulationError):
    """Virtual time does not get on: some code repeats itself without waiting."""


class Deadlock(SimulationError):
    """Nothing is ready and no timer is set, but the run has not ended."""
