"""Starts the dashboard: `python web/app.py --port 8090`. An agent of the mesh with pages instead of capabilities."""

import argparse
import asyncio
import sys
from pathlib import Path
from random import Random
from typing import Any, NoReturn

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import amp.lean_aiohttp  # noqa: F401 - before web.server imports aiohttp as it is
from amp import crash
from amp.client import AgentIdentity, MeshClient
from amp.errors import AgentIdInUse, AmpError
from amp.hosting import HostingTransport
from runtime import logging as runtime_logging
from runtime import process
from runtime.clock import SystemClock
from runtime.ids import new_id
from runtime.lean_structlog import structlog
from runtime.settings import Settings, SettingsError, load_settings
from web.server.application import WebApplication
from web.server.security import InsecureBindError, require_loopback

EXIT_FAILURE = 1
EXIT_USAGE = 2
DRAIN_SECONDS = 5
FRAMEWORK = "amp-workflow-orchestration"


def mesh_transport(settings: Settings) -> HostingTransport:
    """Return how the mesh is reached: the router at its address, or one in this process when none answers there."""
    mesh = settings.mesh
    return HostingTransport(
        mesh.router_url,
        api_key=mesh.api_key,
        host_router=mesh.host_router,
        max_frame_bytes=mesh.max_frame_bytes,
        lost_after_seconds=mesh.lost_after_seconds,
    )


def mesh_client(
    settings: Settings, transport: HostingTransport, *, clock: SystemClock, random: Random
) -> MeshClient:
    """Return the dashboard's client, not started."""
    mesh = settings.mesh
    identity = AgentIdentity(
        id=settings.web.agent_id,
        name="web dashboard",
        version="1.0",
        framework=FRAMEWORK,
        session_id=new_id("ses", clock, random),
    )
    return MeshClient(
        identity,
        transport,
        api_key=mesh.api_key,
        now=clock.now,
        random=random,
        heartbeat_interval_seconds=mesh.heartbeat_interval_seconds,
        max_frame_bytes=mesh.max_frame_bytes,
    )


async def serve(settings: Settings, stopping: asyncio.Event) -> int:
    """Serve until `stopping`. The API answers at once; the mesh is joined as soon as there is one.

    Returns: The exit code.
    """
    logger = structlog.get_logger("web")
    clock, random = SystemClock(), Random()
    transport = mesh_transport(settings)
    client = mesh_client(settings, transport, clock=clock, random=random)
    web_app = WebApplication(settings.web, client, clock=clock, random=random)
    waits: list[asyncio.Task[Any]] = []
    try:
        port = await web_app.start()
        logger.info("dashboard_ready", url=f"http://{settings.web.host}:{port}")
        loop = asyncio.get_running_loop()
        joining = loop.create_task(client.start(), name="web:join-mesh")
        waits = [joining, loop.create_task(stopping.wait(), name="web:stopping")]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if joining.done():
            joining.result()
        process.settle()
        await stopping.wait()
    except (OSError, AmpError) as error:
        cure = "give this one another --agent-id" if isinstance(error, AgentIdInUse) else "see the reason"
        logger.error("dashboard_failed", port=settings.web.port, reason=str(error), cure=cure)
        return EXIT_FAILURE
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await web_app.stop()
        await client.stop(drain_seconds=DRAIN_SECONDS)
        await transport.close()
    return 0


def main(arguments: list[str] | None = None) -> NoReturn:
    """Read the command line and the settings, and serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="python web/app.py", description="Serve the dashboard and the REST API."
    )
    parser.add_argument("--host", help="loopback address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8090; 0: any free port)")
    parser.add_argument("--agent-id", help="the dashboard's id on the mesh (default: web-dashboard)")
    parser.add_argument("--config", type=Path, help="settings file (default: config/agent_config.yaml)")
    parser.add_argument("--router-url", help="where the mesh router is")
    options = parser.parse_args(arguments)
    given = {"host": options.host, "port": options.port, "agent_id": options.agent_id}
    overrides: dict[str, Any] = {"web": {key: value for key, value in given.items() if value is not None}}
    if options.router_url is not None:
        overrides["mesh"] = {"router_url": options.router_url}
    try:
        settings = load_settings(options.config, overrides=overrides)
        require_loopback(settings.web.host)
    except (SettingsError, InsecureBindError) as error:
        parser.exit(EXIT_USAGE, f"{error}\n")
    crash.arm_from_environment()
    runtime_logging.configure(settings.logging, role="web")
    process.run(lambda stopping: serve(settings, stopping))


if __name__ == "__main__":
    main()
