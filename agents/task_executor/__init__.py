"""The task executor: runs tasks of every type for engines, and for anybody on the mesh who asks."""

from agents.task_executor.agent import TaskExecutor

__all__ = ["TaskExecutor"]
