"""The state manager as an agent: capabilities in, storage and services behind them, hints out.

It decides nothing: who may append is `fencing`'s decision, what a change makes of a state `state_values`'.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.base import Agent
from agents.state_manager.announcer import Announcer
from agents.state_manager.backups import BACKUP_FOLDER, Backups
from agents.state_manager.cache import StateCache
from agents.state_manager.contexts import Contexts, shown
from agents.state_manager.errors import StateManagerError, StoreDamaged, StoreLost
from agents.state_manager.hints import LogHints
from agents.state_manager.leases import LeaseWatch
from agents.state_manager.retention import Retention
from agents.state_manager.room import RESERVE_NAME, Room
from agents.state_manager.room_watch import RoomWatch
from agents.state_manager.states import States
from agents.state_manager.storage.base import Storage, StoredState
from agents.state_manager.storage.memory import MEMORY_PATH, MemoryStorage
from agents.state_manager.storage.sqlite import SqliteStorage
from agents.state_manager.store_clock import StoreClock
from agents.state_manager.store_metrics import StoreMetrics
from agents.state_manager.sweeper import Sweeper
from amp import crash
from amp.capability import Incoming, Offer
from amp.errors import AmpError
from amp.subscriptions import Event
from orchestration import contracts
from runtime.errors import RuntimeFault
from runtime.ids import new_id
from runtime.process import EXIT_UNUSABLE

if TYPE_CHECKING:
    from agents.state_manager.redis_level import RedisLevel


Handler = Callable[[Incoming], Awaitable[object]]
MAX_NEWEST_KEPT = 10_000
"""Workflows of which the hash of the newest definition is kept in memory."""


class StateManager(Agent):
    """Keeps the log, the instances, inboxes, leases, definitions, states and contexts of one store."""

    section_name = "state_manager"

    async def on_start(self) -> None:
        """Open the store and build the services over it. Raises StoreUnusable when it cannot be served."""
        section = self.settings.state_manager
        store_clock = StoreClock(self.clock)
        self.storage = self._storage(store_clock)
        await self.storage.start()
        self.announcer = Announcer(lambda: self.mesh, self.clock)
        self.cache = StateCache(section.cache_entries, self._redis())
        self.states = States(
            self.storage,
            self.cache,
            put_inbox=self._put_inbox,
            announce=self.announcer.state,
            new_id=lambda: new_id("st", self.clock, self.random),
            max_bytes=section.max_state_bytes,
        )
        self.contexts = Contexts(
            self.storage, store_clock, lambda: new_id("ctx", self.clock, self.random), section.max_state_bytes
        )
        self.backups = Backups(
            self.storage,
            Path(self.settings.data_dir) / BACKUP_FOLDER,
            self.clock,
            interval_hours=self.settings.database.backup_interval_hours,
            kept=self.settings.database.backups_kept,
        )
        self._newest: dict[str, str] = {}
        self._definitions_put = 0
        self.hints = LogHints(self.announcer.log)
        self.leases = LeaseWatch(self.storage, store_clock, self.announcer.claimable)
        self.sweeper = Sweeper(
            self.storage,
            store_clock,
            hint_overdue=self.announcer.overdue,
            hint_inbox=self.announcer.inbox,
            hint_changed=self.announcer.orphans,
        )
        self.retention = Retention(
            self.storage,
            store_clock,
            days=self.settings.database.retention_days,
            forget=self.states.instances_purged,
        )
        self.room_watch = RoomWatch(self.storage, self.announcer.room)
        self.counts = StoreMetrics(self.metrics, self.storage, self.cache, self.sweeper)

    async def on_ready(self) -> None:
        """Listen for lost agents, and begin to hint, to watch leases and to back up."""
        self.mesh.on_connected.append(self.hints.repeat)
        self.hints.advanced(self.storage.last_offset)
        self.spawn(self.hints.run(), "hints")
        self.spawn(self.leases.run(), "leases")
        self.spawn(self.sweeper.run(), "sweeper")
        self.spawn(self.room_watch.run(), "room")
        self.spawn(self.storage.check(), "check")
        self.spawn(self.retention.run(), "retention")
        await asyncio.to_thread(self.backups.remove_unfinished)
        self.spawn(self.backups.run(), "backups")
        if self.cache.redis is not None:
            self.spawn(self.cache.redis.run(), "redis")
        await self.mesh.subscribe(contracts.EVENT_AGENT_LEFT, self._agent_left)

    async def on_stopped(self) -> None:
        """Close the store, now that nobody can ask for anything."""
        if hasattr(self, "storage"):
            await self.storage.stop()
        if hasattr(self, "cache") and self.cache.redis is not None:
            await self.cache.redis.close()

    def offers(self) -> list[Offer]:
        """Return the capabilities of the state manager."""
        handlers: dict[contracts.Contract, Handler] = {
            contracts.STATE_APPEND: self.append,
            contracts.LOG_READ: self.read_log,
            contracts.INBOX_PUT: self.put_inbox,
            contracts.INBOX_READ: self.read_inbox,
            contracts.ENGINE_LEASE: self.lease,
            contracts.INSTANCE_CLAIM: self.claim,
            contracts.INSTANCE_GET: self.get_instance,
            contracts.INSTANCE_LIST: self.list_instances,
            contracts.INSTANCE_ORPHANS: self.orphans,
            contracts.STATE_PURGE: self.purge,
            contracts.DEFINITION_PUT: self.put_definition,
            contracts.DEFINITION_GET: self.get_definition,
            contracts.DEFINITION_LIST: self.list_definitions,
            contracts.STATE_GET: self.get_state,
            contracts.STATE_SET: self.set_state,
            contracts.STATE_UPDATE: self.update_state,
            contracts.STATE_DELETE: self.delete_state,
            contracts.STATE_LIST: self.list_states,
            contracts.STATE_QUERY: self.query_states,
            contracts.STATE_BACKUP: self.back_up,
            contracts.STATE_RESTORE: self.restore,
            contracts.CONTEXT_MERGE: self.merge,
            contracts.CONTEXT_ISOLATE: self.isolate,
            contracts.CONTEXT_CREATE: self.create_context,
            contracts.CONTEXT_GET: self.get_context,
            contracts.CONTEXT_UPDATE: self.update_context,
            contracts.CONTEXT_FORK: self.fork_context,
        }
        return [self.offer(contract, _answering(handler)) for contract, handler in handlers.items()]

    def health(self) -> dict[str, Any]:
        """Return how the store is."""
        if not hasattr(self, "backups"):
            return {}
        redis = self.cache.redis
        facts: dict[str, Any] = {
            "store": {
                "last_offset": self.storage.last_offset,
                "trouble": self.storage.trouble,
                "full": self.storage.room.is_full,
                "last_backup": self.backups.last,
                "backup_trouble": self.backups.trouble,
            },
            "redis": "off" if redis is None else redis.trouble or "used",
        }
        troubled = self.storage.trouble or self.storage.room.is_full
        if troubled and hasattr(self, "mesh") and self.mesh.connected:
            facts["status"] = "degraded"
        return facts

    # --- the log -------------------------------------------------------------------------------------------

    async def append(self, incoming: Incoming) -> contracts.AppendReply:
        """`state-append`: the hot path."""
        batches = incoming.parameters.batches
        with self.counts.append_seconds.time():
            outcomes = await self.storage.append(batches)
        offset = 0
        for batch, outcome in zip(batches, outcomes, strict=True):
            self.counts.appends.labels(outcome.status).inc()
            offset = max(offset, outcome.offset)
            if batch.expected_seq == 0 and outcome.status == "ok":
                self.states.instance_created(batch.instance_id)
        self.hints.advanced(offset)
        return contracts.AppendReply(outcomes=outcomes)

    async def read_log(self, incoming: Incoming) -> contracts.LogReadReply:
        """`log-read`."""
        reply = await self.storage.read_log(incoming.parameters)
        if reply.end:
            self.hints.was_read()
        return reply

    async def get_instance(self, incoming: Incoming) -> contracts.InstanceGetReply:
        """`instance-get`."""
        return contracts.InstanceGetReply(
            row=await self.storage.get_instance(incoming.parameters.instance_id)
        )

    async def list_instances(self, incoming: Incoming) -> contracts.InstanceListReply:
        """`instance-list`."""
        return await self.storage.list_instances(incoming.parameters)

    async def orphans(self, incoming: Incoming) -> contracts.OrphansReply:
        """`instance-orphans`."""
        return await self.sweeper.answer(incoming.parameters.limit)

    async def purge(self, incoming: Incoming) -> contracts.PurgeReply:
        """`state-purge`."""
        request: contracts.PurgeRequest = incoming.parameters
        work = self.retention.count if request.dry_run else self.retention.purge
        before = self.retention.ended_before(request.older_than_days)
        purged = await work(request.older_than_days)
        return contracts.PurgeReply(instances=purged.instances, events=purged.events, ended_before=before)

    # --- inboxes and ownership -----------------------------------------------------------------------------

    async def put_inbox(self, incoming: Incoming) -> contracts.InboxPutReply:
        """`inbox-put`."""
        return await self._put_inbox(incoming.parameters)

    async def _put_inbox(self, request: contracts.InboxPutRequest) -> contracts.InboxPutReply:
        reply, owner = await self.storage.put_inbox(request)
        if reply.open:
            await self.announcer.inbox(request.instance_id, owner)
        return reply

    async def read_inbox(self, incoming: Incoming) -> contracts.InboxReadReply:
        """`inbox-read`."""
        return await self.storage.read_inbox(incoming.parameters)

    async def lease(self, incoming: Incoming) -> contracts.LeaseReply:
        """`engine-lease`: begin, renew or release."""
        request: contracts.LeaseRequest = incoming.parameters
        if request.release:
            claimable = await self.storage.end_lease(request.owner)
            if claimable:
                await self.announcer.claimable()
            return contracts.LeaseReply(lease_seconds=request.lease_seconds, claimable=claimable)
        standing = await self.storage.keep_lease(request.owner, request.agent_id, request.lease_seconds)
        self.leases.kept(request.lease_seconds)
        return contracts.LeaseReply(
            lease_seconds=request.lease_seconds,
            claimable=standing.claimable,
            held=standing.held,
            open=standing.open,
            engines=standing.engines,
            begun=standing.begun,
        )

    async def claim(self, incoming: Incoming) -> contracts.ClaimReply:
        """`instance-claim`."""
        rows = await self.storage.claim(incoming.parameters.owner, incoming.parameters.limit)
        if rows:
            facts = {"owner": incoming.parameters.owner, "instances": len(rows)}
            self.logger.info("instances_claimed", **facts)
        return contracts.ClaimReply(rows=rows)

    async def _agent_left(self, event: Event) -> None:
        """End the lease of an engine that the router has lost: nobody waits for the lease to run out."""
        agent_id, session_id = event.data.get("agent_id"), event.data.get("session_id")
        try:
            claimable = await self.storage.end_lease(f"{agent_id}:{session_id}")
        except StateManagerError as error:
            self.logger.warning("lease_not_ended", agent_id=agent_id, code=error.code, reason=error.message)
            return
        crash.reach("store.lease.swept")
        if claimable:
            await self.announcer.claimable()

    # --- definitions ---------------------------------------------------------------------------------------

    async def put_definition(self, incoming: Incoming) -> contracts.DefinitionPutReply:
        """`definition-put`."""
        request: contracts.DefinitionPutRequest = incoming.parameters
        try:
            return await self.storage.put_definition(request)
        finally:
            self._definitions_put += 1
            self._newest.pop(request.definition.workflow_id, None)

    async def get_definition(self, incoming: Incoming) -> contracts.DefinitionGetReply:
        """`definition-get`. Which definition is a workflow's newest is kept: every start asks."""
        request: contracts.DefinitionGetRequest = incoming.parameters
        if request.known_hash and self._newest.get(request.workflow_id) == request.known_hash:
            return contracts.DefinitionGetReply(unchanged=True)
        before = self._definitions_put
        record = await self.storage.get_definition(request)
        if record is None or request.hash:
            return contracts.DefinitionGetReply(definition=record)
        if before == self._definitions_put and len(self._newest) < MAX_NEWEST_KEPT:
            self._newest[record.workflow_id] = record.hash
        if record.hash == request.known_hash:
            return contracts.DefinitionGetReply(unchanged=True)
        return contracts.DefinitionGetReply(definition=record)

    async def list_definitions(self, incoming: Incoming) -> contracts.DefinitionListReply:
        """`definition-list`."""
        return await self.storage.list_definitions(incoming.parameters)

    # --- states --------------------------------------------------------------------------------------------

    async def get_state(self, incoming: Incoming) -> contracts.StateGetReply:
        """`state-get`."""
        return await self.states.get(incoming.parameters)

    async def set_state(self, incoming: Incoming) -> contracts.StateSetReply:
        """`state-set`."""
        return contracts.StateSetReply(success=True, version=await self.states.put(incoming.parameters))

    async def update_state(self, incoming: Incoming) -> contracts.StateUpdateReply:
        """`state-update`."""
        version, keys = await self.states.update(incoming.parameters)
        return contracts.StateUpdateReply(success=True, version=version, updated_keys=keys)

    async def delete_state(self, incoming: Incoming) -> contracts.StateDeleteReply:
        """`state-delete`."""
        deleted = await self.states.delete(incoming.parameters)
        return contracts.StateDeleteReply(success=True, deleted_keys=deleted)

    async def list_states(self, incoming: Incoming) -> contracts.StateListReply:
        """`state-list`."""
        states, total = await self.states.list_all(incoming.parameters)
        return contracts.StateListReply(states=states, total_count=total)

    async def query_states(self, incoming: Incoming) -> contracts.StateQueryReply:
        """`state-query`."""
        results, total = await self.states.query(incoming.parameters)
        return contracts.StateQueryReply(results=results, total_count=total)

    async def back_up(self, incoming: Incoming) -> contracts.StateBackupReply:
        """`state-backup`."""
        backup = await self.backups.create(incoming.parameters.name)
        return contracts.StateBackupReply(
            backup=backup.name, size_bytes=backup.size_bytes, created_at=backup.created_at.isoformat()
        )

    async def restore(self, incoming: Incoming) -> contracts.StateRestoreReply:
        """`state-restore`."""
        request: contracts.StateRestoreRequest = incoming.parameters

        async def put(state: StoredState) -> bool:
            return await self.states.restore(state.workflow_instance_id, state.state, request.name)

        restored = await self.backups.restore(request.name, request.workflow_instance_ids, put)
        return contracts.StateRestoreReply(restored=restored)

    # --- contexts ------------------------------------------------------------------------------------------

    async def merge(self, incoming: Incoming) -> contracts.ContextMergeReply:
        """`context-merge`: of states, or of context objects when `context_id` is given."""
        request: contracts.ContextMergeRequest = incoming.parameters
        if not request.context_id:
            return contracts.ContextMergeReply(success=True, merged_keys=await self.states.merge(request))
        context, keys = await self.contexts.merge(request)
        await self.announcer.context(context, keys)
        caller = incoming.message.source.agent_id
        return contracts.ContextMergeReply(success=True, merged_keys=keys, context=shown(context, caller))

    async def isolate(self, incoming: Incoming) -> contracts.ContextIsolateReply:
        """`context-isolate`."""
        isolated_id, version, keys = await self.states.isolate(incoming.parameters)
        return contracts.ContextIsolateReply(isolated_id=isolated_id, version=version, keys=keys)

    async def create_context(self, incoming: Incoming) -> contracts.ContextReply:
        """`context-create`."""
        caller = incoming.message.source.agent_id
        context = await self.contexts.create(incoming.parameters, caller)
        return contracts.ContextReply(context=shown(context, caller))

    async def get_context(self, incoming: Incoming) -> contracts.ContextReply:
        """`context-get`."""
        context = await self.contexts.get(incoming.parameters.context_id)
        return contracts.ContextReply(context=shown(context, incoming.message.source.agent_id))

    async def update_context(self, incoming: Incoming) -> contracts.ContextReply:
        """`context-update`."""
        caller = incoming.message.source.agent_id
        context = await self.contexts.update(incoming.parameters, caller)
        await self.announcer.context(context, sorted(incoming.parameters.shared_memory))
        return contracts.ContextReply(context=shown(context, caller))

    async def fork_context(self, incoming: Incoming) -> contracts.ContextReply:
        """`context-fork`."""
        context = await self.contexts.fork(incoming.parameters)
        return contracts.ContextReply(context=shown(context, incoming.message.source.agent_id))

    # --- what it is made of --------------------------------------------------------------------------------

    def _storage(self, store_clock: StoreClock) -> Storage:
        path = self.settings.database.sqlite_path
        if path == MEMORY_PATH:
            return MemoryStorage(store_clock)
        file = Path(self.settings.data_dir) / path
        room = Room(file.parent / RESERVE_NAME, self.settings.database.reserve_megabytes * 1024 * 1024)
        return SqliteStorage(file, store_clock, self._store_lost, room)

    def _store_lost(self, lost: StoreLost) -> None:
        """The disk cannot be trusted any more: end, and open the store again. A damaged one is not opened again."""
        self.logger.critical("store_lost", reason=lost.message)
        if isinstance(lost, StoreDamaged):
            self.exit_code = EXIT_UNUSABLE
        self.failed.set()

    def _redis(self) -> "RedisLevel | None":
        section, database = self.settings.state_manager, self.settings.database
        if not section.use_redis and not database.redis_enabled:
            return None
        from agents.state_manager.redis_level import RedisLevel

        name, url = (
            ("state_manager.redis_url", section.redis_url)
            if section.use_redis
            else ("database.redis_url", database.redis_url)
        )
        try:
            return RedisLevel(
                url, section.cache_ttl, self.clock, lambda: new_id("gen", self.clock, self.random)
            )
        except ValueError as error:
            raise RuntimeFault(f"{name}: {_without_password(str(error))}") from None


def _answering(handler: Handler) -> Handler:
    """Return the handler with the store's refusals as AMP errors: code, message and details reach the caller."""

    async def answer(incoming: Incoming) -> object:
        try:
            return await handler(incoming)
        except StateManagerError as error:
            raise AmpError(
                error.code,
                error.message,
                error.details,
                severity=error.severity,
                retryable=error.retryable,
            ) from error

    return answer


def _without_password(text: str) -> str:
    return re.sub(r"//[^@/\s]*@", "//***@", text)
