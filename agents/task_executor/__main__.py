"""`python -m agents.task_executor`: run one task executor."""

from agents.base import main
from agents.task_executor.agent import TaskExecutor

if __name__ == "__main__":
    main(TaskExecutor)
