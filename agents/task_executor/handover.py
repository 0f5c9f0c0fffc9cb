"""Results that nobody waits for go to the instance's inbox, where the next owner of the instance finds them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from agents.task_executor.attempts import Ending
from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts
from orchestration.contracts import Attempt

PATIENCE_SECONDS = 300.0
"""How long a result that nobody waits for looks for the state manager."""

Spawn = Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]]

logger = structlog.stdlib.get_logger(__name__)


class Handover:
    """Delivers endings to inboxes, each in a task of its own. `mesh` returns the client of the moment."""

    def __init__(self, mesh: Callable[[], MeshClient], spawn: Spawn) -> None:
        self.under_way: set[asyncio.Task[Any]] = set()
        self._mesh = mesh
        self._spawn = spawn

    def deliver(self, attempt: Attempt, ending: Ending) -> None:
        """Begin to put an ending into its instance's inbox. The store keeps one of each token."""
        task = self._spawn(self._deliver(attempt, ending), f"deliver {attempt.token}")
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    async def _deliver(self, attempt: Attempt, ending: Ending) -> None:
        data: dict[str, Any] = {
            "task_id": attempt.task_id,
            "attempt": attempt.attempt,
            "token": attempt.token,
        }
        if isinstance(ending, AmpError):
            data["error"] = {"code": ending.code, "message": ending.message, "details": ending.details}
        else:
            data["result"] = ending
        request = contracts.InboxPutRequest(
            instance_id=attempt.workflow_instance_id, kind="task_result", data=data, dedupe_key=attempt.token
        )
        facts = {
            "instance_id": attempt.workflow_instance_id,
            "task_id": attempt.task_id,
            "attempt": attempt.attempt,
        }
        try:
            reply = await self._mesh().request(
                contracts.INBOX_PUT.id,
                request,
                reply_type=contracts.InboxPutReply,
                patience_seconds=PATIENCE_SECONDS,
                resend=True,
            )
        except AmpError as error:
            logger.error("result_not_delivered", **facts, code=error.code, reason=error.message)
        else:
            logger.info(
                "result_put_into_inbox", **facts, instance_found=reply.found, instance_open=reply.open
            )
