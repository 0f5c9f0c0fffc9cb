"""The workflow engine as an agent: it owns instances, takes orders for them, and takes over what nobody owns.

Who owns an instance is decided by the store (owner and epoch); this module only holds what it was given.
"""

import asyncio
import logging
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import structlog
from prometheus_client import Counter, Gauge, Histogram

from agents.base import Agent
from agents.workflow_engine import inbox
from agents.workflow_engine.catalog import FORMATS, Catalog
from agents.workflow_engine.driver import Driver
from agents.workflow_engine.errors import (
    EngineBusy,
    FileRefused,
    IllegalState,
    InstanceNotFound,
    InvalidInputs,
    WorkflowNotFound,
)
from agents.workflow_engine.histories import UNREADABLE, Histories
from agents.workflow_engine.log_writer import LogWriter
from agents.workflow_engine.ownership import Ownership
from agents.workflow_engine.performer import MeshPerformer
from amp.capability import Incoming, Offer
from amp.errors import AmpError
from amp.subscriptions import Event
from amp.transports.base import Transport
from orchestration import contracts, machine
from orchestration import stimuli as st
from orchestration.definition.errors import InputError
from orchestration.definition.inputs import prepare_inputs
from orchestration.definition.plan import Plan
from orchestration.documents import status_document
from orchestration.instance import Instance
from orchestration.status import InstanceStatus
from runtime import logging as runtime_logging
from runtime.clock import Clock
from runtime.ids import new_id
from runtime.settings import LoggingSettings, Settings, WorkflowEngineSettings, load_settings

MAX_RECENT = 1000
"""Ended instances that are still answered from memory."""
STORE_PATIENCE_SECONDS = 30.0
BUSY_RETRY_MS = 1000


class StartedInstance(msgspec.Struct, frozen=True):
    """What `start_workflow` returns. `status` is the instance's when it was stored."""

    id: str
    status: str
    workflow_id: str
    created: bool = True


