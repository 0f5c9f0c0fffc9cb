"""An agent that knows nothing of this project offers a capability, and a workflow uses it."""

import sys
from pathlib import Path

import pytest

from orchestration import contracts
from tests.processes import ROOT, running_processes

pytestmark = pytest.mark.processes


async def test_a_workflow_uses_an_agent_from_outside(tmp_path: Path) -> None:
    agents = ("state_manager", "workflow_engine", "task_executor")
    async with running_processes(tmp_path, agents=agents) as mesh:
        mesh.launch("outsider", [sys.executable, str(ROOT / "examples/external_agent.py"), mesh.router_url])
        await mesh.joined(contracts.WORKFLOW_START.id, contracts.TASK_DATA_TRANSFORM.id, "text-uppercase")
        source = (ROOT / "examples/shout.yaml").read_text("utf-8")
        created = await mesh.client.request(
            contracts.WORKFLOW_CREATE.id,
            contracts.WorkflowCreateRequest(definition={}, source=source, format="yaml"),
            reply_type=contracts.WorkflowCreated,
            patience_seconds=30,
        )
        started = await mesh.client.request(
            contracts.WORKFLOW_START.id,
            contracts.WorkflowStartRequest(workflow_id=created.workflow_id, inputs={"name": "Ada"}),
            reply_type=contracts.WorkflowStarted,
        )
        document = await mesh.until(started.instance_id)
    assert document.instance["status"] == "completed"
    assert document.instance["outputs"] == {"text": "HELLO, ADA!"}
