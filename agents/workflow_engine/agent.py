"""The workflow engine as an agent: it owns instances, takes orders for them, and takes over what nobody owns.

Who owns an instance is decided by the store (owner and epoch); this module only holds what it was given.
"""

import asyncio
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from agents.base import Agent
from agents.workflow_engine import heartbeats, inbox
from agents.workflow_engine.catalog import FORMATS, Catalog
from agents.workflow_engine.driver import Driver
from agents.workflow_engine.drivers import Drivers
from agents.workflow_engine.errors import (
    FileRefused,
    IllegalState,
    InstanceNotFound,
    TaskNotFound,
)
from agents.workflow_engine.explain import Explainer
from agents.workflow_engine.histories import Histories
from agents.workflow_engine.log_writer import LogWriter
from agents.workflow_engine.ownership import Ownership
from agents.workflow_engine.performer import MeshPerformer
from agents.workflow_engine.slots import Slots
from agents.workflow_engine.starts import StartedInstance, Starts
from amp import crash
from amp.capability import Incoming, Offer
from amp.errors import AmpError
from amp.subscriptions import Event
from amp.transports.base import Transport
from orchestration import contracts, orders, surroundings
from orchestration.definition.plan import Plan
from orchestration.documents import status_document
from orchestration.instance import Instance
from orchestration.status import InstanceStatus
from runtime import logging as runtime_logging
from runtime.clock import Clock
from runtime.ids import new_id
from runtime.lean_prometheus import Counter, Gauge, Histogram
from runtime.lean_structlog import structlog
from runtime.settings import LoggingSettings, Settings, WorkflowEngineSettings, load_settings

