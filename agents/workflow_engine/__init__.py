"""The workflow engine: it owns instances, asks the machine what is next and performs that."""

from agents.workflow_engine.agent import WorkflowEngine
from agents.workflow_engine.starts import StartedInstance

__all__ = ["StartedInstance", "WorkflowEngine"]
