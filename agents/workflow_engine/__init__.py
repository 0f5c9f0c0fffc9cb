"""The workflow engine: it owns instances, asks the machine what is next and performs that."""

from agents.workflow_engine.agent import StartedInstance, WorkflowEngine

__all__ = ["StartedInstance", "WorkflowEngine"]
