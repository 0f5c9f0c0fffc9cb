"""What no process may import: each library here is megabytes in each process that does not need it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NOWHERE = {"rich", "pygments", "click", "typer", "greenlet", "redis"}
"""Redis only where it is configured; the others are for people at a terminal, or for nobody."""
HTTP = {"http.client", "http.server", "urllib.request", "email.message"}
"""What prometheus_client and websockets take along for servers, gateways and proxies."""
NO_AGENT = (
    NOWHERE
    | HTTP
    | {
        "aiohttp",
        "httpx",
        "pydantic",
        "jsonschema",
        "orchestration.definition.models",
        "importlib.metadata",
        "psutil",
    }
)
MAY_NOT: dict[str, set[str]] = {
    "cli.supervise": NO_AGENT
    | {"ssl", "uvloop", "structlog", "prometheus_client", "websockets", "orchestration.contracts"},
    "amp.lean_aiohttp, amp.router_main": NOWHERE
    | {"httpx", "pydantic", "jsonschema", "structlog", "yaml", "psutil"},
    "agents.workflow_engine": NO_AGENT - {"pydantic", "jsonschema", "orchestration.definition.models"},
    "agents.task_executor": NO_AGENT - HTTP - {"httpx"},
    "agents.state_manager": NO_AGENT,
    "agents.state_manager.redis_level": NO_AGENT - {"redis", "importlib.metadata", "email.message"},
    "agents.condition_evaluator": NO_AGENT,
    "agents.error_handler": NO_AGENT,
    "agents.monitor_agent": NO_AGENT - {"psutil"},
    "web.app": NOWHERE | {"httpx", "pydantic", "jsonschema", "importlib.metadata"},
}


@pytest.mark.parametrize("module", MAY_NOT)
def test_process_does_not_import_what_it_does_not_need(module: str) -> None:
    program = f"import sys, {module}; print('\\n'.join(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert sorted(MAY_NOT[module] & set(ran.stdout.split())) == []


@pytest.mark.parametrize("module", ["amp.lean_aiohttp, amp.router_main", "web.app"])
def test_server_of_pages_reads_no_certificates_of_authorities(module: str) -> None:
    program = (
        f"import {module}, aiohttp.connector, asyncio.sslproto, http.client, ssl;"
        " assert asyncio.sslproto.ssl is ssl and http.client.HTTPSConnection;"
        " print(aiohttp.connector._SSL_CONTEXT_VERIFIED)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "None"
