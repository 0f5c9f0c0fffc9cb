"""A whole mesh in one process for tests: router, agents and memory transport, real code throughout."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from agents.base import Agent
from agents.condition_evaluator import ConditionEvaluator
from agents.error_handler import ErrorHandler
from agents.monitor_agent import MonitorAgent
from agents.state_manager import StateManager
from agents.task_executor import TaskExecutor
from agents.workflow_engine import WorkflowEngine
from amp.client import AgentIdentity, MeshClient
from amp.router import Router
from amp.transports.memory import MemoryNetwork
from orchestration import contracts
from runtime.clock import SystemClock
from runtime.settings import Settings, load_settings

END_SECONDS = 20.0
SETTLED = frozenset({"completed", "failed", "cancelled"})


class Mesh:
    """A router and agents on a memory network, and a client to talk to them."""

    def __init__(self, folder: Path, overrides: Mapping[str, Any]) -> None:
        self.network = MemoryNetwork()
        database = {"reserve_megabytes": 1, **overrides.get("database", {})}
        self.settings: Settings = load_settings(
            folder / "agent_config.yaml",
            environment={},
            overrides={"data_dir": str(folder / "data"), **overrides, "database": database},
        )
        self.router = Router(now=SystemClock().now, random=Random(1))
        self.client = MeshClient(
            AgentIdentity(id="tester", name="tester", version="1", framework="tests", session_id="s1"),
            self.network.transport(),
            random=Random(2),
        )
        self.agents: list[Agent] = []

    async def add(self, agent_class: type[Agent], **arguments: Any) -> Any:
        """Start another agent on this mesh and return it."""
        agent = agent_class(
            self.settings,
            transport=self.network.transport(),
            random=Random(len(self.agents)),
            serve_http=False,
            **arguments,
        )
        await agent.start(wait_seconds=END_SECONDS)
        self.agents.append(agent)
        return agent

    async def define(self, definition: dict[str, Any]) -> str:
        """Store a definition and return its id."""
        reply = await self.client.request(
            contracts.WORKFLOW_CREATE.id,
            contracts.WorkflowCreateRequest(definition=definition, overwrite=True),
            reply_type=contracts.WorkflowCreated,
            patience_seconds=END_SECONDS,
        )
        return reply.workflow_id

    async def start(self, workflow_id: str, inputs: dict[str, Any] | None = None, **more: Any) -> str:
        """Start an instance and return its id."""
        reply = await self.client.request(
            contracts.WORKFLOW_START.id,
            contracts.WorkflowStartRequest(workflow_id=workflow_id, inputs=inputs or {}, **more),
            reply_type=contracts.WorkflowStarted,
            patience_seconds=END_SECONDS,
        )
        return reply.instance_id

    async def status(self, instance_id: str) -> contracts.WorkflowStatus:
        """Return the status document."""
        return await self.client.request(
            contracts.WORKFLOW_STATUS.id,
            contracts.WorkflowStatusRequest(instance_id=instance_id),
            reply_type=contracts.WorkflowStatus,
            patience_seconds=END_SECONDS,
        )

    async def until(self, instance_id: str, *statuses: str) -> contracts.WorkflowStatus:
        """Return the status document once the instance stands where it should; it is told by the log's hints."""
        wanted = frozenset(statuses) or SETTLED
        changed = asyncio.Event()
        await self.client.subscribe(contracts.EVENT_LOG_ADVANCED, lambda event: changed.set())
        async with asyncio.timeout(END_SECONDS):
            while True:
                changed.clear()
                document = await self.status(instance_id)
                if document.instance["status"] in wanted:
                    return document
                await changed.wait()

    async def run(
        self, definition: dict[str, Any], inputs: dict[str, Any] | None = None
    ) -> contracts.WorkflowStatus:
        """Define, start and wait for the end of an instance."""
        return await self.until(await self.start(await self.define(definition), inputs))

    async def stop(self) -> None:
        """Stop everything that was started, last first."""
        await self.client.stop()
        for agent in reversed(self.agents):
            await agent.stop()
        await self.router.stop()


@asynccontextmanager
async def running_mesh(
    folder: Path, *, agents: tuple[type[Agent], ...] | None = None, **overrides: Any
) -> AsyncIterator[Mesh]:
    """Run a mesh with these agents, by default all six."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "agent_config.yaml").write_text("{}\n")
    mesh = Mesh(folder, {"workflow_engine": {"load_workflows_on_start": False}, **overrides})
    mesh.router.serve_memory(mesh.network)
    try:
        await mesh.client.start(wait_seconds=END_SECONDS)
        for agent_class in agents or ALL_AGENTS:
            await mesh.add(agent_class)
        yield mesh
    finally:
        await mesh.stop()


ALL_AGENTS: tuple[type[Agent], ...] = (
    StateManager,
    WorkflowEngine,
    TaskExecutor,
    ConditionEvaluator,
    ErrorHandler,
    MonitorAgent,
)
