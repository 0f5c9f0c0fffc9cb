"""The state manager: the log and everything durable."""

from agents.state_manager.agent import StateManager

__all__ = ["StateManager"]
