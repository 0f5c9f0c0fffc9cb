"""The last question before an effect that must not be repeated: is this attempt still wanted?

An executor may be held up for any time between taking a request and beginning it: stopped, swapped out, cut off. Its
attempt may have been given up meanwhile, and a person may have said that the work was not done. So the engine is asked
directly before the effect, and an answer that has grown old while it was on its way counts for nothing. What remains
is the moment between the answer and the effect; whoever is stopped in it cannot know.
"""

import asyncio
from collections.abc import Callable

from agents.task_executor.errors import NotBegun
from agents.task_executor.spool import Spool, State
from amp.client import MeshClient
from amp.errors import AmpError, CapabilityNotFound
from orchestration import contracts
from orchestration.contracts import Attempt

FRESH_SECONDS = 3.0
"""How old an answer may be when the effect begins; much shorter than the time after which an attempt is given up."""
ANSWER_SECONDS = 5.0
"""How long an engine may take to answer, or to come back when it is gone just then."""
MAX_QUESTIONS = 3


class Permission:
    """Asks for attempts that must not be repeated, and notes that they begin."""

    def __init__(self, mesh: Callable[[], MeshClient], spool: Spool) -> None:
        self._mesh = mesh
        self._spool = spool

    async def begin(self, attempt: Attempt) -> None:
        """Return when the effect may begin: the attempt is wanted now, and on the disk it says that it began.

        Raises: NotBegun when it is unwanted or nobody could be asked, SpoolFull.
        """
        loop = asyncio.get_running_loop()
        for _ in range(MAX_QUESTIONS):
            asked_at = loop.time()
            await self._ask(attempt)
            if self._spool.state_of(attempt.token) is State.ACCEPTED:
                await self._spool.begin(attempt.token)
            if loop.time() - asked_at <= FRESH_SECONDS:
                return
        raise NotBegun(f"{MAX_QUESTIONS} answers of the engine were too old when they were read")

    async def _ask(self, attempt: Attempt) -> None:
        beat = contracts.TaskBeat(token=attempt.token, begun=False)
        try:
            reply = await self._mesh().request(
                contracts.TASK_HEARTBEAT.id,
                contracts.TaskHeartbeatRequest(beats=[beat]),
                reply_type=contracts.TaskHeartbeatReply,
                agent_id=attempt.engine_id,
                timeout_seconds=ANSWER_SECONDS,
                patience_seconds=ANSWER_SECONDS,
                resend=True,
            )
        except CapabilityNotFound:
            return  # whoever asked is no engine of ours and cannot be asked
        except AmpError as error:
            raise NotBegun(f"the engine could not be asked whether the attempt is wanted: {error}") from None
        if attempt.token in reply.unwanted:
            raise NotBegun("the engine does not want the attempt any more; it did not begin")
