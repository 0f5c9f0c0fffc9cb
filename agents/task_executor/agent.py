"""The task executor on the mesh: offers the task capabilities, keeps attempts by token, hands results back.

An attempt outlives the request that brought it: a duplicate attaches, and when the engine is gone the result goes to
the instance's inbox. Nothing here decides what a task means; that is the handlers' business.
"""

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

from agents.base import Agent
from agents.task_executor.attempts import Attempts, attempt_of
from agents.task_executor.compute import Compute, ForeignCode
from agents.task_executor.custom_handlers import CustomHandlers, load_custom_handlers
from agents.task_executor.execution import Execution, Work, as_amp_error, filled
from agents.task_executor.files import FileRoot
from agents.task_executor.handlers.base import Progress
from agents.task_executor.handlers.registry import Services, task_handlers
from agents.task_executor.handover import Handover
from agents.task_executor.heartbeats import Heartbeats
from agents.task_executor.http_client import HttpClient
from agents.task_executor.measures import Measures
from agents.task_executor.permission import Permission
from agents.task_executor.places import files_root, own_ports, record_bytes, spool_root
from agents.task_executor.program_records import ProgramRecords
from agents.task_executor.recovery import HOUSEKEEPING_SECONDS, Recovery
from agents.task_executor.runner import AttemptRunner
from agents.task_executor.spool import Spool
from amp import crash
from amp.capability import Incoming, Offer
from amp.errors import AmpError
from amp.subscriptions import Event
from orchestration import contracts, templates
from orchestration.contracts import Attempt
from orchestration.expressions.errors import DataError
from runtime.errors import RuntimeFault
from runtime.settings import Settings, TaskExecutorSettings

DISK_THREADS = 4
OVERCOMMIT = 4
"""Attempts whose requester gave up may run on beside new ones, up to `max_concurrent_tasks` times this in all."""
HANDOVER_SECONDS = 5.0
"""How long a stopping executor waits for attempts that nobody else waits for."""
PROGRESS_SECONDS = 1.0
"""At most one progress message a task in this time."""


