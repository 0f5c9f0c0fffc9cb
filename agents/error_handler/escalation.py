"""Bringing errors to people's attention, and again while nobody reacts.

An escalation raises an alert and is published. While the alert is not acknowledged it grows: after one
`escalation_timeout` it is logged and counted, after three its alert gets worse, after six it is published again as
critical and left to the alert.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog

from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts
from orchestration.alerts import AlertSeverity, severity_for
from orchestration.contracts import AlertCreateReply, AlertListReply, ErrorInfo
from orchestration.status import Severity

T = TypeVar("T")

LEVELS = (1, 3, 6)
"""After how many escalation timeouts each level begins: 5, 15 and 30 minutes by default."""
MAX_OPEN_ESCALATIONS = 1000
ALERT_TIMEOUT_SECONDS = 10.0
ALERT_PATIENCE_SECONDS = 5.0

logger = structlog.get_logger(__name__)


class Escalation(msgspec.Struct, frozen=True, kw_only=True):
    """An error that people must look at. `level` counts how often it was brought up again."""

    id: str
    error: ErrorInfo
    severity: Severity
    reason: str
    context: dict[str, str]
    alert_id: str = ""
    level: int = 0


class Escalations:
    """Raises escalations and follows each up until its alert is acknowledged.

    Args:
        timeout_seconds: The setting `escalation_timeout`.
        spawn: Runs a follow-up beside the agent.
        count: Called with the level each time an escalation is raised or grows.
    """

    def __init__(
        self,
        mesh: MeshClient,
        *,
        timeout_seconds: float,
        spawn: Callable[[Any, str], object],
        count: Callable[[int], None],
    ) -> None:
        self._mesh = mesh
        self._timeout_seconds = timeout_seconds
        self._spawn = spawn
        self._count = count
        self._open: set[str] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def raise_(self, escalation: Escalation) -> Escalation:
        """Return the escalation with its alert, after telling everybody. Without a monitor it is told later."""
        logger.error("error_escalated", **_facts(escalation))
        self._count(0)
        await self._publish(escalation)
        told = await self._alert(escalation, severity_for(escalation.severity))
        if len(self._open) >= MAX_OPEN_ESCALATIONS:
            logger.error("escalations_full", open=len(self._open), escalation_id=told.id)
        else:
            self._open.add(told.id)
            self._spawn(self._follow_up(told), f"escalation {told.id}")
        return told

    async def _follow_up(self, escalation: Escalation) -> None:
        waited = 0
        try:
            for level, after in enumerate(LEVELS, start=1):
                await asyncio.sleep((after - waited) * self._timeout_seconds)
                waited = after
                if await self._is_seen(escalation):
                    return
                escalation = msgspec.structs.replace(escalation, level=level)
                self._count(level)
                logger.error("escalation_unanswered", **_facts(escalation))
                if level >= 2:
                    worst = level == len(LEVELS) or escalation.severity is Severity.CRITICAL
                    severity = AlertSeverity.CRITICAL if worst else AlertSeverity.ERROR
                    escalation = await self._alert(escalation, severity)
                if level == len(LEVELS):
                    await self._publish(escalation)
        finally:
            self._open.discard(escalation.id)

    async def _is_seen(self, escalation: Escalation) -> bool:
        """Return whether somebody acknowledged or resolved the alert. No answer means no."""
        if not escalation.alert_id:
            return False
        listing = await self._ask(
            self._mesh.request(
                contracts.ALERT_LIST.id,
                {"include_resolved": True, "limit": contracts.MAX_PAGE_ROWS},
                reply_type=AlertListReply,
                timeout_seconds=ALERT_TIMEOUT_SECONDS,
                patience_seconds=ALERT_PATIENCE_SECONDS,
            )
        )
        for alert in listing.alerts if listing else ():
            if alert.get("id") == escalation.alert_id:
                return bool(alert.get("acknowledged") or alert.get("resolved"))
        return False

    async def _alert(self, escalation: Escalation, severity: AlertSeverity) -> Escalation:
        subject = (
            escalation.context.get("task_id") or escalation.context.get("agent_id") or escalation.error.code
        )
        created = await self._ask(
            self._mesh.request(
                contracts.ALERT_CREATE.id,
                {
                    "alert_type": "error_escalation",
                    "severity": severity.value,
                    "title": f"Error escalated: {subject}",
                    "description": f"{escalation.error.code}: {escalation.error.message} ({escalation.reason})",
                    "metadata": {
                        **escalation.context,
                        "escalation_id": escalation.id,
                        "level": escalation.level,
                    },
                },
                reply_type=AlertCreateReply,
                timeout_seconds=ALERT_TIMEOUT_SECONDS,
                patience_seconds=ALERT_PATIENCE_SECONDS,
            )
        )
        return msgspec.structs.replace(escalation, alert_id=created.alert_id) if created else escalation

    async def _publish(self, escalation: Escalation) -> None:
        try:
            await self._mesh.publish(contracts.EVENT_ERROR_ESCALATED, _facts(escalation))
        except AmpError as error:
            logger.warning("escalation_not_published", escalation_id=escalation.id, code=error.code)

    async def _ask(self, asking: Awaitable[T]) -> T | None:
        try:
            return await asking
        except AmpError as error:
            logger.warning("monitor_silent", code=error.code)
            return None


def _facts(escalation: Escalation) -> dict[str, Any]:
    return {
        "escalation_id": escalation.id,
        "severity": escalation.severity.value,
        "level": escalation.level,
        "reason": escalation.reason,
        "code": escalation.error.code,
        "message": escalation.error.message,
        **escalation.context,
    }
