"""Real agent processes for tests: each on free ports of the loopback interface, with a data folder of its own."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from amp.client import AgentIdentity, MeshClient
from amp.transports.websocket import WebSocketTransport
from orchestration import contracts
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
JOIN_SECONDS = 40.0
END_SECONDS = 60.0
STOP_SECONDS = 15.0
PR_SET_PDEATHSIG = 1
AGENTS = (
    "workflow_engine",
    "task_executor",
    "state_manager",
    "condition_evaluator",
    "error_handler",
    "monitor_agent",
)


class Processes:
    """Starts agents as processes, kills them, and talks to them as one more member of the mesh."""

    def __init__(self, folder: Path, *, host_router: bool) -> None:
        self.folder = folder
        self.router_port = free_port()
        self.router_url = f"ws://127.0.0.1:{self.router_port}/amp/v1/ws"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AMP_")},
            "PYTHONPATH": str(ROOT),
            "AMP_CONFIG": str(folder / "agent_config.yaml"),
            "AMP_DATA_DIR": str(folder / "data"),
            "AMP_DATABASE__RESERVE_MEGABYTES": "1",
            "AMP_MESH__ROUTER_URL": self.router_url,
            "AMP_MESH__HOST_ROUTER": str(host_router).lower(),
            "AMP_WORKFLOW_ENGINE__LOAD_WORKFLOWS_ON_START": "false",
            "AMP_TASK_EXECUTOR__HTTP__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
        }
        self.client = MeshClient(
            AgentIdentity(id="tester", name="tester", version="1", framework="tests", session_id="s1"),
            WebSocketTransport(self.router_url),
            random=Random(1),
        )

    def start_router(self) -> None:
        """Start the router as a process of its own."""
        self.launch("router", [sys.executable, "-m", "amp.router", "--port", str(self.router_port)])

    def start(self, agent: str, name: str | None = None) -> subprocess.Popen[bytes]:
        """Start `python -m agents.AGENT` and return the process; `name` tells several apart."""
        return self.launch(name or agent, [sys.executable, "-m", f"agents.{agent}", "--port", "0"])

    def launch(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a process that ends with the others; what it prints is in `log_of(name)`.

        Args:
            environment: Variables of this one process, over those of all.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environment, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_us,
            )
        self.running[name] = process
        return process

    def kill(self, name: str) -> None:
        """Kill a process the hard way."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(STOP_SECONDS)

    async def joined(self, *capabilities: str) -> None:
        """Return when somebody offers each of these capabilities; without any, those that a workflow needs."""
        wanted = capabilities or (
            contracts.STATE_APPEND.id,
            contracts.WORKFLOW_START.id,
            contracts.TASK_DATA_TRANSFORM.id,
            contracts.CONDITION_EVALUATE.id,
            contracts.ERROR_HANDLE.id,
            contracts.METRICS_GET.id,
        )
        changed = asyncio.Event()
        await self.client.subscribe(contracts.EVENT_AGENT_JOINED, lambda event: changed.set())
        async with asyncio.timeout(JOIN_SECONDS):
            for capability in wanted:
                while not await self.client.discover(capabilities=[capability]):
                    await changed.wait()
                    changed.clear()

    async def until(self, instance_id: str, *statuses: str) -> contracts.WorkflowStatus:
        """Return the status document once the instance stands where it should."""
        wanted = frozenset(statuses) or frozenset({"completed", "failed", "cancelled"})
        changed = asyncio.Event()
        await self.client.subscribe(contracts.EVENT_LOG_ADVANCED, lambda event: changed.set())
        async with asyncio.timeout(END_SECONDS):
            while True:
                changed.clear()
                document = await self.client.request(
                    contracts.WORKFLOW_STATUS.id,
                    contracts.WorkflowStatusRequest(instance_id=instance_id),
                    reply_type=contracts.WorkflowStatus,
                    patience_seconds=END_SECONDS,
                    resend=True,
                )
                if document.instance["status"] in wanted:
                    return document
                await changed.wait()

    async def stop(self) -> None:
        """End everything that runs; nothing is left behind."""
        await self.client.stop()
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            try:
                await asyncio.to_thread(process.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)

    def log_of(self, name: str) -> str:
        """Return what a process has printed."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")


_libc = ctypes.CDLL(None)


def _end_with_us() -> None:
    """In the child: have the kernel end it when the tests are killed."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL.value, 0, 0, 0)


@asynccontextmanager
async def running_processes(
    folder: Path, *, agents: tuple[str, ...] = AGENTS, host_router: bool = False
) -> AsyncIterator[Processes]:
    """Run agents as processes, with a router of their own unless the first of them hosts it."""
    (folder / "agent_config.yaml").write_text("{}\n")
    processes = Processes(folder, host_router=host_router)
    try:
        if not host_router:
            processes.start_router()
        for agent in agents:
            processes.start(agent)
        await processes.client.start(wait_seconds=JOIN_SECONDS)
        yield processes
    finally:
        await processes.stop()
