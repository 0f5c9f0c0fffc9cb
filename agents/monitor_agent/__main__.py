"""Runs the monitor: `python -m agents.monitor_agent`."""

from agents.base import main
from agents.monitor_agent.agent import MonitorAgent

if __name__ == "__main__":
    main(MonitorAgent)