class WorkflowEngine(Agent):
    """Drives workflow instances. Also usable from Python: `await start()`, load, start, `await stop()`.

    Built without settings it is embedded in a script: it reads the usual settings file and environment, drives only
    what it starts itself, and leaves that to the mesh's other engines when the script ends.
    """

    section_name = "workflow_engine"

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        transport: Transport | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        agent_id: str | None = None,
        port: int | None = None,
        serve_http: bool | None = None,
    ) -> None:
        embedded = settings is None
        if embedded and not structlog.is_configured() and not logging.getLogger().handlers:
            runtime_logging.configure(
                LoggingSettings(level="ERROR"), role=self.section_name, stream=sys.stderr
            )
        super().__init__(
            settings or load_settings(),
            transport=transport,
            clock=clock,
            random=random,
            agent_id=agent_id,
            port=port,
            serve_http=not embedded if serve_http is None else serve_http,
        )
        self.section: WorkflowEngineSettings = self.settings.workflow_engine
        self._embedded = embedded
        self._drivers: dict[str, Driver] = {}
        self._recent: OrderedDict[str, tuple[Plan, Instance]] = OrderedDict()
        self._pending: OrderedDict[str, None] = OrderedDict()
        self._running: set[str] = set()
        self._draining = False
        self._started = Counter("amp_instances_started", "Instances started here", registry=self.metrics)
        self._ended = Counter(
            "amp_instances_ended", "Instances ended here", ["status"], registry=self.metrics
        )
        self._dispatched = Counter(
            "amp_attempts_dispatched", "Attempts sent", ["capability"], registry=self.metrics
        )
        self._seconds = Histogram("amp_instance_seconds", "How long instances took", registry=self.metrics)
        for name, text, held in (
            ("amp_instances_owned", "Unfinished instances that this engine owns", self._drivers),
            ("amp_instances_running", "Instances that hold a slot", self._running),
            ("amp_instances_pending", "Instances that wait for a slot", self._pending),
        ):
            Gauge(name, text, registry=self.metrics).set_function(lambda held=held: float(len(held)))  # type: ignore[misc]

    @property
    def owner(self) -> str:
        """The name under which this process owns instances: unique for each start of it."""
        return f"{self.agent_id}:{self.session_id}"

    def health(self) -> dict[str, Any]:
        """Return how many instances are held."""
        return {"instances": len(self._drivers), "running": len(self._running), "pending": len(self._pending)}

    def offers(self) -> list[Offer]:
        """Return the workflow capabilities."""
        return [
            self.offer(contracts.WORKFLOW_CREATE, self._on_create),
            self.offer(contracts.WORKFLOW_LOAD, self._on_load),
            self.offer(contracts.WORKFLOW_START, self._on_start_workflow),
            self.offer(contracts.WORKFLOW_STOP, self._on_stop_workflow),
            self.offer(contracts.WORKFLOW_PAUSE, self._on_pause),
            self.offer(contracts.WORKFLOW_RESUME, self._on_resume),
            self.offer(contracts.WORKFLOW_STATUS, self._on_status),
            self.offer(contracts.WORKFLOW_LIST, self._on_list),
            self.offer(contracts.TASK_RETRY, self._on_task_retry),
            self.offer(contracts.TASK_SKIP, self._on_task_skip),
        ]

    # --- life ------------------------------------------------------------------------------------------

    def on_joining(self) -> None:
        """Build what requests need, before the first one can arrive."""
        self.catalog = Catalog(
            self.mesh,
            folders=self.section.workflow_dirs,
            workflow_timeout_seconds=self.section.workflow_timeout_default,
            task_timeout_seconds=self.settings.task_executor.task_timeout_default,
        )
        self._histories = Histories(self.mesh, self.catalog)
        self._log = LogWriter(self.mesh)
        self._ownership = Ownership(
            self.mesh,
            owner=self.owner,
            agent_id=self.agent_id,
            lease_seconds=self.section.lease_seconds,
            take_up=self._take_up,
            may_claim=self._may_claim,
            on_beat=self._read_all_inboxes,
        )
        self._performer = MeshPerformer(
            self.mesh,
            engine_id=self.agent_id,
            settings=self.section,
            clock=self.clock,
            random=self.random,
            spawn=self.spawn,
            count_dispatch=lambda capability: self._dispatched.labels(capability).inc(),
        )

    async def on_ready(self) -> None:
        """Take a lease, take up what nobody owns, and begin to listen."""
        await self.mesh.subscribe(contracts.EVENT_INBOX_FILLED, self._on_inbox_filled)
        self.spawn(self._ownership.keep_lease(), "lease")
        if not self._embedded:
            self.spawn(self._ownership.claim_what_nobody_owns(), "claims")
            if self.section.load_workflows_on_start:
                self.spawn(self._load_folders(), "workflow folders")

    async def on_stop(self) -> None:
        """Let go of every instance, durably, so that another engine takes it up at once."""
        self._draining = True
        await asyncio.gather(
            *(driver.idle() for driver in list(self._drivers.values())), return_exceptions=True
        )
        for driver in self._drivers.values():
            driver.let_go()
        await self._log.stop()
        await self._ownership.release()

    async def _load_folders(self) -> None:
        while True:
            try:
                await self.catalog.load_folders()
                return
            except AmpError as error:
                self.logger.warning("workflow_folders_not_loaded", code=error.code, reason=error.message)
                await asyncio.sleep(1.0)

    # --- what it owns ----------------------------------------------------------------------------------

    def _may_claim(self) -> bool:
        return not self._draining and len(self._drivers) < self.section.max_pending_workflows

    async def _take_up(self, row: contracts.InstanceRow) -> bool:
        """Rebuild an instance that is ours and drive it; return false when it could not be read now.

        One whose history cannot be replayed is left alone and hinders no other.
        """
        if row.instance_id in self._drivers:
            return True
        try:
            plan, instance = await self._histories.rebuild(row)
        except AmpError as error:
            self.logger.warning("instance_not_read", instance_id=row.instance_id, code=error.code)
            return False
        except UNREADABLE as error:
            self.logger.error("instance_not_rebuilt", instance_id=row.instance_id, reason=str(error))
            return True
        if not instance.status.is_final and row.instance_id not in self._drivers and not self._draining:
            driver = self._new_driver(plan, instance, epoch=row.epoch)
            self._drivers[instance.id] = driver
            self._note_slot(driver)
            driver.restore()
            self._admit_next()
        return True

    def _new_driver(self, plan: Plan, instance: Instance, *, epoch: int) -> Driver:
        return Driver(
            plan,
            instance=instance,
            owner=self.owner,
            epoch=epoch,
            log=self._log,
            performer=self._performer,
            clock=self.clock,
            spawn=self.spawn,
            on_change=self._on_change,
            on_lost=self._on_lost,
        )

    def _on_lost(self, driver: Driver, reason: str) -> None:
        self.logger.warning("instance_lost_to_another_engine", instance_id=driver.id, reason=reason)
        self._forget(driver)

    def _forget(self, driver: Driver) -> None:
        self._drivers.pop(driver.id, None)
        self._running.discard(driver.id)
        self._pending.pop(driver.id, None)
        self._admit_next()

    # --- slots -----------------------------------------------------------------------------------------

    def _note_slot(self, driver: Driver) -> None:
        """Keep count of who runs and who waits, after a change of the instance's status."""
        match driver.instance.status:
            case InstanceStatus.RUNNING:
                self._running.add(driver.id)
                self._pending.pop(driver.id, None)
            case InstanceStatus.PENDING:
                self._running.discard(driver.id)
                self._pending[driver.id] = None
            case _:
                self._running.discard(driver.id)
                self._pending.pop(driver.id, None)

    def _has_slot(self) -> bool:
        return len(self._running) < self.section.max_concurrent_workflows and not self._pending

    def _admit_next(self) -> None:
        """Let the longest waiting instances begin while there are free slots."""
        while (
            self._pending
            and len(self._running) < self.section.max_concurrent_workflows
            and not self._draining
        ):
            instance_id, _ = self._pending.popitem(last=False)
            self._running.add(instance_id)
            self._drivers[instance_id].post(st.Admit(at=self.clock.now()))

    def _on_change(self, driver: Driver) -> None:
        """Facts of an instance became durable."""
        instance = driver.committed
        self._note_slot(driver)
        if instance.status.is_final:
            self._drivers.pop(instance.id, None)
            driver.let_go()
            self._recent[instance.id] = (driver.plan, instance)
            while len(self._recent) > MAX_RECENT:
                self._recent.popitem(last=False)
            self._ended.labels(instance.status.value).inc()
            if instance.completed_at is not None:
                self._seconds.observe((instance.completed_at - instance.created_at).total_seconds())
            self.logger.info(
                "instance_ended",
                instance_id=instance.id,
                workflow_id=instance.workflow_id,
                status=instance.status.value,
                error_code=instance.error.code if instance.error else None,
            )
        self._admit_next()

    # --- the inbox -------------------------------------------------------------------------------------

    async def _on_inbox_filled(self, event: Event) -> None:
        instance_id = str(event.data.get("instance_id", ""))
        if instance_id in self._drivers:
            await self._read_inboxes([instance_id])

    async def _read_all_inboxes(self) -> None:
        """Read every inbox, in case a hint was lost."""
        await self._read_inboxes([])

    async def _read_inboxes(self, instance_ids: list[str]) -> None:
        """Post what lies in the inboxes of our instances; each entry leaves its inbox with the facts it causes."""
        if not self._drivers:
            return
        reply = await self.mesh.request(
            contracts.INBOX_READ.id,
            contracts.InboxReadRequest(owner=self.owner, instance_ids=instance_ids),
            reply_type=contracts.InboxReadReply,
            patience_seconds=STORE_PATIENCE_SECONDS,
            resend=True,
        )
        for item in reply.items:
            driver = self._drivers.get(item.instance_id)
            if driver is not None:
                stimulus = inbox.stimulus_of(item, driver.plan, self.clock.now(), self.random.random())
                driver.post(stimulus, inbox_id=item.inbox_id)

    async def _put(
        self, instance_id: str, kind: str, data: Mapping[str, Any], *, refuse_ended: bool = True
    ) -> InstanceStatus:
        """Put an order into an instance's inbox durably, and return the status after it when that is known soon.

        Raises: InstanceNotFound, IllegalState.
        """
        reply = await self.mesh.request(
            contracts.INBOX_PUT.id,
            contracts.InboxPutRequest(instance_id=instance_id, kind=kind, data=dict(data)),
            reply_type=contracts.InboxPutReply,
            patience_seconds=STORE_PATIENCE_SECONDS,
        )
        if not reply.found:
            raise InstanceNotFound(f"there is no instance {instance_id!r}", {"instance_id": instance_id})
        status = reply.status or InstanceStatus.RUNNING
        if not reply.open and refuse_ended:
            raise IllegalState(
                f"instance {instance_id} is {status} and cannot change any more",
                {"current_state": status.value, "instance_id": instance_id},
            )
        driver = self._drivers.get(instance_id)
        if driver is not None:
            await self._read_inboxes([instance_id])
            await driver.idle()
            status = driver.committed.status
        return status

    # --- what can be asked of it, from Python -----------------------------------------------------------

    async def load_workflow_from_file(self, path: str | Path, *, overwrite: bool = True) -> str:
        """Check and store the definition in a file and return the workflow's id.

        Raises: InvalidDefinition with every problem, FileRefused, DefinitionExists.
        """
        file = Path(path)
        format = FORMATS.get(file.suffix)
        if format is None:
            raise FileRefused(f"{path} is neither .yaml, .yml nor .json")
        return (await self.catalog.load(file, format=format, overwrite=overwrite)).workflow_id

    async def start_workflow(
        self,
        workflow_id: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        instance_id: str | None = None,
        trigger: str = "api",
    ) -> StartedInstance:
        """Start an instance and return it once that is durable. The same `instance_id` starts only once.

        Raises: WorkflowNotFound, InvalidInputs with every problem, EngineBusy.
        """
        plan = await self.catalog.newest(workflow_id)
        try:
            ready = await self._checked_inputs(plan, dict(inputs or {}))
        except InputError as error:
            problems = [msgspec.to_builtins(problem) for problem in error.problems]
            raise InvalidInputs(str(error), {"problems": problems}) from None
        if len(self._pending) >= self.section.max_pending_workflows:
            raise EngineBusy(
                f"{len(self._pending)} instances wait for a slot; try again later",
                {"retry_after_ms": BUSY_RETRY_MS},
            )
        name = instance_id or new_id("ins", self.clock, self.random)
        if name in self._drivers:
            return self._known(self._drivers[name].committed)
        step = machine.start(
            plan,
            name,
            ready,
            at=self.clock.now(),
            trigger=trigger,
            admit=self._has_slot() and not self._draining,
        )
        driver = self._new_driver(plan, step.instance, epoch=1)
        self._drivers[name] = driver
        self._note_slot(driver)
        outcome = await driver.begin(step)
        if outcome.status != "ok":
            self._forget(driver)
            return await self._existing(name)
        self._started.inc()
        self.logger.info("instance_started", instance_id=name, workflow_id=workflow_id)
        return StartedInstance(name, driver.committed.status.value, workflow_id)

    async def _checked_inputs(self, plan: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs with their defaults. A schema may be slow to apply, so that is done off the loop."""
        if plan.input_schema is None:
            return prepare_inputs(None, inputs)
        return await asyncio.to_thread(prepare_inputs, plan.input_schema, inputs)

    def _known(self, instance: Instance) -> StartedInstance:
        return StartedInstance(instance.id, instance.status.value, instance.workflow_id, created=False)

    async def _existing(self, instance_id: str) -> StartedInstance:
        row = await self._histories.row(instance_id)
        return StartedInstance(instance_id, row.status.value, row.workflow_id, created=False)

    async def get_status(self, instance_id: str) -> contracts.WorkflowStatus:
        """Return the status document of an instance, whoever owns it.

        Raises: InstanceNotFound.
        """
        plan, instance = await self._find(instance_id)
        about, tasks = status_document(plan, instance)
        return contracts.WorkflowStatus(instance=about, tasks=tasks)

    async def _find(self, instance_id: str) -> tuple[Plan, Instance]:
        driver = self._drivers.get(instance_id)
        if driver is not None and not driver.lost:
            await driver.stored()
        if driver is not None and not driver.lost:
            return driver.plan, driver.committed
        if instance_id in self._recent:
            return self._recent[instance_id]
        return await self._histories.rebuild(await self._histories.row(instance_id))

    async def pause_workflow(
        self, instance_id: str, *, reason: str = "", duration: float | None = None
    ) -> str:
        """Dispatch nothing more of an instance until it is resumed, or for `duration` seconds; return its status."""
        return (await self._put(instance_id, "pause", {"reason": reason, "duration": duration})).value

    async def resume_workflow(self, instance_id: str, *, reason: str = "") -> str:
        """Let a paused instance go on; return its status."""
        return (await self._put(instance_id, "resume", {"reason": reason})).value

    async def stop_workflow(self, instance_id: str, *, reason: str = "") -> str:
        """End an instance now; return its status."""
        return (await self._put(instance_id, "stop", {"reason": reason})).value

    # --- what can be asked of it, over the mesh ---------------------------------------------------------

    async def _on_create(self, request: Incoming) -> contracts.WorkflowCreated:
        return await self.catalog.create(request.parameters)

    async def _on_load(self, request: Incoming) -> contracts.WorkflowCreated:
        asked: contracts.WorkflowLoadRequest = request.parameters
        path = self.catalog.resolve(asked.file_path)
        return await self.catalog.load(
            path, format=FORMATS.get(path.suffix, asked.format), overwrite=asked.overwrite
        )

    async def _on_start_workflow(self, request: Incoming) -> contracts.WorkflowStarted:
        asked: contracts.WorkflowStartRequest = request.parameters
        started = await self.start_workflow(
            asked.workflow_id, asked.inputs, instance_id=asked.instance_id, trigger=asked.trigger
        )
        return contracts.WorkflowStarted(
            instance_id=started.id,
            status=started.status,
            workflow_id=started.workflow_id,
            created=started.created,
        )

    async def _on_pause(self, request: Incoming) -> contracts.WorkflowControlled:
        asked: contracts.WorkflowControlRequest = request.parameters
        status = await self.pause_workflow(asked.instance_id, reason=asked.reason, duration=asked.duration)
        return contracts.WorkflowControlled(instance_id=asked.instance_id, status=status)

    async def _on_resume(self, request: Incoming) -> contracts.WorkflowControlled:
        asked: contracts.WorkflowControlRequest = request.parameters
        status = await self.resume_workflow(asked.instance_id, reason=asked.reason)
        return contracts.WorkflowControlled(instance_id=asked.instance_id, status=status)

    async def _on_stop_workflow(self, request: Incoming) -> contracts.WorkflowControlled:
        asked: contracts.WorkflowControlRequest = request.parameters
        status = await self.stop_workflow(asked.instance_id, reason=asked.reason)
        return contracts.WorkflowControlled(instance_id=asked.instance_id, status=status)

    async def _on_status(self, request: Incoming) -> contracts.WorkflowStatus:
        return await self.get_status(request.parameters.instance_id)

    async def _on_list(self, request: Incoming) -> contracts.WorkflowList:
        asked: contracts.WorkflowListRequest = request.parameters
        records = await self.catalog.list(asked.limit)
        workflows = {record.workflow_id: _workflow_document(record) for record in records}
        instances: list[dict[str, Any]] = []
        if asked.include_instances:
            reply = await self.mesh.request(
                contracts.INSTANCE_LIST.id,
                contracts.InstanceListRequest(limit=asked.limit),
                reply_type=contracts.InstanceListReply,
                patience_seconds=STORE_PATIENCE_SECONDS,
                resend=True,
            )
            instances = [msgspec.to_builtins(row) for row in reply.rows]
        return contracts.WorkflowList(workflows=workflows, instances=instances)

    async def _on_task_retry(self, request: Incoming) -> contracts.TaskControlled:
        asked: contracts.TaskRetryRequest = request.parameters
        return await self._control_task(asked.workflow_instance_id, asked.task_id, "task_retry", {})

    async def _on_task_skip(self, request: Incoming) -> contracts.TaskControlled:
        asked: contracts.TaskSkipRequest = request.parameters
        return await self._control_task(
            asked.workflow_instance_id, asked.task_id, "task_skip", {"reason": asked.reason}
        )

    async def _control_task(
        self, instance_id: str, task_id: str, kind: str, data: dict[str, Any]
    ) -> contracts.TaskControlled:
        plan, _ = await self._find(instance_id)
        if task_id not in plan.tasks:
            raise WorkflowNotFound(
                f"workflow {plan.workflow_id!r} has no task {task_id!r}", {"known": list(plan.tasks)[:20]}
            )
        await self._put(instance_id, kind, {"task_id": task_id, **data})
        return contracts.TaskControlled(accepted=True, workflow_instance_id=instance_id, task_id=task_id)


def _workflow_document(record: contracts.DefinitionRecord) -> dict[str, Any]:
    """Return a stored definition as listings show it."""
    content = record.content
    return {
        "id": record.workflow_id,
        "name": record.name,
        "version": record.version,
        "description": content.get("description", ""),
        "tags": content.get("tags", []),
        "task_count": len(content.get("tasks", [])),
        "hash": record.hash,
        "input_schema": content.get("input_schema"),
        "created_at": record.created_at.isoformat() if record.created_at else None,
    }
