"""Runs the error handler: `python -m agents.error_handler`."""

from agents.base import main
from agents.error_handler.agent import ErrorHandler

if __name__ == "__main__":
    main(ErrorHandler)