class TaskExecutor(Agent):
    """Runs tasks. Its credit on the mesh is `max_concurrent_tasks`."""

    section_name: ClassVar[str] = "task_executor"

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(settings, **options)
        self._section: TaskExecutorSettings = settings.task_executor
        self._attempts = Attempts()
        self._programs = ProgramRecords()
        self._custom: CustomHandlers = load_custom_handlers(
            self._section.custom_handlers_module, self._section.custom_handlers_path
        )
        files = FileRoot(
            files_root(settings),
            max_file_bytes=self._section.files.max_file_bytes,
        )
        self._services = Services(
            http=HttpClient(self._section.http, own_ports=own_ports(settings)),
            files=files,
            compute=Compute(),
            disk=Compute(DISK_THREADS),
            foreign=ForeignCode(self._section.max_concurrent_tasks * OVERCOMMIT),
            custom=self._custom,
            subprocess=self._section.subprocess,
            programs=self._programs,
        )
        self._execution = Execution(
            handlers=task_handlers(self._services),
            clock=self.clock,
            compute=self._services.compute,
            executor_id=lambda: self.agent_id,
            max_result_bytes=self._section.max_result_bytes,
        )
        self._leaving = False
        self._remembers = asyncio.Event()
        self._build_memory()

    def _build_memory(self) -> None:
        """Make what keeps attempts over the end of a connection, an engine, or this process."""
        section, max_running = self._section, self._section.max_concurrent_tasks * OVERCOMMIT
        self._spool = spool = Spool(
            self.clock,
            max_bytes=section.spool.max_bytes,
            max_files=section.spool.max_files,
            record_bytes=record_bytes(section),
        )
        measures = Measures(self.metrics, self.clock, running=self._attempts.running, spool=spool)
        self._measured = measures.task
        self._handover = Handover(
            lambda: self.mesh,
            self.spawn,
            delivered=lambda token: self._recovery.settle([token]),
            count=measures.delivered,
        )
        self._recovery = Recovery(
            spool_root(self.settings),
            self._attempts,
            spool,
            self._handover,
            self._programs,
            slots=max_running,
            clock=self.clock,
            agent_id=lambda: self.agent_id,
        )
        self._heartbeats = Heartbeats(
            lambda: self.mesh,
            self.spawn,
            unwanted=lambda token: self._runner.cancel(token),
            count=measures.beat,
        )
        self._runner = AttemptRunner(
            self._attempts,
            self._execution,
            self._recovery,
            self._handover,
            self._heartbeats,
            Permission(lambda: self.mesh, spool),
            clock=self.clock,
            spawn=self.spawn,
            measured=self._measured,
            progress=self._progress_of,
            max_running=max_running,
        )

    # --- the agent's life ------------------------------------------------------------------------------

    def offers(self) -> list[Offer]:
        """Return the task capabilities and the control capabilities, which cost no credit."""
        performed = {
            contracts.TASK_EXECUTE: None,
            contracts.TASK_API_CALL: "api_call",
            contracts.TASK_DATA_TRANSFORM: "data_transform",
            contracts.TASK_SUBPROCESS: "subprocess",
            contracts.TASK_CUSTOM: "custom",
            contracts.TASK_VALIDATION: "validation",
            contracts.TASK_FILE_OPERATION: "file_operation",
        }
        offers = [
            self.offer(contract, partial(self._task, contract.id, task_type), raw=True)
            for contract, task_type in performed.items()
        ]
        offers.append(self.offer(contracts.TEMPLATE_RENDER, self._render_templates))
        offers.append(self.offer(contracts.TASK_CANCEL, self._cancel))
        offers.append(self.offer(contracts.TASK_SETTLED, self._settled))
        return offers

    def max_in_flight(self) -> int:
        """Return `max_concurrent_tasks`: the router sends no more at a time."""
        return self._section.max_concurrent_tasks

    async def on_start(self) -> None:
        """Make the files root ready."""
        files = self._services.files
        try:
            await self._services.disk.run(partial(files.prepare, self.clock.now().timestamp()))
        except OSError as error:
            raise RuntimeFault(
                f"task_executor.files.root: {str(files.root)!r} cannot be used: {error.strerror}"
            ) from None

    async def on_ready(self) -> None:
        """Remember, now that the id is settled. Watch for engines that go away, and for our way to them breaking."""
        await self._recovery.open(self._services.disk)
        self._remembers.set()
        self.spawn(self._keep_house(), "housekeeping")
        await self.mesh.subscribe(contracts.EVENT_AGENT_LEFT, self._on_agent_left)
        self.mesh.on_disconnected.append(self._on_disconnected)

    async def on_stop(self) -> None:
        """Hand over what nobody waits for, while the mesh is still there. What somebody waits for is drained later."""
        self._leaving = True
        deadline = asyncio.get_running_loop().time() + min(
            HANDOVER_SECONDS, self._section.drain_timeout_seconds
        )
        abandoned = [run.work for run in self._attempts.running.values() if run.abandoned]
        await _until(deadline, abandoned)
        await _until(deadline, self._handover.under_way.values())

    async def on_stopped(self) -> None:
        """Close connections and threads."""
        await self._services.http.close()
        self._services.compute.close()
        self._services.disk.close()
        self._recovery.close()

    def health(self) -> dict[str, Any]:
        """Return what runs and what can run."""
        return {
            "running_attempts": len(self._attempts.running),
            "spooled_results": len(self._spool),
            "max_concurrent_tasks": self._section.max_concurrent_tasks,
            "task_types": sorted(self._execution.handlers),
            "custom_handlers": self._custom.names,
        }

    # --- tasks -----------------------------------------------------------------------------------------

    async def _task(self, capability: str, task_type: str | None, incoming: Incoming) -> object:
        """Answer a task request: as an attempt when its context is one, else plainly."""
        crash.reach("executor.task.received")
        attempt = attempt_of(incoming)
        parameters: Mapping[str, Any] = incoming.parameters
        if not self._remembers.is_set():
            await self._remembers.wait()
        if attempt is not None:
            return await self._runner.run(capability, task_type, parameters, attempt)
        timeout_seconds = incoming.timeout_seconds or self._section.task_timeout_default
        work = Work(
            task_type=task_type,
            parameters=parameters,
            attempt=None,
            timeout_seconds=timeout_seconds,
            progress=_no_progress,
        )
        perform = self._execution.enveloped if task_type is None else self._execution.plain
        return await self._measured(capability, perform(work))

    def _progress_of(self, attempt: Attempt) -> Progress:
        """Return what a handler calls to tell watchers how far it is; too frequent calls are dropped."""
        told: list[float] = []

        async def progress(data: Mapping[str, Any]) -> None:
            if attempt.heartbeat_seconds > 0:
                self._heartbeats.progress(attempt.token, data)
            now = self.clock.monotonic()
            if told and now - told[0] < PROGRESS_SECONDS:
                return
            told[:] = [now]
            facts = {
                "workflow_instance_id": attempt.workflow_instance_id,
                "task_id": attempt.task_id,
                "attempt": attempt.attempt,
                "progress": dict(data),
            }
            try:
                await self.mesh.publish(contracts.EVENT_TASK_PROGRESS, facts, subscribers_only=True)
            except AmpError as error:
                self.logger.debug("progress_not_told", code=error.code)

        return progress

    # --- control ---------------------------------------------------------------------------------------

    async def _cancel(self, incoming: Incoming) -> contracts.TaskCancelReply:
        """Stop an attempt; one that comes later under this token is refused."""
        return contracts.TaskCancelReply(found=self._runner.cancel(incoming.parameters.token))

    async def _settled(self, incoming: Incoming) -> contracts.TaskSettledReply:
        """Forget endings that are recorded, or will never be wanted."""
        crash.reach("executor.settled.received")
        await self._remembers.wait()
        return contracts.TaskSettledReply(removed=await self._recovery.settle(incoming.parameters.tokens))

    async def _render_templates(self, incoming: Incoming) -> contracts.TemplateRenderReply:
        """Fill templates for an agent that knows none."""
        request: contracts.TemplateRenderRequest = incoming.parameters
        scope = templates.Scope(
            variables=request.variables, declared=frozenset(request.declared), now=self.clock.now()
        )
        try:
            parameters = await filled(request.parameters, scope, self._services.compute)
        except DataError as error:
            raise as_amp_error(error) from None
        return contracts.TemplateRenderReply(parameters=parameters)

    # --- results that nobody waits for -----------------------------------------------------------------

    async def _on_agent_left(self, event: Event) -> None:
        left = event.data.get("agent_id")
        if isinstance(left, str):
            self._lose(left)

    async def _on_disconnected(self) -> None:
        if not self._leaving:
            self._lose(None)

    def _lose(self, engine_id: str | None) -> None:
        running, unconfirmed = self._runner.lose(engine_id)
        if running or unconfirmed:
            self.logger.info(
                "engine_lost",
                engine_id=engine_id or "",
                running_attempts=running,
                unconfirmed=unconfirmed,
            )

    async def _keep_house(self) -> None:
        """Tell what is still to be told, and remove what crashed writers left, now and then."""
        await self._recovery.deliver_earlier()
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            await self._recovery.look_after()
            await self._clear_partial_files()

    async def _clear_partial_files(self) -> None:
        files = self._services.files
        try:
            await self._services.disk.run(partial(files.prepare, self.clock.now().timestamp()))
        except OSError as error:
            self.logger.warning("partial_files_not_cleared", reason=error.strerror)


async def _until(deadline: float, waited: Iterable[asyncio.Future[Any]]) -> None:
    """Wait for all of these, up to a time of the loop."""
    futures, left = list(waited), deadline - asyncio.get_running_loop().time()
    if futures and left > 0:
        await asyncio.wait(futures, timeout=left)


async def _no_progress(data: Mapping[str, Any]) -> None:
    """Tell nobody: a stranger's call has no watchers."""
