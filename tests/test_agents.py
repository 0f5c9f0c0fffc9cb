"""The six agents as operators meet them: what each offers, its /health and /metrics, its port, its end."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.settings import Settings
from tests.mesh import running_mesh
from tests.processes import AGENTS, Processes, running_processes

READY_SECONDS = 40.0
STOP_SECONDS = 20.0

OFFERS = {
    "workflow-engine": {
        "workflow-create", "workflow-start", "workflow-stop", "workflow-pause", "workflow-resume",
        "workflow-status", "workflow-list", "workflow-load", "task-retry", "task-skip",
    },
    "task-executor-1": {
        "task-execute", "task-api-call", "task-data-transform", "task-subprocess", "task-custom",
        "task-validation", "task-file-operation",
    },
    "state-manager": {
        "state-get", "state-set", "state-update", "state-delete", "state-list", "state-query", "state-backup",
        "state-restore", "context-merge", "context-isolate",
    },
    "condition-evaluator": {
        "condition-evaluate", "condition-batch-evaluate", "condition-validate", "expression-parse",
        "decision-tree", "rule-engine",
    },
    "error-handler": {
        "error-handle", "error-recover", "error-escalate", "error-analyze", "circuit-breaker",
        "recovery-strategy", "error-patterns",
    },
    "monitor-agent": {
        "metrics-get", "metrics-aggregate", "alert-create", "alert-list", "health-check", "performance-report",
        "dashboard-data",
    },
}  # fmt: skip
"""The public interface of the protocol's workflow example."""


async def test_every_agent_offers_its_public_capabilities(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        found = {
            agent["identity"]["id"]: {capability["id"] for capability in agent["capabilities"]}
            for agent in await mesh.client.discover()
        }
    for agent_id, capabilities in OFFERS.items():
        assert capabilities <= found[agent_id], agent_id


async def test_every_public_capability_announces_its_schemas(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        agents = await mesh.client.discover()
    announced = {capability["id"]: capability for agent in agents for capability in agent["capabilities"]}
    for name in set().union(*OFFERS.values()):
        assert announced[name]["input_schema"]["type"] == "object", name
        assert announced[name]["output_schema"], name
        assert announced[name]["description"], name


async def lines(processes: Processes, name: str, event: str) -> list[dict[str, Any]]:
    """Return the log lines of a process with this event, waiting for the first."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            text = await asyncio.to_thread(processes.log_of, name)
            found = [json.loads(line) for line in text.splitlines() if line.startswith("{") and event in line]
            if found:
                return [line for line in found if line["event"] == event]
            await asyncio.sleep(0.05)


@asynccontextmanager
async def all_six(folder: Path) -> AsyncIterator[tuple[Processes, dict[str, str]]]:
    """Run the six agents as processes; give them with the address of each one's /health."""
    async with running_processes(folder) as processes:
        await processes.joined()
        urls = {}
        for agent in AGENTS:
            await lines(processes, agent, "agent_ready")
            (listening,) = await lines(processes, agent, "health_listening")
            urls[agent] = listening["url"]
        yield processes, urls


@pytest.mark.processes
async def test_agents_answer_health_and_metrics_and_end_in_order(tmp_path: Path) -> None:
    async with all_six(tmp_path) as (processes, urls), httpx.AsyncClient(trust_env=False) as client:
        for agent, url in urls.items():
            health = await client.get(f"{url}/health")
            assert (health.status_code, health.json()["status"]) == (200, "healthy"), agent
            assert health.json()["role"] == agent.replace("_", "-")
            metrics = (await client.get(f"{url}/metrics")).text
            assert "amp_agent_connected 1.0" in metrics, agent
            assert "process_resident_memory_bytes" in metrics, agent
            assert (await client.get(f"{url}/health", headers={"Host": "evil.example"})).status_code == 403
        for agent in AGENTS:
            processes.running[agent].send_signal(signal.SIGTERM)
        for agent in AGENTS:
            assert await asyncio.to_thread(processes.running[agent].wait, STOP_SECONDS) == 0, agent
            assert "agent_stopped" in processes.log_of(agent)


@pytest.mark.processes
async def test_second_executor_takes_a_free_port_and_the_next_name_and_says_so(tmp_path: Path) -> None:
    agents = ("state_manager", "task_executor")
    async with running_processes(tmp_path, agents=agents) as processes:
        (first,) = await lines(processes, "task_executor", "health_listening")
        await lines(processes, "task_executor", "agent_ready")
        processes.environment["AMP_TASK_EXECUTOR__PORT"] = str(first["port"])
        command = processes.running["task_executor"].args
        assert isinstance(command, list)
        processes.launch("second", command[:3])
        (taken,) = await lines(processes, "second", "health_port_taken")
        (named,) = await lines(processes, "second", "agent_id_taken")
        said = processes.log_of("second")
    assert taken["port"] != first["port"]
    assert named["agent_id"] == "task-executor-2"
    assert f"port {first['port']} is taken; /health and /metrics are on {taken['url']}" in said


def test_ports_and_names_are_the_documented_ones() -> None:
    settings = Settings()
    sections = [getattr(settings, agent) for agent in AGENTS]
    assert {section.agent_id: section.port for section in sections} == {
        "workflow-engine": 8080,
        "task-executor-1": 8081,
        "state-manager": 8082,
        "condition-evaluator": 8083,
        "error-handler": 8084,
        "monitor-agent": 8085,
    }
    assert settings.web.port == 8090
