"""The task executor on the mesh: offers the task capabilities, keeps attempts by token, hands results back.

An attempt outlives the request that brought it: a duplicate attaches, and when the engine is gone the result goes to
the instance's inbox. Nothing here decides what a task means; that is the handlers' business.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from agents.base import Agent
from agents.task_executor.attempts import Attempts, Ending, attempt_of
from agents.task_executor.compute import Compute, ForeignCode
from agents.task_executor.custom_handlers import CustomHandlers, load_custom_handlers
from agents.task_executor.errors import Overloaded, TaskCancelled
from agents.task_executor.execution import Execution, Work, as_amp_error, filled
from agents.task_executor.files import FileRoot
from agents.task_executor.handlers.registry import Services, task_handlers
from agents.task_executor.handover import Handover
from agents.task_executor.http_client import HttpClient
from agents.task_executor.places import files_root, own_ports
from amp.capability import Incoming, Offer
from amp.errors import AmpError
from amp.subscriptions import Event
from orchestration import contracts, templates
from orchestration.contracts import Attempt
from orchestration.expressions.errors import DataError
from runtime.errors import RuntimeFault
from runtime.logging import log_context
from runtime.settings import Settings, TaskExecutorSettings

MAX_CANCELLED_TOKENS = 10_000
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
        self._cancelled: OrderedDict[str, None] = OrderedDict()
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
        )
        self._execution = Execution(
            handlers=task_handlers(self._services),
            clock=self.clock,
            compute=self._services.compute,
            executor_id=lambda: self.agent_id,
            max_result_bytes=self._section.max_result_bytes,
        )
        self._handover = Handover(lambda: self.mesh, self.spawn)
        self._leaving = False
        self._finished_tasks = Counter(
            "amp_executor_tasks", "Tasks finished, by capability and outcome", ["capability", "outcome"],
            registry=self.metrics,
        )  # fmt: skip
        self._seconds = Histogram(
            "amp_executor_task_seconds", "How long tasks took", ["capability"], registry=self.metrics
        )
        Gauge("amp_executor_running_attempts", "Attempts under way", registry=self.metrics).set_function(
            lambda: float(len(self._attempts.running))
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
        """Watch for engines that go away, and for our own way to them breaking."""
        await self.mesh.subscribe(contracts.EVENT_AGENT_LEFT, self._on_agent_left)
        self.mesh.on_disconnected.append(self._on_disconnected)

    async def on_stop(self) -> None:
        """Hand over what nobody waits for, while the mesh is still there. What somebody waits for is drained later."""
        self._leaving = True
        deadline = asyncio.get_running_loop().time() + min(
            HANDOVER_SECONDS, self._section.drain_timeout_seconds
        )
        abandoned = [run.work for run in self._attempts.running.values() if run.abandoned]
        for waited in (abandoned, self._handover.under_way):
            left = deadline - asyncio.get_running_loop().time()
            if waited and left > 0:
                await asyncio.wait(list(waited), timeout=left)

    async def on_stopped(self) -> None:
        """Close connections and threads."""
        await self._services.http.close()
        self._services.compute.close()
        self._services.disk.close()

    def health(self) -> dict[str, Any]:
        """Return what runs and what can run."""
        return {
            "running_attempts": len(self._attempts.running),
            "max_concurrent_tasks": self._section.max_concurrent_tasks,
            "task_types": sorted(self._execution.handlers),
            "custom_handlers": self._custom.names,
        }

    # --- tasks -----------------------------------------------------------------------------------------

    async def _task(self, capability: str, task_type: str | None, incoming: Incoming) -> object:
        """Answer a task request: as an attempt when its context is one, else plainly."""
        attempt = attempt_of(incoming)
        parameters: Mapping[str, Any] = incoming.parameters
        if attempt is None:
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
        ending = self._attempts.known_ending(attempt.token, self.clock.monotonic())
        if ending is None:
            self._refuse_overload(attempt.token)
            run = self._attempts.begin(
                attempt.token,
                attempt.engine_id,
                lambda: self.spawn(
                    self._attempt(capability, task_type, parameters, attempt), f"attempt {attempt.token}"
                ),
            )
            try:
                ending = await asyncio.shield(run.work)
            except asyncio.CancelledError:
                run.abandoned = True
                raise
        if isinstance(ending, AmpError):
            raise AmpError(ending.code, ending.message, ending.details, severity=ending.severity)
        return ending

    def _refuse_overload(self, token: str) -> None:
        running = self._attempts.running
        if token not in running and len(running) >= self._section.max_concurrent_tasks * OVERCOMMIT:
            raise Overloaded(
                f"{len(running)} attempts are under way here", details={"retry_after_seconds": 1.0}
            )

    async def _attempt(
        self, capability: str, task_type: str | None, parameters: Mapping[str, Any], attempt: Attempt
    ) -> Ending:
        """Perform one attempt to its end, remember the ending, and deliver it when nobody listens."""
        work = Work(
            task_type=task_type,
            parameters=parameters,
            attempt=attempt,
            timeout_seconds=attempt.timeout_seconds,
            progress=self._progress_of(attempt),
        )
        ending: Ending
        try:
            if attempt.token in self._cancelled:
                raise TaskCancelled("the attempt was cancelled before it began")
            with log_context(
                instance_id=attempt.workflow_instance_id, task_id=attempt.task_id, attempt=attempt.attempt
            ):
                ending = await self._measured(capability, self._execution.enveloped(work))
        except AmpError as error:
            ending = error
        except asyncio.CancelledError:
            if attempt.token not in self._cancelled:
                raise
            ending = TaskCancelled("the attempt was cancelled")
        run = self._attempts.finish(attempt, ending, self.clock.monotonic())
        if run is not None and run.abandoned:
            self._handover.deliver(attempt, ending)
        return ending

    async def _measured(self, capability: str, work: Awaitable[msgspec.Raw]) -> msgspec.Raw:
        started = self.clock.monotonic()
        outcome = "failed"
        try:
            answer = await work
            outcome = "completed"
            return answer
        except AmpError as error:
            self.logger.debug("task_failed", capability=capability, code=error.code, reason=error.message)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._finished_tasks.labels(capability, outcome).inc()
            self._seconds.labels(capability).observe(self.clock.monotonic() - started)

    def _progress_of(self, attempt: Attempt) -> Callable[[Mapping[str, Any]], Awaitable[None]]:
        """Return what a handler calls to tell watchers how far it is; too frequent calls are dropped."""
        told: list[float] = []

        async def progress(data: Mapping[str, Any]) -> None:
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
        token = incoming.parameters.token
        self._cancelled[token] = None
        while len(self._cancelled) > MAX_CANCELLED_TOKENS:
            self._cancelled.popitem(last=False)
        run = self._attempts.running.get(token)
        if run is not None:
            run.work.cancel()
        return contracts.TaskCancelReply(found=run is not None)

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
        """Note that an engine, or every one, hears no answer: what runs is for the inbox, and so is what just ended."""
        running = self._attempts.abandon(engine_id)
        unconfirmed = self._attempts.unconfirmed(self.clock.monotonic(), engine_id)
        for attempt, ending in unconfirmed:
            self._handover.deliver(attempt, ending)
        if running or unconfirmed:
            self.logger.info(
                "engine_lost",
                engine_id=engine_id or "",
                running_attempts=running,
                unconfirmed=len(unconfirmed),
            )


async def _no_progress(data: Mapping[str, Any]) -> None:
    """Tell nobody: a stranger's call has no watchers."""
