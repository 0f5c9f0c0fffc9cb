"""Tells agents that results they keep are recorded, or will never be wanted. Gathered, and off the hot path.

It is only a courtesy: what an agent is not told, it delivers again when it starts, and nothing is recorded twice.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from agents.workflow_engine.driver import KeptResult
from amp import crash
from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts

GATHER_SECONDS = 0.05
MAX_WAITING = 10_000
"""Most results that wait to be told of; of more nothing is told."""
MAX_A_REQUEST = 500
SETTLE_TIMEOUT_SECONDS = 10.0

logger = structlog.get_logger(__name__)


class Settlements:
    """One an engine."""

    def __init__(
        self, mesh: MeshClient, spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    ) -> None:
        self._mesh = mesh
        self._spawn = spawn
        self._waiting: dict[KeptResult, None] = {}
        self._sender: asyncio.Task[None] | None = None

    def add(self, kept: KeptResult) -> None:
        """Have the agent told soon."""
        if len(self._waiting) >= MAX_WAITING:
            return
        self._waiting[kept] = None
        if self._sender is None:
            self._sender = self._spawn(self._send(), "settle results")

    async def _send(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(GATHER_SECONDS)
                agent_id = next(iter(self._waiting)).agent_id
                same = [kept for kept in self._waiting if kept.agent_id == agent_id][:MAX_A_REQUEST]
                for kept in same:
                    del self._waiting[kept]
                crash.reach("engine.settled.before_send")
                await self._tell(agent_id, [kept.token for kept in same])
        finally:
            self._sender = None

    async def _tell(self, agent_id: str, tokens: list[str]) -> None:
        try:
            await self._mesh.request(
                contracts.TASK_SETTLED.id,
                contracts.TaskSettledRequest(tokens=tokens),
                reply_type=contracts.TaskSettledReply,
                agent_id=agent_id,
                timeout_seconds=SETTLE_TIMEOUT_SECONDS,
                resend=True,
            )
        except AmpError as error:
            logger.info("results_not_settled", agent_id=agent_id, count=len(tokens), code=error.code)
