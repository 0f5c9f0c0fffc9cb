"""Which instances are this engine's: its lease, and its claims on what nobody owns.

The store decides; this module asks, asks again when an answer was lost, and never drives anything itself.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from amp.client import MeshClient
from amp.errors import AmpError
from amp.subscriptions import Event
from orchestration import contracts
from orchestration.status import InstanceStatus

CLAIM_ROWS = 50
CLAIM_RETRY_SECONDS = 1.0
LEASE_RENEWALS = 3
"""How often a lease is renewed within its length."""
MAX_CONCURRENT_RESTORES = 8
STORE_PATIENCE_SECONDS = 30.0
OPEN = tuple(status for status in InstanceStatus if not status.is_final)

logger = structlog.get_logger(__name__)


class Ownership:
    """Keeps an engine's lease and brings it what it owns.

    Args:
        take_up: Drives a row that is ours now; false means that it could not be read and is to be tried again.
        may_claim: Whether the engine has room for more.
        on_beat: Called with every renewal of the lease.
    """

    def __init__(
        self,
        mesh: MeshClient,
        *,
        owner: str,
        agent_id: str,
        lease_seconds: float,
        take_up: Callable[[contracts.InstanceRow], Awaitable[bool]],
        may_claim: Callable[[], bool],
        on_beat: Callable[[], Awaitable[None]],
    ) -> None:
        self._mesh = mesh
        self._owner = owner
        self._agent_id = agent_id
        self._lease_seconds = lease_seconds
        self._take_up = take_up
        self._may_claim = may_claim
        self._on_beat = on_beat
        self._claim_wanted = asyncio.Event()

    async def keep_lease(self) -> None:
        """Say that this engine lives, for ever."""
        while True:
            try:
                reply = await self._lease()
                if reply.claimable:
                    self._claim_wanted.set()
                await self._on_beat()
            except AmpError as error:
                logger.warning("lease_not_renewed", code=error.code, reason=error.message)
            await asyncio.sleep(self._lease_seconds / LEASE_RENEWALS)

    async def release(self) -> None:
        """Give the lease back, so that other engines need not wait for its end."""
        try:
            await self._lease(release=True)
        except AmpError as error:
            logger.info("lease_not_released", code=error.code)

    async def _lease(self, *, release: bool = False) -> contracts.LeaseReply:
        return await self._mesh.request(
            contracts.ENGINE_LEASE.id,
            contracts.LeaseRequest(
                owner=self._owner,
                agent_id=self._agent_id,
                lease_seconds=self._lease_seconds,
                release=release,
            ),
            reply_type=contracts.LeaseReply,
            timeout_seconds=self._lease_seconds / LEASE_RENEWALS,
            patience_seconds=0.0 if release else self._lease_seconds,
        )

    async def claim_what_nobody_owns(self) -> None:
        """Take over unfinished instances without a live owner, whenever there are any."""
        await self._mesh.subscribe(contracts.EVENT_INSTANCES_CLAIMABLE, self._on_claimable)
        while True:
            await self._claim_wanted.wait()
            self._claim_wanted.clear()
            if not await self._claim_all():
                await asyncio.sleep(CLAIM_RETRY_SECONDS)
                await self._adopt()
                self._claim_wanted.set()

    async def _on_claimable(self, event: Event) -> None:
        self._claim_wanted.set()

    async def _claim_all(self) -> bool:
        """Claim page after page; return false when something that is ours could not be taken up."""
        try:
            while self._may_claim():
                reply = await self._mesh.request(
                    contracts.INSTANCE_CLAIM.id,
                    contracts.ClaimRequest(owner=self._owner, limit=CLAIM_ROWS),
                    reply_type=contracts.ClaimReply,
                    patience_seconds=STORE_PATIENCE_SECONDS,
                )
                if not await self._take(reply.rows):
                    return False
                if reply.rows:
                    logger.info("instances_claimed", count=len(reply.rows))
                    await self._on_beat()
                if len(reply.rows) < CLAIM_ROWS:
                    break
        except AmpError as error:
            logger.warning("claim_failed", code=error.code, reason=error.message)
            return False
        return True

    async def _adopt(self) -> None:
        """Take up what the store says is ours and we do not drive: the answer to a claim may have been lost."""
        cursor: str | None = None
        try:
            while True:
                reply = await self._mesh.request(
                    contracts.INSTANCE_LIST.id,
                    contracts.InstanceListRequest(owner=self._owner, statuses=list(OPEN), cursor=cursor),
                    reply_type=contracts.InstanceListReply,
                    patience_seconds=STORE_PATIENCE_SECONDS,
                    resend=True,
                )
                await self._take(reply.rows)
                cursor = reply.next_cursor
                if cursor is None:
                    return
        except AmpError as error:
            logger.warning("own_instances_not_read", code=error.code, reason=error.message)

    async def _take(self, rows: list[contracts.InstanceRow]) -> bool:
        """Take up rows, a few at a time; return whether all of them are driven now."""
        gate = asyncio.Semaphore(MAX_CONCURRENT_RESTORES)

        async def take(row: contracts.InstanceRow) -> bool:
            async with gate:
                return await self._take_up(row)

        return all(await asyncio.gather(*(take(row) for row in rows)))
