"""Instances rebuilt from the log. It only reads."""

import msgspec

from agents.workflow_engine.catalog import Catalog
from agents.workflow_engine.errors import InstanceNotFound, InstanceUnreadable, WorkflowNotFound
from amp.client import MeshClient
from orchestration import contracts, machine
from orchestration import events as ev
from orchestration.definition.plan import Plan
from orchestration.instance import Instance

PAGE_EVENTS = 1000
STORE_PATIENCE_SECONDS = 30.0
UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
    msgspec.MsgspecError,
)
"""What a history raises that no machine of this release can replay."""


class Histories:
    """Reads rows and histories of instances, whoever owns them."""

    def __init__(self, mesh: MeshClient, catalog: Catalog) -> None:
        self._mesh = mesh
        self._catalog = catalog

    async def row(self, instance_id: str) -> contracts.InstanceRow:
        """Return an instance's row.

        Raises: InstanceNotFound.
        """
        reply = await self._mesh.request(
            contracts.INSTANCE_GET.id,
            contracts.InstanceGetRequest(instance_id=instance_id),
            reply_type=contracts.InstanceGetReply,
            patience_seconds=STORE_PATIENCE_SECONDS,
            resend=True,
        )
        if reply.row is None:
            raise InstanceNotFound(f"there is no instance {instance_id!r}", {"instance_id": instance_id})
        return reply.row

    async def rebuild(self, row: contracts.InstanceRow) -> tuple[Plan, Instance]:
        """Return an instance as its history makes it, with the plan it was started with.

        Raises: InstanceUnreadable when it never can be, another AmpError when it could not be read now.
        """
        try:
            plan = await self._catalog.by_hash(row.definition_hash)
            return plan, machine.replay(plan, row.instance_id, await self._events(row.instance_id))
        except (WorkflowNotFound, *UNREADABLE) as error:
            raise InstanceUnreadable(
                f"the history of {row.instance_id} cannot be replayed: {type(error).__name__}: {error}",
                {"instance_id": row.instance_id},
            ) from error

    async def start_of(self, instance_id: str) -> ev.InstanceStarted | None:
        """Return an instance's first event, None when there is no such instance."""
        page = await self._mesh.request(
            contracts.LOG_READ.id,
            contracts.LogReadRequest(instance_id=instance_id, limit=1),
            reply_type=contracts.LogReadReply,
            patience_seconds=STORE_PATIENCE_SECONDS,
            resend=True,
        )
        first = ev.decode(page.events[0].data) if page.events else None
        return first if isinstance(first, ev.InstanceStarted) else None

    async def _events(self, instance_id: str) -> list[ev.Event]:
        found: list[ev.Event] = []
        after, end = 0, False
        while not end:
            page = await self._mesh.request(
                contracts.LOG_READ.id,
                contracts.LogReadRequest(instance_id=instance_id, after=after, limit=PAGE_EVENTS),
                reply_type=contracts.LogReadReply,
                patience_seconds=STORE_PATIENCE_SECONDS,
                resend=True,
            )
            found.extend(ev.decode(record.data) for record in page.events)
            after, end = page.next, page.end
        return found
