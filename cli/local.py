"""A whole mesh in this process: router and six agents over the memory transport, for one run."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgspec

from agents.base import Agent
from agents.condition_evaluator import ConditionEvaluator
from agents.error_handler import ErrorHandler
from agents.monitor_agent import MonitorAgent
from agents.state_manager import StateManager
from agents.task_executor import TaskExecutor
from agents.workflow_engine import WorkflowEngine
from amp.client import AgentIdentity, MeshClient
from amp.errors import AmpError
from amp.router import Router
from amp.subscriptions import Event
from amp.transports.memory import MemoryNetwork
from cli.errors import CommandError, ExitCode
from cli.progress import ENDS, Progress
from cli.run import Job, Outcome
from cli.version import product_version
from orchestration import contracts
from runtime import logging as runtime_logging
from runtime.clock import SystemClock
from runtime.ids import new_id
from runtime.settings import LoggingSettings, Settings, SettingsError, load_settings

AGENTS: tuple[type[Agent], ...] = (
    StateManager,
    ConditionEvaluator,
    ErrorHandler,
    MonitorAgent,
    TaskExecutor,
    WorkflowEngine,
)
"""In the order of their start; they stop in the opposite order."""
START_SECONDS = 30.0
DRAIN_SECONDS = 0.5
"""After the run nobody waits for anything; after Ctrl-C nobody wants to."""
REQUEST_SECONDS = 30.0
PAGE_EVENTS = 500
CLIENT_ID = "amp-run"
LOG_FORMAT = "    %(levelname)s %(name)s: %(message)s"
LOST_HINT_SECONDS = 5.0
"""A hint that the log grew may be lost; the log is read again after this long without one."""

Reply = TypeVar("Reply")

_event_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


class LocalRunner:
    """Runs a job on a mesh that lives as long as the run.

    Args:
        data_dir: Where the instance's log stays; by default a folder that is removed at the end.
    """

    def __init__(self, *, config: Path | None, data_dir: Path | None) -> None:
        self._config = config
        self._data_dir = data_dir

    async def run(self, job: Job, progress: Progress) -> Outcome:
        """Return how the instance ended. Raises: CommandError when the mesh refuses the job."""
        with tempfile.TemporaryDirectory(prefix="amp-run-", ignore_cleanup_errors=True) as temporary:
            settings = self._settings(Path(temporary) if self._data_dir is None else self._data_dir)
            quiet = settings.logging.level if settings.logging.level == "DEBUG" else "WARNING"
            runtime_logging.configure(LoggingSettings(level=quiet, format=LOG_FORMAT), role=CLIENT_ID)
            async with local_mesh(settings) as client:
                try:
                    return await run_job(client, job, progress)
                except AmpError as error:
                    raise CommandError(f"{error.code}: {error.message}") from None

    def _settings(self, data_dir: Path) -> Settings:
        """Return the settings of the run: all as usual, but the log in `data_dir`, and files where they always are."""
        overrides: dict[str, Any] = {
            kind.section_name: {"drain_timeout_seconds": DRAIN_SECONDS} for kind in AGENTS
        }
        overrides["workflow_engine"]["load_workflows_on_start"] = False
        if self._data_dir is None:
            overrides["database"] = {"reserve_megabytes": 0}
        try:
            usual = load_settings(self._config)
            folder = usual.data_dir if self._data_dir is None else str(self._data_dir)
            files = Path(folder, usual.task_executor.files.root).absolute()
            overrides["task_executor"]["files"] = {"root": str(files)}
            return load_settings(self._config, overrides={**overrides, "data_dir": str(data_dir)})
        except SettingsError as error:
            raise CommandError(str(error), ExitCode.USAGE) from None


@contextlib.asynccontextmanager
async def local_mesh(settings: Settings) -> AsyncIterator[MeshClient]:
    """Start a router and the six agents in this process and give a client of their mesh; stop all at the end."""
    clock, random = SystemClock(), Random()
    async with contextlib.AsyncExitStack() as stack:
        network = MemoryNetwork(direct=True)
        router = Router(now=clock.now, random=random)
        stack.push_async_callback(router.stop)
        router.serve_memory(network)
        agents = [
            kind(settings, transport=network.transport(), clock=clock, random=random, serve_http=False)
            for kind in AGENTS
        ]
        for agent in agents:
            stack.push_async_callback(agent.stop)
        await asyncio.gather(*(agent.start(wait_seconds=START_SECONDS) for agent in agents))
        identity = AgentIdentity(
            id=CLIENT_ID,
            name="amp run",
            version=product_version(),
            framework="amp-cli",
            session_id=new_id("ses", clock, random),
        )
        client = MeshClient(identity, network.transport(), now=clock.now, random=random)
        await client.start(wait_seconds=START_SECONDS)
        stack.push_async_callback(client.stop)
        yield client


async def run_job(client: MeshClient, job: Job, progress: Progress) -> Outcome:
    """Store and start a job on a mesh, tell its events, and return how it ended.

    Raises: AmpError when the mesh refuses it.
    """
    advanced = asyncio.Event()

    def hint(event: Event) -> None:
        advanced.set()

    await client.subscribe(contracts.EVENT_LOG_ADVANCED, hint)
    create = contracts.WorkflowCreateRequest(
        definition=job.definition, overwrite=True, source=job.text, format=job.format
    )
    await _ask(client, contracts.WORKFLOW_CREATE, create, contracts.WorkflowCreated)
    start = contracts.WorkflowStartRequest(
        workflow_id=job.workflow_id, inputs=job.inputs, trigger="cli", idempotency_key=job.idempotency_key
    )
    started = await _ask(client, contracts.WORKFLOW_START, start, contracts.WorkflowStarted)
    progress.say(f"instance {started.instance_id}")
    after, last = 0, None
    while last is None:
        advanced.clear()
        request = contracts.LogReadRequest(after=after, limit=PAGE_EVENTS, instance_id=started.instance_id)
        page = await _ask(client, contracts.LOG_READ, request, contracts.LogReadReply)
        after, last = page.next, _tell(page.events, progress)
        if page.end and last is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(advanced.wait(), LOST_HINT_SECONDS)
    return await _outcome(client, job.workflow_id, started.instance_id, last)


async def _outcome(
    client: MeshClient, workflow_id: str, instance_id: str, last: Mapping[str, Any]
) -> Outcome:
    """Return how an instance ended. `last` is the event that ended it."""
    request = contracts.WorkflowStatusRequest(instance_id=instance_id)
    status = await _ask(client, contracts.WORKFLOW_STATUS, request, contracts.WorkflowStatus)
    return Outcome(
        instance_id=instance_id,
        workflow_id=workflow_id,
        status=ENDS[last["type"]],
        outputs=status.instance.get("outputs") or {},
        error=last.get("error"),
        tasks=status.tasks,
    )


def _tell(records: Iterable[contracts.EventRecord], progress: Progress) -> dict[str, Any] | None:
    """Tell the events; return the one that ended the instance, if it is among them."""
    for record in records:
        event = {**_event_decoder.decode(record.data), "type": record.type}
        progress.tell(event)
        if record.type in ENDS:
            return event
    return None


async def _ask(
    client: MeshClient, contract: contracts.Contract, request: object, reply_type: type[Reply]
) -> Reply:
    return await client.request(
        contract.id,
        request,
        reply_type=reply_type,
        timeout_seconds=REQUEST_SECONDS,
        patience_seconds=REQUEST_SECONDS,
    )
