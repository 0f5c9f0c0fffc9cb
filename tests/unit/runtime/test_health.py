"""The health server: answers, ports, hosts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from runtime.errors import AddressUnusable
from runtime.health import HealthServer, is_local_host


@asynccontextmanager
async def serving(document: dict[str, Any] | None = None, port: int = 0) -> AsyncIterator[HealthServer]:
    server = HealthServer(
        "127.0.0.1", port, health=lambda: document or {"status": "healthy"}, registry=CollectorRegistry()
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def get(url: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(url, headers=headers)


async def test_health_answers_the_document() -> None:
    async with serving({"status": "healthy", "agent_id": "a"}) as server:
        response = await get(f"{server.url}/health")
    assert (response.status_code, response.json()) == (200, {"status": "healthy", "agent_id": "a"})
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("status", "code"), [("degraded", 200), ("starting", 503), ("disconnected", 503)])
async def test_status_decides_the_code(status: str, code: int) -> None:
    async with serving({"status": status}) as server:
        assert (await get(f"{server.url}/health")).status_code == code


async def test_metrics_show_the_registry_and_the_process() -> None:
    registry = CollectorRegistry()
    Counter("tasks", "Tasks", registry=registry).inc(3)
    server = HealthServer("127.0.0.1", 0, health=lambda: {"status": "healthy"}, registry=registry)
    await server.start()
    text = (await get(f"{server.url}/metrics")).text
    await server.stop()
    assert "tasks_total 3.0" in text
    assert "process_resident_memory_bytes" in text
    assert "process_cpu_seconds_total" in text


async def test_taken_port_is_replaced_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving() as first, serving(port=first.port) as second:
        assert second.port != first.port
        assert (await get(f"{second.url}/health")).status_code == 200
        assert (
            f"port {first.port} is taken; /health and /metrics are on {second.url}" in capsys.readouterr().out
        )


async def test_address_of_another_machine_is_refused() -> None:
    server = HealthServer("192.0.2.1", 0, health=dict, registry=CollectorRegistry())
    with pytest.raises(AddressUnusable, match=r"192\.0\.2\.1"):
        await server.start()
    await server.stop()


async def test_stop_works_twice_and_before_start_and_start_works_again() -> None:
    server = HealthServer("127.0.0.1", 0, health=lambda: {"status": "healthy"}, registry=CollectorRegistry())
    await server.stop()
    for _ in range(2):
        await server.start()
        await server.stop()
    await server.stop()


async def test_foreign_host_header_is_refused() -> None:
    async with serving() as server:
        response = await get(f"{server.url}/health", Host="evil.example")
    assert response.status_code == 403


async def test_other_methods_and_paths_are_refused() -> None:
    async with serving() as server, httpx.AsyncClient(trust_env=False) as client:
        assert (await client.post(f"{server.url}/health")).status_code == 405
        assert (await client.get(f"{server.url}/")).status_code == 404


@pytest.mark.parametrize(
    ("header", "bound_to", "answered"),
    [
        ("localhost:8080", "127.0.0.1", True),
        ("LOCALHOST", "127.0.0.1", True),
        ("127.0.0.1:8080", "127.0.0.1", True),
        ("[::1]:8080", "::1", True),
        ("[::1]", "localhost", True),
        ("evil.example", "127.0.0.1", False),
        ("evil.example:8080", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("evil", "127.0.0.1", False),
        ("192.168.1.2", "127.0.0.1", False),
        ("192.168.1.2:8080", "0.0.0.0", True),
        ("workflow-engine:8080", "0.0.0.0", True),
        ("engine.internal", "engine.internal", True),
        ("evil.example", "0.0.0.0", False),
        ("[::1]evil", "::1", False),
        ("[zz]", "0.0.0.0", False),
        ("localhost:evil", "127.0.0.1", False),
        ("", "127.0.0.1", False),
    ],
)
def test_only_names_that_nobody_else_can_own_are_answered(header: str, bound_to: str, answered: bool) -> None:
    assert is_local_host(header, bound_to=bound_to) is answered
