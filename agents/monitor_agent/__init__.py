"""The monitor: metrics, alerts, health and reports from the log. It owns a store of its own."""

from agents.monitor_agent.agent import MonitorAgent

__all__ = ["MonitorAgent"]
