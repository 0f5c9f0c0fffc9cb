"""Which instances are this engine's: its lease, its claims on what nobody owns, and what it must let go.

The store decides; this module asks, asks again when an answer was lost, and never drives anything itself.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

import structlog

from amp import crash
from amp.client import MeshClient
from amp.errors import AmpError
from amp.subscriptions import Event
from orchestration import contracts
from orchestration.status import InstanceStatus

CLAIM_ROWS = 50
LIST_ROWS = 200
RETRY_SECONDS = 1.0
SHARE_WAIT_SECONDS = 0.5
"""How long an engine that has its fair share leaves the rest to the others."""
LEASE_RENEWALS = 3
"""How often a lease is renewed within its length."""
MAX_ODD_BEATS = 2
"""So many renewals in a row may count other instances than are driven here: starts and ends are under way."""
MAX_CONCURRENT_RESTORES = 8
STORE_PATIENCE_SECONDS = 30.0
OPEN = tuple(status for status in InstanceStatus if not status.is_final)

logger = structlog.get_logger(__name__)


class Holder(Protocol):
    """What drives the instances."""

    @property
    def owned(self) -> int:
        """How many instances are answered for."""
        ...

    def epochs(self) -> dict[str, int]:
        """Return under which epoch each instance is driven."""
        ...

    def note_owned(self, instance_ids: Collection[str]) -> None:
        """Note what the store says is ours."""
        ...

    def __contains__(self, instance_id: object) -> bool: ...

    async def take_up(self, row: contracts.InstanceRow) -> bool:
        """Drive a row that is ours now; false means that it could not be read and is to be tried again."""
        ...

    def let_go(self, instance_id: str, reason: str) -> None:
        """Stop driving what is not ours."""
        ...


def fair_share(standing: contracts.LeaseReply, *, room: int, waited: bool) -> int:
    """Return how many instances an engine should claim now.

    Args:
        room: How many more it can hold.
        waited: The others had their time to take their part; what is left may be taken by anybody.
    """
    part = math.ceil(standing.open / max(1, standing.engines)) - standing.held
    if waited:
        part = standing.claimable
    return max(0, min(part, standing.claimable, room))


class Ownership:
    """Keeps an engine's lease and brings it what it owns.

    Args:
        room: How many more instances the engine can hold now.
        on_beat: Called with every renewal of the lease.
    """

    def __init__(
        self,
        mesh: MeshClient,
        *,
        owner: str,
        agent_id: str,
        lease_seconds: float,
        holder: Holder,
        room: Callable[[], int],
        on_beat: Callable[[], Awaitable[None]],
    ) -> None:
        self._mesh = mesh
        self._owner = owner
        self._agent_id = agent_id
        self._lease_seconds = lease_seconds
        self._holder = holder
        self._room = room
        self._on_beat = on_beat
        self.looked = asyncio.Event()
        """Set once everything that could be claimed at the start is driven: other work may begin."""
        self._until = -math.inf
        self._begun = False
        self._odd_beats = 0
        self._renew_wanted = asyncio.Event()
        self._claim_wanted = asyncio.Event()
        self._compare_wanted = asyncio.Event()
        mesh.on_connected.append(self._renew_soon)

    @property
    def is_live(self) -> bool:
        """Whether the lease cannot have ended: nobody else can have changed what is driven here."""
        return asyncio.get_running_loop().time() < self._until

    # --- the lease -------------------------------------------------------------------------------------

    async def keep_lease(self) -> None:
        """Say that this engine lives, for ever, and look at what the store answers."""
        while True:
            self._renew_wanted.clear()
            pause = self._lease_seconds / LEASE_RENEWALS
            try:
                self._consider(await self._renew())
                crash.reach("engine.lease.renewed")
                await self._on_beat()
            except AmpError as error:
                logger.warning("lease_not_renewed", code=error.code, reason=error.message)
                pause = min(pause, RETRY_SECONDS)
            try:
                async with asyncio.timeout(pause):
                    await self._renew_wanted.wait()
            except TimeoutError:
                continue

    async def _renew_soon(self) -> None:
        """The connection was away: the router may have told the store that this engine is lost."""
        if self._begun:
            self._renew_wanted.set()

    async def _renew(self) -> contracts.LeaseReply:
        asked_at = asyncio.get_running_loop().time()
        standing = await self._lease(release=False)
        self._until = asked_at + self._lease_seconds
        return standing

    def _consider(self, standing: contracts.LeaseReply) -> None:
        """Decide what a renewal asks for: something to claim, or another look at what is ours."""
        if standing.claimable:
            self._claim_wanted.set()
        else:
            self.looked.set()
        if standing.begun and self._begun:
            logger.warning("lease_had_ended", owner=self._owner, driven=self._holder.owned)
            self._compare_wanted.set()
        self._begun = True
        self._odd_beats = self._odd_beats + 1 if standing.held != self._holder.owned else 0
        if self._odd_beats >= MAX_ODD_BEATS:
            self._compare_wanted.set()

    async def release(self) -> None:
        """Give the lease back, so that other engines need not wait for its end."""
        try:
            await self._lease(release=True)
        except AmpError as error:
            logger.info("lease_not_released", code=error.code)

    async def _lease(self, *, release: bool) -> contracts.LeaseReply:
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

    # --- claims ----------------------------------------------------------------------------------------

    async def claim_what_nobody_owns(self) -> None:
        """Take over unfinished instances without a live owner, whenever there are any."""
        await self._mesh.subscribe(contracts.EVENT_INSTANCES_CLAIMABLE, self._on_claimable)
        while True:
            await self._claim_wanted.wait()
            self._claim_wanted.clear()
            try:
                await self._claim_share()
                self.looked.set()
            except AmpError as error:
                logger.warning("claim_failed", code=error.code, reason=error.message)
                self._compare_wanted.set()
                await asyncio.sleep(RETRY_SECONDS)
                self._claim_wanted.set()

    async def _on_claimable(self, event: Event) -> None:
        self._claim_wanted.set()

    async def _claim_share(self) -> None:
        """Claim the fair share page after page; then what the others leave."""
        waited = False
        while room := self._room():
            standing = await self._renew()
            share = fair_share(standing, room=room, waited=waited)
            if not standing.claimable:
                return
            if not share:
                await asyncio.sleep(SHARE_WAIT_SECONDS)
                waited = True
            elif not await self._claim(min(share, CLAIM_ROWS)):
                return

    async def _claim(self, limit: int) -> int:
        """Claim a page and drive it; return how many instances it had."""
        reply = await self._mesh.request(
            contracts.INSTANCE_CLAIM.id,
            contracts.ClaimRequest(owner=self._owner, limit=limit),
            reply_type=contracts.ClaimReply,
            patience_seconds=STORE_PATIENCE_SECONDS,
        )
        crash.reach("engine.claim.answered")
        if not await self._take(reply.rows):
            self._compare_wanted.set()
        if reply.rows:
            logger.info("instances_claimed", count=len(reply.rows))
            await self._on_beat()
        return len(reply.rows)

    # --- what is ours ----------------------------------------------------------------------------------

    def compare_soon(self) -> None:
        """Ask for another look at what is ours: something says that it is not driven."""
        self._compare_wanted.set()

    async def keep_in_step(self) -> None:
        """Drive what the store says is ours and nothing else, whenever there is a doubt."""
        while True:
            await self._compare_wanted.wait()
            self._compare_wanted.clear()
            self._odd_beats = 0
            try:
                in_step = await self._compare()
            except AmpError as error:
                logger.warning("own_instances_not_read", code=error.code, reason=error.message)
                in_step = False
            if not in_step:
                await asyncio.sleep(RETRY_SECONDS)
                self._compare_wanted.set()

    async def _compare(self) -> bool:
        """Take up what is ours and not driven, let go of what is driven and not ours.

        Returns: False when something that is ours could not be taken up now.
        """
        driven = self._holder.epochs()
        ours = {row.instance_id: row for row in await self._own_rows()}
        self._holder.note_owned(ours)
        for instance_id, epoch in driven.items():
            row = ours.get(instance_id)
            if row is None or row.epoch != epoch:
                await self._let_go_unless_ours(instance_id, epoch)
        return await self._take([row for row in ours.values() if row.instance_id not in self._holder])

    async def _let_go_unless_ours(self, instance_id: str, epoch: int) -> None:
        reply = await self._mesh.request(
            contracts.INSTANCE_GET.id,
            contracts.InstanceGetRequest(instance_id=instance_id),
            reply_type=contracts.InstanceGetReply,
            patience_seconds=STORE_PATIENCE_SECONDS,
            resend=True,
        )
        row = reply.row
        if row is None or (row.owner, row.epoch) != (self._owner, epoch):
            self._holder.let_go(instance_id, "the store says that it is another engine's")

    async def _own_rows(self) -> list[contracts.InstanceRow]:
        found: list[contracts.InstanceRow] = []
        cursor: str | None = None
        while True:
            reply = await self._mesh.request(
                contracts.INSTANCE_LIST.id,
                contracts.InstanceListRequest(
                    owner=self._owner, statuses=list(OPEN), cursor=cursor, limit=LIST_ROWS
                ),
                reply_type=contracts.InstanceListReply,
                patience_seconds=STORE_PATIENCE_SECONDS,
                resend=True,
            )
            found.extend(reply.rows)
            cursor = reply.next_cursor
            if cursor is None:
                return found

    async def _take(self, rows: list[contracts.InstanceRow]) -> bool:
        """Take up rows, a few at a time; return whether all of them are driven now."""
        gate = asyncio.Semaphore(MAX_CONCURRENT_RESTORES)

        async def take(row: contracts.InstanceRow) -> bool:
            async with gate:
                taken = await self._holder.take_up(row)
                crash.reach("engine.restore.between")
                return taken

        return all(await asyncio.gather(*(take(row) for row in rows)))
