"""Ready-made instances in every state, for end-to-end tests and for looking at the pages.

Run `python tests/web/scenes.py --port N` to browse them; what you start there is played task by task.
"""

import argparse
import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestration import events as e
from orchestration.contracts import ErrorInfo
from orchestration.status import RecoveryAction, Severity
from runtime.clock import SystemClock
from runtime.settings import WebSettings
from tests.web.fake_mesh import FakeMesh
from web.server.application import WebApplication

HELLO: dict[str, Any] = {
    "id": "hello-world-workflow",
    "name": "Hello World",
    "version": "1.0",
    "description": "Greets somebody in a language of their choice. The smallest workflow that shows the whole way.",
    "tags": ["example", "tutorial"],
    "input_schema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "default": "World", "description": "Whom to greet"},
            "language": {"type": "string", "enum": ["en", "es", "fr", "de"], "default": "en"},
        },
        "required": ["name"],
    },
    "tasks": [
        {"id": "validate_input", "name": "Validate input", "type": "validation", "capability": "task-validation",
         "parameters": {"data": "{user_input}", "rules": [{"type": "required", "field": "name"}]},
         "outputs": ["validation_result"]},
        {"id": "choose_greeting", "name": "Choose greeting", "type": "data_transform", "depends_on": ["validate_input"],
         "capability": "task-data-transform", "parameters": {"input_data": "{language}"}, "outputs": ["word"]},
        {"id": "greet", "name": "Greet", "type": "data_transform", "depends_on": ["choose_greeting"],
         "capability": "task-data-transform", "parameters": {"input_data": "{word}, {name}!"}, "outputs": ["greeting"]},
    ],
}  # fmt: skip

