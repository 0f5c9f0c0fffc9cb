"""What every agent is: an identity, capabilities, /health and /metrics, a drain and a stop.

An agent is a thin asyncio process around pure decisions. This module knows no workflow and decides nothing: it
connects, offers what the subclass offers, and ends in order.
"""

import argparse
import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, ClassVar, NoReturn

from amp import crash
from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.errors import AgentIdInUse
from amp.hosting import HostingTransport
from amp.transports.base import Transport
from orchestration.contracts import Contract, schema_of
from runtime import logging as runtime_logging
from runtime import process
from runtime.clock import Clock, SlewedClock, SystemClock
from runtime.health import HealthServer
from runtime.ids import new_id
from runtime.lean_prometheus import CollectorRegistry, Gauge
from runtime.lean_structlog import structlog
from runtime.settings import AgentSection, Settings, SettingsError, load_settings
from runtime.version import product_version

FRAMEWORK = "amp-workflow-orchestration"
MAX_SAME_AGENTS = 100
"""How many agents of one name find a free id by counting up."""
EXIT_USAGE = 2

Handler = Callable[[Incoming], Awaitable[object]]


class Agent:
    """A member of the mesh. A subclass names its settings section and its offers.

    Args:
        settings: All settings; the agent reads its own section and the shared ones.
        transport: How to reach the mesh; by default the router at `settings.mesh.router_url`.
        clock, random: Time and chance; by default the machine's, whose wall clock may be set without harm.
        agent_id, port: Instead of the section's.
        serve_http: Whether to answer /health and /metrics.
    """

    section_name: ClassVar[str]

    def __init__(
        self,
        settings: Settings,
        *,
        transport: Transport | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        agent_id: str | None = None,
        port: int | None = None,
        serve_http: bool = True,
    ) -> None:
        self.settings = settings
        self.agent_section: AgentSection = getattr(settings, self.section_name)
        self.agent_id = agent_id or self.agent_section.agent_id
        self.clock = clock or SlewedClock(SystemClock())
        self.random = random or Random()
        self.session_id = new_id("ses", self.clock, self.random)
        self.metrics = CollectorRegistry()
        self.logger: structlog.stdlib.BoundLogger = structlog.get_logger(f"agents.{self.section_name}")
        self.failed = asyncio.Event()
        self.exit_code = process.EXIT_FAILURE
        """What the process ends with when `failed` is set."""
        self.mesh: MeshClient
        self._transport = transport
        self._port = self.agent_section.port if port is None else port
        self._http: HealthServer | None = None
        self._serve_http = serve_http
        self._tasks: set[asyncio.Task[Any]] = set()
        self._state = "new"
        self._connected = Gauge(
            "amp_agent_connected", "1 while registered on the mesh", registry=self.metrics
        )

    # --- what a subclass says --------------------------------------------------------------------------

    def offers(self) -> list[Offer]:
        """Return the capabilities of this agent with the code behind them."""
        return []

    def max_in_flight(self) -> int:
        """Return how many requests the router may have outstanding at this agent."""
        return 1000

    async def on_start(self) -> None:
        """Prepare before the agent joins the mesh."""

    def on_joining(self) -> None:
        """Build what requests need of `self.mesh`, before the first one can arrive. May be called again."""

    async def on_ready(self) -> None:
        """Begin to work: the agent is registered for the first time."""

    async def on_stop(self) -> None:
        """Finish what must be finished while the mesh is still there."""

    async def on_stopped(self) -> None:
        """Release what the agent holds, after it left the mesh."""

    def health(self) -> dict[str, Any]:
        """Return further facts for /health."""
        return {}

    # --- what it gets ----------------------------------------------------------------------------------

    def offer(self, contract: Contract, handler: Handler, *, raw: bool = False) -> Offer:
        """Return an offer of a contract. Every log line of the handler carries the request's id.

        Args:
            raw: The handler takes the parameters as they came, unchecked: it fills templates first.
        """

        def handle(incoming: Incoming) -> Awaitable[object]:
            # Each request has a task of its own, so nothing needs to be unbound.
            runtime_logging.bind_context(correlation_id=incoming.message.id)
            return handler(incoming)

        return Offer(
            capability=Capability(
                id=contract.id,
                description=contract.description,
                category=contract.category,
                input_schema=schema_of(contract.request),
                output_schema=schema_of(contract.reply),
                constraints={"credit": 0} if contract.free else {},
            ),
            handler=handle,
            parameters_type=None if raw else contract.request,
            check_input=not raw,
        )

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` beside the agent until it ends or the agent stops. A crash of it ends the agent."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self.agent_id}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        self.logger.error("background_task_failed", task=task.get_name(), exc_info=task.exception())
        self.failed.set()

    # --- its life --------------------------------------------------------------------------------------

    @property
    def port(self) -> int | None:
        """The port of /health and /metrics, or None when they are not served."""
        return self._http.port if self._http is not None else None

    async def start(self, *, wait_seconds: float | None = None) -> None:
        """Join the mesh and begin to work. Return when ready.

        Args:
            wait_seconds: How long to look for a router; None means until one is there.

        Raises: amp.errors.NetworkError when no router was found in that time.
        """
        self._state = "starting"
        try:
            async with asyncio.TaskGroup() as group:
                if self._serve_http:
                    group.create_task(self._serve())
                await self.on_start()
                await self._join(wait_seconds)
                self._connected.set_function(lambda: float(self.mesh.connected))
                await self.on_ready()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        self._state = "ready"
        self.logger.info("agent_ready", agent_id=self.agent_id, port=self.port)

    async def _serve(self) -> None:
        """Answer /health and /metrics."""
        self._http = HealthServer(
            self.agent_section.host, self._port, health=self._health_document, registry=self.metrics
        )
        await self._http.start()

    async def _join(self, wait_seconds: float | None) -> None:
        """Register under the wanted id, or under the next free one when a live agent holds it."""
        self._transport = transport = self._transport or self._default_transport()
        offers = self.offers()
        wanted = self.agent_id
        for number in range(MAX_SAME_AGENTS):
            self.mesh = self._client(transport, offers)
            self.on_joining()
            try:
                await self.mesh.start(wait_seconds=wait_seconds)
            except AgentIdInUse:
                await self.mesh.stop()
                self.agent_id = _next_id(wanted, number)
                continue
            if self.agent_id != wanted:
                self.logger.info("agent_id_taken", wanted=wanted, agent_id=self.agent_id)
            return
        raise AgentIdInUse(f"{MAX_SAME_AGENTS} agents are named like {wanted!r}; give --agent-id")

    def _client(self, transport: Transport, offers: list[Offer]) -> MeshClient:
        mesh = self.settings.mesh
        return MeshClient(
            AgentIdentity(
                id=self.agent_id,
                name=self.section_name.replace("_", " "),
                version=product_version(),
                framework=FRAMEWORK,
                session_id=self.session_id,
            ),
            transport,
            offers=offers,
            max_in_flight=self.max_in_flight(),
            api_key=mesh.api_key,
            now=self.clock.now,
            random=self.random,
            heartbeat_interval_seconds=mesh.heartbeat_interval_seconds,
            max_frame_bytes=mesh.max_frame_bytes,
        )

    def _default_transport(self) -> Transport:
        mesh = self.settings.mesh
        return HostingTransport(
            mesh.router_url,
            api_key=mesh.api_key,
            host_router=mesh.host_router,
            max_frame_bytes=mesh.max_frame_bytes,
            lost_after_seconds=mesh.lost_after_seconds,
        )

    async def stop(self) -> None:
        """Leave the mesh in order: finish what is under way within the drain time, then let go. Works twice."""
        if self._state in ("stopping", "stopped"):
            return
        before, self._state = self._state, "stopping"
        if before == "ready":
            await self.on_stop()
        if hasattr(self, "mesh"):
            await self.mesh.stop(drain_seconds=self.agent_section.drain_timeout_seconds)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if before != "new":
            await self.on_stopped()
        if isinstance(self._transport, HostingTransport):
            await self._transport.close()
        if self._http is not None:
            await self._http.stop()
        self._state = "stopped"
        self.logger.info("agent_stopped", agent_id=self.agent_id)

    def _health_document(self) -> dict[str, Any]:
        connected = hasattr(self, "mesh") and self.mesh.connected
        ready = self._state == "ready" and connected
        return {
            "status": "healthy" if ready else self._state if self._state != "ready" else "disconnected",
            "agent_id": self.agent_id,
            "session_id": self.session_id,
            "role": self.section_name.replace("_", "-"),
            "version": product_version(),
            "connected": connected,
            **self.health(),
        }


def _next_id(wanted: str, taken: int) -> str:
    """Return the id to try after `taken` ids like `wanted` were found in use: task-executor-1 -> task-executor-2."""
    match = re.fullmatch(r"(.*)-(\d{1,4})", wanted)
    stem, first = (match[1], int(match[2])) if match else (wanted, 1)
    return f"{stem}-{first + taken + 1}"


def main(agent_class: type[Agent], arguments: list[str] | None = None) -> NoReturn:
    """Run one agent as a process until SIGTERM or SIGINT, and exit."""
    section = agent_class.section_name
    parser = argparse.ArgumentParser(
        prog=f"python -m agents.{section}", description=f"Run the {section.replace('_', ' ')} agent."
    )
    parser.add_argument("--port", type=int, help="port of /health and /metrics (0: any free port)")
    parser.add_argument("--host", help="address of /health and /metrics")
    parser.add_argument("--agent-id", help="the agent's id on the mesh")
    parser.add_argument("--config", type=Path, help="settings file (default: config/agent_config.yaml)")
    parser.add_argument("--data-dir", help="folder for everything durable")
    parser.add_argument("--router-url", help="where the mesh router is")
    options = parser.parse_args(arguments)
    try:
        crash.arm_from_environment()
    except ValueError as error:
        parser.exit(EXIT_USAGE, f"{error}\n")
    try:
        settings = load_settings(options.config, overrides=_overrides(section, options))
    except SettingsError as error:
        parser.exit(EXIT_USAGE, f"{error}\n")
    runtime_logging.configure(settings.logging, role=section)

    async def life(stopping: asyncio.Event) -> int:
        try:
            agent = agent_class(settings)
        except SettingsError as error:
            sys.stderr.write(f"{error}\n")
            return EXIT_USAGE
        starting = asyncio.ensure_future(agent.start())
        stopped = asyncio.ensure_future(stopping.wait())
        failed = asyncio.ensure_future(agent.failed.wait())
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                process.settle()
                await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            return agent.exit_code if agent.failed.is_set() else 0
        finally:
            for waiter in (starting, stopped, failed):
                waiter.cancel()
            await asyncio.gather(starting, stopped, failed, return_exceptions=True)
            await agent.stop()

    process.run(life)


def _overrides(section: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the command line's settings in the shape of the settings file."""
    own = {"port": options.port, "host": options.host, "agent_id": options.agent_id}
    values: dict[str, Any] = {section: {key: value for key, value in own.items() if value is not None}}
    if options.data_dir is not None:
        values["data_dir"] = options.data_dir
    if options.router_url is not None:
        values["mesh"] = {"router_url": options.router_url}
    return values
