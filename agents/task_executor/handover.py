"""Endings that nobody is known to have heard go to the instance's inbox, where its owner finds them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import structlog

from agents.task_executor.attempts import Ending
from agents.task_executor.errors import NotBegun, SpoolFull
from agents.task_executor.spool import Record
from amp import crash
from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts
from orchestration.contracts import Attempt, InboxPutRequest

PATIENCE_SECONDS = 300.0
"""How long an ending that nobody waits for looks for the state manager."""
MAX_AT_ONCE = 8
"""Most endings on their way at a time; the others wait here."""

Spawn = Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]]

logger = structlog.stdlib.get_logger(__name__)


class Handover:
    """Delivers endings to inboxes, each in a task of its own.

    Args:
        mesh: Returns the client of the moment.
        delivered: Awaited with the token of each ending that was stored, or that nobody will ever want.
        count: Called with the outcome of each delivery: stored, unwanted or failed.
    """

    def __init__(
        self,
        mesh: Callable[[], MeshClient],
        spawn: Spawn,
        *,
        delivered: Callable[[str], Awaitable[object]],
        count: Callable[[str], object],
    ) -> None:
        self.under_way: dict[str, asyncio.Task[bool]] = {}
        self._mesh = mesh
        self._spawn = spawn
        self._delivered = delivered
        self._count = count
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    def deliver(self, token: str, request: InboxPutRequest) -> asyncio.Task[bool]:
        """Begin to put an ending into its instance's inbox; the result says whether it got there.

        The store keeps one of each token; here one of each token is on its way at a time.
        """
        task = self.under_way.get(token)
        if task is None:
            task = self.under_way[token] = self._spawn(self._deliver(token, request), f"deliver {token}")
            task.add_done_callback(lambda _: self.under_way.pop(token, None))
        return task

    async def _deliver(self, token: str, request: InboxPutRequest) -> bool:
        facts = {"instance_id": request.instance_id, "task_id": request.data.get("task_id", "")}
        async with self._places:
            crash.reach("executor.handover.before")
            try:
                reply = await self._mesh().request(
                    contracts.INBOX_PUT.id,
                    request,
                    reply_type=contracts.InboxPutReply,
                    patience_seconds=PATIENCE_SECONDS,
                    resend=True,
                )
            except AmpError as error:
                self._count("failed")
                logger.error("result_not_delivered", **facts, code=error.code, reason=error.message)
                return False
            wanted = reply.found and reply.open
            self._count("stored" if wanted else "unwanted")
            logger.info(
                "result_put_into_inbox", **facts, instance_found=reply.found, instance_open=reply.open
            )
            await self._delivered(token)
            return True


def put_of_ending(attempt: Attempt, ending: Ending, agent_id: str) -> InboxPutRequest:
    """Return what goes into the inbox for an attempt that ended here."""
    data: dict[str, Any] = {"task_id": attempt.task_id, "attempt": attempt.attempt, "token": attempt.token}
    if isinstance(ending, (NotBegun, SpoolFull)):
        data["lost"] = _lost(agent_id, ending.message, begun=False)
    elif isinstance(ending, AmpError):
        data["error"] = {"code": ending.code, "message": ending.message, "details": ending.details}
    else:
        data["result"] = ending
    return _put(attempt.workflow_instance_id, attempt.token, data)


def put_of_record(record: Record, agent_id: str, *, begun: bool) -> InboxPutRequest:
    """Return what goes into the inbox for a record of the spool. `begun` counts when it has no ending."""
    data: dict[str, Any] = {"task_id": record.task_id, "attempt": record.attempt, "token": record.token}
    if isinstance(record.result, msgspec.Raw):
        data["result"] = record.result
    elif record.error is None:
        did = "after it had begun" if begun else "before it began"
        data["lost"] = _lost(agent_id, f"the executor was killed {did} with the attempt", begun=begun)
    elif record.error.get("code") == NotBegun.default_code:
        data["lost"] = _lost(agent_id, str(record.error.get("message", "")), begun=False)
    else:
        data["error"] = record.error
    return _put(record.instance_id, record.token, data)


def _lost(agent_id: str, reason: str, *, begun: bool) -> dict[str, Any]:
    return {"begun": begun, "agent_id": agent_id, "reason": reason}


def _put(instance_id: str, token: str, data: dict[str, Any]) -> InboxPutRequest:
    return InboxPutRequest(instance_id=instance_id, kind="task_result", data=data, dedupe_key=token)
