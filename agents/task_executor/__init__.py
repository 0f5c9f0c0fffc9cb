"""The task executor: runs tasks of every type for engines, and for anybody on the mesh who asks."""

# Custom functions run in this process and may use all of these; other agents take them without what they do not use.
import urllib.request  # noqa: F401

import prometheus_client  # noqa: F401

from agents.task_executor.agent import TaskExecutor

__all__ = ["TaskExecutor"]