ORDER: dict[str, Any] = {
    "id": "order-fulfilment",
    "name": "Order fulfilment",
    "version": "2.3",
    "description": "Checks an order, charges the card, reserves stock in two warehouses and tells the customer.",
    "tags": ["orders", "production"],
    "input_schema": {
        "type": "object",
        "properties": {
            "order_id": {"type": "string", "description": "The shop's number of the order"},
            "amount": {"type": "number", "minimum": 0, "maximum": 10000},
            "express": {"type": "boolean", "default": False},
            "card_token": {"type": "string", "format": "password", "writeOnly": True},
            "customer": {
                "type": "object",
                "properties": {"email": {"type": "string"}, "country": {"type": "string", "default": "DE"}},
            },
            "items": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["order_id", "amount"],
    },
    "tasks": [
        {"id": "validate_order", "name": "Validate order", "type": "validation", "capability": "task-validation",
         "outputs": ["validation"], "parameters": {"data": "{user_input}"}},
        {"id": "check_fraud", "name": "Check for fraud", "type": "api_call", "capability": "task-api-call",
         "depends_on": ["validate_order"], "outputs": ["risk"],
         "parameters": {"method": "POST", "url": "https://risk.example.com/score", "data": {"order": "{order_id}"}}},
        {"id": "manual_review", "name": "Ask for a manual review", "type": "api_call", "capability": "task-api-call",
         "depends_on": ["check_fraud"], "condition": {"expression": "risk.score > 80", "required_outputs": ["risk"]},
         "parameters": {"url": "https://review.example.com/"}},
        {"id": "charge_card", "name": "Charge the card", "type": "api_call", "capability": "task-api-call",
         "effects": "once",
         "depends_on": ["check_fraud", "manual_review"], "outputs": ["payment"], "timeout_seconds": 30,
         "retry_config": {"strategy": "exponential_backoff", "max_attempts": 3},
         "parameters": {"method": "POST", "url": "https://pay.example.com/charge",
                        "headers": {"Authorization": "Bearer {secrets.pay}"}, "data": {"amount": "{amount}"}}},
        {"id": "reserve_north", "name": "Reserve stock, north", "type": "api_call", "capability": "task-api-call",
         "depends_on": ["charge_card"], "outputs": ["north"], "parameters": {"url": "https://stock.example.com/n"}},
        {"id": "reserve_south", "name": "Reserve stock, south", "type": "api_call", "capability": "task-api-call",
         "depends_on": ["charge_card"], "outputs": ["south"], "parameters": {"url": "https://stock.example.com/s"}},
        {"id": "express_label", "name": "Print express label", "type": "subprocess", "capability": "task-subprocess",
         "depends_on": ["charge_card"], "condition": {"expression": "express == True"},
         "parameters": {"command": "label"}},
        {"id": "summarise", "name": "Summarise", "type": "data_transform", "capability": "task-data-transform",
         "depends_on": ["reserve_north", "reserve_south", "express_label"], "outputs": ["summary"],
         "parameters": {"input_data": "{workflow_context}"}},
        {"id": "notify", "name": "Tell the customer", "type": "api_call", "capability": "task-api-call",
         "depends_on": ["summarise"], "parameters": {"url": "https://mail.example.com/send"}},
    ],
}  # fmt: skip

REPORT: dict[str, Any] = {
    "id": "nightly-report",
    "name": "Nightly report",
    "version": "1.4",
    "tags": ["reports"],
    "tasks": [
        {
            "id": "collect",
            "name": "Collect",
            "type": "api_call",
            "parameters": {"url": "https://data.example.com"},
        },
        {"id": "aggregate", "name": "Aggregate", "type": "data_transform", "depends_on": ["collect"]},
        {"id": "write", "name": "Write file", "type": "file_operation", "depends_on": ["aggregate"]},
    ],
}


class Stage:
    """Writes an instance's life into a mesh, second by second."""

    def __init__(
        self, mesh: FakeMesh, workflow_id: str, instance_id: str, inputs: dict[str, Any], at: datetime
    ) -> None:
        self.mesh, self.instance_id, self.at = mesh, instance_id, at
        mesh.create(workflow_id, instance_id, inputs, at=at)
        self.tell(e.InstanceAdmitted(at=self.wait(0.02)))

    def wait(self, seconds: float) -> datetime:
        self.at += timedelta(seconds=seconds)
        return self.at

    def tell(self, *facts: Any) -> None:
        self.mesh.emit(self.instance_id, *facts)

    def begin(self, task_id: str, attempt: int = 1) -> None:
        self.tell(
            e.TaskStarted(
                at=self.wait(0.01), task_id=task_id, attempt=attempt, token=f"t-{task_id}-{attempt}"
            )
        )

    def finish(self, task_id: str, seconds: float = 0.4, attempt: int = 1, **outputs: Any) -> None:
        self.tell(
            e.TaskCompleted(
                at=self.wait(seconds), task_id=task_id, attempt=attempt, outputs=outputs, primary=None,
                metadata={"executor_id": "task-executor-1"},
            )
        )  # fmt: skip

    def run(self, task_id: str, seconds: float = 0.4, **outputs: Any) -> None:
        self.begin(task_id)
        self.finish(task_id, seconds, **outputs)

    def condition(self, task_id: str, expression: str, result: bool) -> None:
        self.tell(
            e.ConditionEvaluated(at=self.wait(0.01), task_id=task_id, result=result, expression=expression)
        )

    def skip(self, task_id: str, reason: str = "condition_false", detail: str = "") -> None:
        self.tell(e.TaskSkipped(at=self.at, task_id=task_id, reason=reason, detail=detail))

    def fail_attempt(self, task_id: str, error: ErrorInfo, seconds: float = 1.2, attempt: int = 1) -> None:
        self.tell(e.AttemptFailed(at=self.wait(seconds), task_id=task_id, attempt=attempt, error=error))


ORDER_INPUTS = {
    "order_id": "A-1093",
    "amount": 129.9,
    "express": False,
    "card_token": "tok_very_secret",
    "customer": {"email": "ada@example.com", "country": "DE"},
    "items": [{"sku": "B-7", "count": 2}],
}
REFUSED = ErrorInfo(code="NETWORK_ERROR", message="POST https://pay.example.com/charge: 503 Service Unavailable",
                    details={"status_code": 503, "url": "https://pay.example.com/charge"}, retryable=True)  # fmt: skip


def order_until_charge(mesh: FakeMesh, instance_id: str, at: datetime) -> Stage:
    stage = Stage(mesh, "order-fulfilment", instance_id, ORDER_INPUTS, at)
    stage.run("validate_order", 0.04, validation={"valid": True, "failed_rules": []})
    stage.run("check_fraud", 0.6, risk={"score": 12, "model": "2026-10"})
    stage.condition("manual_review", "risk.score > 80", False)
    stage.skip("manual_review")
    return stage


def build(now: datetime) -> FakeMesh:
    """Return a mesh with one instance in every state; `now` is the present."""
    mesh = FakeMesh()
    for definition in (HELLO, ORDER, REPORT):
        mesh.define(definition, source=f"# {definition['name']}\nid: {definition['id']}\n")

    for number in range(14):
        stage = Stage(mesh, "hello-world-workflow", f"ins_01KHELLO{number:04d}", {"name": "Ada", "language": "es"},
                      now - timedelta(minutes=300 - 20 * number))  # fmt: skip
        stage.run("validate_input", 0.02, validation_result={"valid": True})
        stage.run("choose_greeting", 0.01 + 0.02 * (number % 5), word="Hola")
        stage.run("greet", 0.01, greeting="Hola, Ada!")
        stage.tell(e.InstanceCompleted(at=stage.wait(0.01), outputs={"greeting": "Hola, Ada!"}))

    stage = order_until_charge(mesh, "ins_01KORDERFAILED", now - timedelta(minutes=42))
    for attempt in (1, 2, 3):
        stage.begin("charge_card", attempt)
        stage.fail_attempt("charge_card", REFUSED, attempt=attempt)
        if attempt < 3:
            stage.tell(e.TaskRetrying(at=stage.wait(0.01), task_id="charge_card", attempt=attempt + 1,
                                      due_at=stage.at + timedelta(seconds=2), reason="NETWORK_ERROR"))  # fmt: skip
            stage.wait(2)
    stage.tell(
        e.RecoveryChosen(at=stage.wait(0.02), task_id="charge_card", action=RecoveryAction.ESCALATE,
                         severity=Severity.HIGH, reason="three attempts failed", escalated=True),
        e.TaskFailed(at=stage.at, task_id="charge_card", error=REFUSED),
    )  # fmt: skip
    for task_id in ("reserve_north", "reserve_south", "express_label", "summarise", "notify"):
        stage.skip(task_id, "dependency_failed", "Charge the card failed.")
    stage.tell(e.InstanceFailed(at=stage.wait(0.01), error=REFUSED, task_id="charge_card"))

    stage = order_until_charge(mesh, "ins_01KORDERDONE", now - timedelta(minutes=12))
    stage.run("charge_card", 1.3, payment={"id": "pay_881", "amount": 129.9, "token": "tok_very_secret"})
    stage.begin("reserve_north")
    stage.begin("reserve_south")
    stage.finish("reserve_north", 0.5, north={"reserved": 1})
    stage.finish(
        "reserve_south", 0.2, south={"reserved": 1, "bins": [{"bin": n, "free": n * 3} for n in range(1200)]}
    )
    stage.condition("express_label", "express == True", False)
    stage.skip("express_label")
    stage.run("summarise", 0.02, summary={"reserved": 2})
    stage.run("notify", 0.4)
    stage.tell(e.InstanceCompleted(at=stage.wait(0.01), outputs={"summary": {"reserved": 2}}))

    stage = order_until_charge(mesh, "ins_01KORDERRUNNING", now - timedelta(seconds=50))
    stage.run("charge_card", 1.3, payment={"id": "pay_882"})
    stage.run("reserve_north", 0.5, north={"reserved": 1})
    stage.begin("reserve_south")
    stage.condition("express_label", "express == True", False)
    stage.skip("express_label")

    stage = order_until_charge(mesh, "ins_01KORDERRETRY", now - timedelta(seconds=20))
    stage.begin("charge_card")
    stage.fail_attempt("charge_card", REFUSED)
    stage.tell(
        e.TaskRetrying(
            at=stage.wait(0.1), task_id="charge_card", attempt=2, due_at=now + timedelta(minutes=3)
        )
    )

    stage = order_until_charge(mesh, "ins_01KORDERUNKNOWN", now - timedelta(minutes=2))
    stage.begin("charge_card")
    lost = "the agent disappeared and sent no result"
    stage.tell(
        e.AttemptLost(at=stage.wait(14), task_id="charge_card", attempt=1, agent_id="task-executor-1", reason=lost),
        e.TaskOutcomeUnknown(at=stage.at, task_id="charge_card", attempt=1, token="t-charge_card-1", reason=lost),
    )  # fmt: skip

    stage = order_until_charge(mesh, "ins_01KORDERPAUSED", now - timedelta(minutes=7))
    stage.tell(e.InstancePaused(at=stage.wait(0.1), reason="waiting for the payment provider"))

    stage = Stage(mesh, "nightly-report", "ins_01KREPORTSTOPPED", {}, now - timedelta(hours=3))
    stage.begin("collect")
    stage.tell(e.TaskCancelled(at=stage.wait(4), task_id="collect", reason="stopped"),
               e.TaskCancelled(at=stage.at, task_id="aggregate"), e.TaskCancelled(at=stage.at, task_id="write"),
               e.InstanceCancelled(at=stage.at, reason="wrong day"))  # fmt: skip
    mesh.create("nightly-report", "ins_01KREPORTPENDING", {}, at=now - timedelta(seconds=4))
    mesh.alerts = [
        {"id": "alr_1", "type": "high_failure_rate", "severity": "warning", "title": "High failure rate",
         "description": "Order fulfilment: 50 % of 2 executions failed in the last hour", "created_at": now.isoformat()}
    ]  # fmt: skip
    return mesh


class Player:
    """Plays what is started: every task takes a while and completes; obeys pause, resume and stop."""

    def __init__(self, mesh: FakeMesh, task_seconds: float) -> None:
        self.mesh, self.task_seconds = mesh, task_seconds
        self.open: dict[str, asyncio.Event] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        mesh.on_start = self.start
        mesh.on_control = self.control

    def start(self, instance_id: str) -> None:
        self.open[instance_id] = asyncio.Event()
        self.open[instance_id].set()
        task = asyncio.ensure_future(self.play(instance_id))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def play(self, instance_id: str) -> None:
        mesh, emit = self.mesh, self.mesh.emit
        emit(instance_id, e.InstanceAdmitted(at=mesh.now()))
        definition = mesh.definitions[mesh.rows[instance_id].workflow_id]
        for task in definition.content["tasks"]:
            await self.open[instance_id].wait()
            if mesh.rows[instance_id].status.is_final:
                return
            task_id = task["id"]
            emit(instance_id, e.TaskStarted(at=mesh.now(), task_id=task_id, attempt=1, token=f"t-{task_id}"))
            await asyncio.sleep(self.task_seconds)
            if mesh.rows[instance_id].status.is_final:
                return
            outputs = {name: f"{name} of {task_id}" for name in task.get("outputs", ())}
            emit(instance_id, e.TaskCompleted(at=mesh.now(), task_id=task_id, attempt=1, outputs=outputs))
        emit(instance_id, e.InstanceCompleted(at=mesh.now(), outputs={"greeting": "Hola, Ada!"}))

    def control(self, instance_id: str, order: str) -> None:
        emit, now = self.mesh.emit, self.mesh.now()
        held = self.open.setdefault(instance_id, asyncio.Event())
        if order == "pause":
            held.clear()
            emit(instance_id, e.InstancePaused(at=now, reason="by request"))
        elif order == "resume":
            held.set()
            emit(instance_id, e.InstanceResumed(at=now))
        else:
            emit(instance_id, e.InstanceCancelled(at=now, reason="by request"))
            held.set()

    async def stop(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def browse(port: int) -> None:
    mesh = build(datetime.now(UTC))
    Player(mesh, task_seconds=1.5)
    app = WebApplication(WebSettings(port=port), mesh, clock=SystemClock(), random=Random())
    sys.stdout.write(f"http://127.0.0.1:{await app.start()}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(browse(parser.parse_args().port))
