"""The error handler: classifies failures, chooses and orders recovery, owns circuit breakers, escalates."""

from agents.error_handler.agent import ErrorHandler

__all__ = ["ErrorHandler"]