STORE_PATIENCE_SECONDS = 30.0
MAX_SHOWN_QUARANTINED = 20


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
        self._slots = Slots(self.section.max_concurrent_workflows)
        self._drivers: Drivers
        self._started = Counter("amp_instances_started", "Instances started here", registry=self.metrics)
        self._ended = Counter(
            "amp_instances_ended", "Instances ended here", ["status"], registry=self.metrics
        )
        self._dispatched = Counter(
            "amp_attempts_dispatched", "Attempts sent", ["capability"], registry=self.metrics
        )
        self._seconds = Histogram("amp_instance_seconds", "How long instances took", registry=self.metrics)
        for name, text in (
            ("owned", "Unfinished instances that this engine owns"),
            ("running", "Instances that hold a slot"),
            ("pending", "Instances that wait for a slot"),
            ("quarantined", "Instances that cannot be driven and are left alone"),
        ):
            gauge = Gauge(f"amp_instances_{name}", text, registry=self.metrics)
            gauge.set_function(lambda name=name: float(self._counts()[name]))  # type: ignore[misc]

    @property
    def owner(self) -> str:
        """The name under which this process owns instances: unique for each start of it."""
        return f"{self.agent_id}:{self.session_id}"

    def health(self) -> dict[str, Any]:
        """Return how many instances are held, and why some are left alone."""
        counts = self._counts()
        facts: dict[str, Any] = {"instances": counts.pop("owned"), **counts}
        if hasattr(self, "_drivers"):
            facts["lease_live"] = self._ownership.is_live
            if self._drivers.quarantined:
                facts["quarantined_instances"] = dict(
                    list(self._drivers.quarantined.items())[:MAX_SHOWN_QUARANTINED]
                )
        return facts

    def _counts(self) -> dict[str, int]:
        drivers = getattr(self, "_drivers", None)
        return {
            "owned": 0 if drivers is None else len(drivers),
            "running": len(self._slots.running),
            "pending": len(self._slots.pending),
            "quarantined": 0 if drivers is None else len(drivers.quarantined),
        }

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
            self.offer(contracts.TASK_COMPLETE, self._on_task_complete),
            self.offer(contracts.TASK_HEARTBEAT, self._on_heartbeat),
            self.offer(contracts.WORKFLOW_WHY, self._on_why),
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
        self._performer = MeshPerformer(
            self.mesh,
            engine_id=self.agent_id,
            settings=self.section,
            clock=self.clock,
            random=self.random,
            spawn=self.spawn,
            count_dispatch=lambda capability: self._dispatched.labels(capability).inc(),
            instance_of=self._stored_here,
        )
        self._drivers = Drivers(
            owner=self.owner,
            log=self._log,
            performer=self._performer,
            histories=self._histories,
            slots=self._slots,
            clock=self.clock,
            spawn=self.spawn,
            on_ended=self._ended_one,
        )
        self._starts = Starts(
            catalog=self.catalog,
            histories=self._histories,
            clock=self.clock,
            new_id=lambda: new_id("ins", self.clock, self.random),
            begin=self._drivers.begin,
            has_slot=lambda: self._slots.has_free and not self._drivers.draining,
            refuse=self._too_many,
        )
        self._ownership = Ownership(
            self.mesh,
            owner=self.owner,
            agent_id=self.agent_id,
            lease_seconds=self.section.lease_seconds,
            holder=self._drivers,
            room=self._room,
            on_beat=self._read_all_inboxes,
        )
        self._explainer = Explainer(
            self.mesh,
            self,
            agent_id=self.agent_id,
            histories=self._histories,
            clock=self.clock,
            lease_seconds=self.section.lease_seconds,
        )

    async def on_ready(self) -> None:
        """Take a lease, take up what nobody owns, and begin to listen."""
        await self._performer.listen()
        await self.mesh.subscribe(contracts.EVENT_INBOX_FILLED, self._on_inbox_filled)
        await self.mesh.subscribe(contracts.EVENT_INSTANCE_OVERDUE, self._on_overdue)
        self.spawn(self._ownership.keep_lease(), "lease")
        self.spawn(self._ownership.keep_in_step(), "instances")
        if not self._embedded:
            self.spawn(self._ownership.claim_what_nobody_owns(), "claims")
            if self.section.load_workflows_on_start:
                self.spawn(self._load_folders(), "workflow folders")

    async def on_stop(self) -> None:
        """Let go of every instance, durably, so that another engine takes it up at once."""
        self._drivers.draining = True
        await self._drivers.idle()
        self._drivers.let_go_of_all()
        await self._log.stop()
        await self._ownership.release()

    async def _load_folders(self) -> None:
        """Store the definitions in the workflow folders, after the instances that wait: checking them takes long."""
        await self._ownership.looked.wait()
        while True:
            try:
                await self.catalog.load_folders()
                return
            except AmpError as error:
                self.logger.warning("workflow_folders_not_loaded", code=error.code, reason=error.message)
                await asyncio.sleep(1.0)

    # --- what it owns ----------------------------------------------------------------------------------

    def _room(self) -> int:
        """Return how many more instances can be held."""
        if self._drivers.draining:
            return 0
        return max(0, self.section.max_pending_workflows - self._drivers.owned)

    def _too_many(self) -> str:
        """Return why no further instance is started now; empty when one is."""
        waiting = len(self._slots.pending)
        if waiting < self.section.max_pending_workflows:
            return ""
        return f"{waiting} instances wait for a slot; try again later"

    def _ended_one(self, instance: Instance) -> None:
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

    async def _on_overdue(self, event: Event) -> None:
        """An instance was to be looked at before now: look at it, or take it up when it is ours and is not driven."""
        if event.data.get("owner") != self.owner:
            return
        driver = self._drivers.get(str(event.data.get("instance_id", "")))
        if driver is None:
            self._ownership.compare_soon()
        else:
            self.logger.warning("instance_overdue", instance_id=driver.id)
            driver.nudge()

    # --- what the explainer reads ------------------------------------------------------------------------

    def driver_of(self, instance_id: str) -> Driver | None:
        """Return who drives the instance here, if anybody does."""
        driver = self._drivers.get(instance_id)
        return driver if driver is not None and not driver.lost else None

    def ended_here(self, instance_id: str) -> tuple[Plan, Instance] | None:
        """Return an instance that ended here lately."""
        return self._drivers.recent.get(instance_id)

    def set_aside_here(self, instance_id: str) -> str:
        """Return why this engine left an instance alone; empty when it did not."""
        return self._drivers.quarantined.get(instance_id, "").removeprefix("quarantined: ")

    def slots_for(self, instance_id: str) -> surroundings.Slots:
        """Return how the slots are taken, and the instance's place in the line."""
        return surroundings.Slots(
            running=len(self._slots.running),
            limit=self._slots.limit,
            waiting=len(self._slots.pending),
            place=self._slots.place(instance_id),
        )

    def place_of(self, token: str) -> surroundings.Place | None:
        """Return what this engine itself knows of where an attempt is."""
        return self._performer.place_of(token)

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
        if not len(self._drivers):
            return
        reply = await self.mesh.request(
            contracts.INBOX_READ.id,
            contracts.InboxReadRequest(owner=self.owner, instance_ids=instance_ids),
            reply_type=contracts.InboxReadReply,
            patience_seconds=STORE_PATIENCE_SECONDS,
            resend=True,
        )
        if reply.items:
            crash.reach("engine.inbox.read")
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
        crash.reach("engine.inbox.put")
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
        idempotency_key: str = "",
        trigger: str = "api",
    ) -> StartedInstance:
        """Start an instance and return it once that is durable.

        Args:
            instance_id: The instance's name; it starts only once.
            idempotency_key: The start's name: the same key with the same request gives the same answer.

        Raises: WorkflowNotFound, InvalidInputs with every problem, EngineBusy, IdempotencyKeyReused.
        """
        wish = self._starts.wish(
            workflow_id,
            inputs or {},
            instance_id=instance_id,
            trigger=trigger,
            idempotency_key=idempotency_key,
        )
        started = await self._starts.start(wish)
        if started.created and not started.replayed:
            self._started.inc()
            self.logger.info("instance_started", instance_id=started.id, workflow_id=workflow_id)
        return started

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
        if driver is not None and not driver.lost and self._ownership.is_live:
            return driver.plan, driver.committed
        if instance_id in self._drivers.recent:
            return self._drivers.recent[instance_id]
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
            asked.workflow_id,
            asked.inputs,
            instance_id=asked.instance_id,
            idempotency_key=asked.idempotency_key,
            trigger=asked.trigger,
        )
        return contracts.WorkflowStarted(
            instance_id=started.id,
            status=started.status,
            workflow_id=started.workflow_id,
            created=started.created,
            replayed=started.replayed,
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

    async def _on_heartbeat(self, request: Incoming) -> contracts.TaskHeartbeatReply:
        asked: contracts.TaskHeartbeatRequest = request.parameters
        names = {heartbeats.instance_id_of(beat.token) for beat in asked.beats if not beat.begun}
        stored = {name: instance for name in names if (instance := await self._stored_now(name))}
        return self._performer.heartbeat(asked, stored)

    async def _stored_now(self, instance_id: str) -> Instance | None:
        """Return an instance as it is stored, whoever drives it: what is held here counts while the lease does."""
        here = self._stored_here(instance_id)
        if here is not None and (here.status.is_final or self._ownership.is_live):
            return here
        try:
            return (await self._histories.rebuild(await self._histories.row(instance_id)))[1]
        except InstanceNotFound:
            return None

    def _stored_here(self, instance_id: str) -> Instance | None:
        """Return an instance as it is stored, when this engine drives it or saw it end."""
        driver = self.driver_of(instance_id)
        if driver is not None:
            return driver.committed
        ended = self.ended_here(instance_id)
        return None if ended is None else ended[1]

    async def _on_task_retry(self, request: Incoming) -> contracts.TaskControlled:
        asked: contracts.TaskRetryRequest = request.parameters
        return await self._control_task(
            asked.workflow_instance_id, asked.task_id, "task_retry", {"reason": asked.reason}
        )

    async def _on_task_skip(self, request: Incoming) -> contracts.TaskControlled:
        asked: contracts.TaskSkipRequest = request.parameters
        return await self._control_task(
            asked.workflow_instance_id, asked.task_id, "task_skip", {"reason": asked.reason}
        )

    async def _on_task_complete(self, request: Incoming) -> contracts.TaskControlled:
        asked: contracts.TaskCompleteRequest = request.parameters
        data = {"outputs": asked.outputs, "reason": asked.reason}
        return await self._control_task(asked.workflow_instance_id, asked.task_id, "task_complete", data)

    async def _on_why(self, request: Incoming) -> contracts.WorkflowWhy:
        return await self._explainer.explain(request.parameters)

    async def _control_task(
        self, instance_id: str, task_id: str, kind: str, data: dict[str, Any]
    ) -> contracts.TaskControlled:
        plan, instance = await self._find(instance_id)
        if task_id not in plan.tasks:
            raise TaskNotFound(
                f"workflow {plan.workflow_id!r} has no task {task_id!r}", {"known": list(plan.tasks)[:20]}
            )
        refusals = orders.refusals(plan, instance, task_id, self.clock.now())
        if refusal := refusals[kind.removeprefix("task_")]:
            allowed = [order for order, reason in refusals.items() if not reason]
            current = instance.runs[task_id].status.value
            raise IllegalState(refusal, {"current_state": current, "allowed": allowed, "task_id": task_id})
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
