"""Run the state manager as a process."""

from agents.base import main
from agents.state_manager.agent import StateManager

if __name__ == "__main__":
    main(StateManager)
