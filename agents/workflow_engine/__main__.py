"""Run the workflow engine as a process."""

from agents.base import main
from agents.workflow_engine.agent import WorkflowEngine

if __name__ == "__main__":
    main(WorkflowEngine)
