"""What the state manager tells the mesh by itself. Each may be lost, as every hint may: whoever needs to know looks."""

from collections.abc import Callable, Collection
from typing import Any

import structlog

from agents.state_manager.storage.base import StoredContext
from amp import crash
from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts
from runtime.clock import Clock

EVENT_CONTEXT_UPDATE = "context_update"
ALERT_SECONDS = 10.0
STORE_FULL_ALERT = contracts.AlertCreateRequest(
    alert_type="store_full",
    severity="critical",
    title="The disk of the store is full",
    description="No new instance is taken; running ones go on from the reserve. Make room: it is noticed by itself.",
)

logger = structlog.get_logger(__name__)


class Announcer:
    """Publishes hints and events. Nothing of it raises.

    Args:
        mesh: Returns the client, which is made later than this.
    """

    def __init__(self, mesh: Callable[[], MeshClient], clock: Clock) -> None:
        self._mesh = mesh
        self._clock = clock
        self._room_alert = ""

    async def log(self, offset: int) -> None:
        """Tell readers that the log has grown."""
        crash.reach("store.hint.before")
        await self._hint(contracts.EVENT_LOG_ADVANCED, {"offset": offset})

    async def inbox(self, instance_id: str, owner: str) -> None:
        """Tell an owner that something lies in an inbox."""
        await self._hint(contracts.EVENT_INBOX_FILLED, {"instance_id": instance_id, "owner": owner})

    async def overdue(self, instance_id: str, owner: str) -> None:
        """Tell an owner that an instance was to be looked at."""
        await self._hint(contracts.EVENT_INSTANCE_OVERDUE, {"instance_id": instance_id, "owner": owner})

    async def orphans(self, count: int) -> None:
        """Tell how many instances nothing will wake."""
        await self._hint(contracts.EVENT_ORPHANS_CHANGED, {"count": count})

    async def claimable(self) -> None:
        """Tell engines that instances have no owner."""
        await self._hint(contracts.EVENT_INSTANCES_CLAIMABLE, {})

    async def state(self, state_id: str, action: str, version: int, keys: Collection[str]) -> None:
        """Tell everybody that a state changed."""
        data = {
            "workflow_instance_id": state_id,
            "timestamp": self._clock.now().isoformat(),
            "action": action,
            "version": version,
            "updated_keys": list(keys),
        }
        await self._publish(contracts.EVENT_STATE_UPDATED, data, subscribers_only=False)

    async def context(self, context: StoredContext, keys: list[str]) -> None:
        """Tell subscribers which shared keys of a context changed; the values they get by asking."""
        about = {"id": context.context_id, "session_id": context.session_id, "updated_keys": keys}
        await self._hint(EVENT_CONTEXT_UPDATE, {"context": about})

    async def room(self, is_full: bool) -> None:
        """Raise an alert while the disk is full, and resolve it afterwards, if the monitor is there."""
        mesh = self._mesh()
        try:
            if is_full:
                reply = await mesh.request(
                    contracts.ALERT_CREATE.id,
                    STORE_FULL_ALERT,
                    reply_type=contracts.AlertCreateReply,
                    timeout_seconds=ALERT_SECONDS,
                )
                self._room_alert = reply.alert_id
            elif self._room_alert:
                await mesh.request(
                    contracts.ALERT_UPDATE.id,
                    contracts.AlertUpdateRequest(alert_id=self._room_alert, resolved=True),
                    reply_type=contracts.AlertUpdateReply,
                    timeout_seconds=ALERT_SECONDS,
                )
        except AmpError as error:
            logger.warning("store_alert_not_told", is_full=is_full, code=error.code)

    async def _hint(self, event_type: str, data: dict[str, Any]) -> None:
        await self._publish(event_type, data, subscribers_only=True)

    async def _publish(self, event_type: str, data: dict[str, Any], *, subscribers_only: bool) -> None:
        try:
            await self._mesh().publish(event_type, data, subscribers_only=subscribers_only)
        except AmpError as error:
            logger.debug("hint_lost", event_type=event_type, code=error.code)
