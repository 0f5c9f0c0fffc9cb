import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from agents.error_handler import ErrorHandler
from amp.capability import Incoming
from amp.errors import AmpError, InvalidParameters
from amp.subscriptions import Event
from orchestration import contracts, events
from orchestration.contracts import ErrorInfo
from orchestration.status import RecoveryAction, Severity
from tests.agent_bench import START, Bench, FakeLog, offer, running_agent, until


class Others:
    """What the other agents would do: they note their orders and answer."""

    def __init__(self) -> None:
        self.log = FakeLog()
        self.orders: list[tuple[str, Any]] = []
        self.alerts: list[contracts.AlertCreateRequest] = []
        self.alerted = asyncio.Event()
        self.acknowledged = False
        self.refuses = False
        self.history: list[dict[str, Any]] = []

    def offers(self) -> list[Any]:
        controls = (
            contracts.TASK_RETRY,
            contracts.TASK_SKIP,
            contracts.WORKFLOW_PAUSE,
            contracts.WORKFLOW_STOP,
            contracts.STATE_UPDATE,
        )
        return [
            offer(contracts.LOG_READ, self.log.read),
            offer(contracts.ALERT_CREATE, self.create_alert),
            offer(contracts.ALERT_LIST, self.list_alerts),
            offer(contracts.STATE_GET, self.get_state),
            offer(contracts.TASK_CUSTOM, self.stand_in),
            *(offer(each, self.note(each.id)) for each in controls),
        ]

    def note(self, capability: str) -> Any:
        async def noted(incoming: Incoming) -> dict[str, Any]:
            if self.refuses:
                raise AmpError("ILLEGAL_MOVE", "not now")
            self.orders.append((capability, incoming.parameters))
            return {"accepted": True}

        return noted

    async def create_alert(self, incoming: Incoming) -> contracts.AlertCreateReply:
        self.alerts.append(incoming.parameters)
        self.alerted.set()
        return contracts.AlertCreateReply(alert_id="alr_1", created=True)

    async def list_alerts(self, incoming: Incoming) -> contracts.AlertListReply:
        alert = {"id": "alr_1", "acknowledged": self.acknowledged, "resolved": False}
        return contracts.AlertListReply(alerts=[alert], total_count=1)

    async def get_state(self, incoming: Incoming) -> contracts.StateGetReply:
        return contracts.StateGetReply(state={"a": 2}, version=2, history=self.history)

    async def stand_in(self, incoming: Incoming) -> contracts.CustomTaskReply:
        return contracts.CustomTaskReply(result={"by": "hand"}, task_name=incoming.parameters.task_name)


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
async def bench(tmp_path: Path, others: Others) -> AsyncIterator[Bench]:
    async with running_agent(ErrorHandler, tmp_path, *others.offers()) as running:
        yield running


def question(code: str, *, attempt: int = 1, task_id: str = "pay", **on_error: Any) -> dict[str, Any]:
    """Return what the engine asks about a task that failed for good."""
    return {
        "error": {"code": code, "message": "it failed", "details": {}},
        "context": {
            "workflow_instance_id": "ins_1",
            "workflow_id": "flow",
            "task_id": task_id,
            "attempt": attempt,
            "on_error": {"action": "fail", "fallback": "", **on_error},
        },
        "auto_recover": False,
    }


def stranger(code: str, **more: Any) -> dict[str, Any]:
    return {
        "error": {"code": code, "message": "it failed"},
        "context": {"workflow_instance_id": "ins_1", "task_id": "pay"},
        **more,
    }


# --- questions of the engine -----------------------------------------------------------------------------


async def test_default_is_to_give_up_with_true_severity(bench: Bench, others: Others) -> None:
    reply = await bench.ask("error-handle", question("TIMEOUT"))
    assert reply["recovery_action"] == "abort"
    assert reply["handled"] is False
    assert reply["severity"] == "high"
    assert reply["recommendations"]
    assert reply["error_id"].startswith("err_")
    assert others.orders == []


async def test_question_has_no_effect_beyond_the_answer(bench: Bench, others: Others) -> None:
    reply = await bench.ask("error-handle", question("DISK_FULL", action="escalate"))
    assert (reply["recovery_action"], reply["escalated"]) == ("escalate", True)
    assert (others.orders, others.alerts) == ([], [])


async def test_same_question_gets_the_same_answer_once(bench: Bench) -> None:
    asked = question("TIMEOUT", action="retry")
    first = await bench.ask("error-handle", asked)
    assert await bench.ask("error-handle", asked) == first
    other = await bench.ask("error-handle", question("TIMEOUT", attempt=2, action="retry"))
    assert other["error_id"] != first["error_id"]


async def test_retries_end_with_the_budget(bench: Bench) -> None:
    actions = [
        (await bench.ask("error-handle", question("TIMEOUT", attempt=each, action="retry")))[
            "recovery_action"
        ]
        for each in range(1, 6)
    ]
    assert actions == ["retry", "retry", "retry", "abort", "abort"]


async def test_budget_counts_what_the_engine_knows(bench: Bench) -> None:
    asked = question("TIMEOUT", action="retry")
    asked["context"]["handler_retries"] = 3
    assert (await bench.ask("error-handle", asked))["recovery_action"] == "abort"


async def test_auto_uses_the_table_and_a_fallback(bench: Bench) -> None:
    table = {"INVALID_INPUT": "skip", "RATE_LIMIT_EXCEEDED": "pause", "PERMISSION_DENIED": "escalate"}
    for code, action in table.items():
        reply = await bench.ask("error-handle", question(code, task_id=code, action="auto"))
        assert reply["recovery_action"] == action
    reply = await bench.ask("error-handle", question("ODD", action="auto", fallback="by_hand"))
    assert reply["recovery_action"] == "fallback"
    assert reply["handled"] is True


# --- strangers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "capability", "action"),
    [
        ("TIMEOUT", "task-retry", "retry"),
        ("INVALID_INPUT", "task-skip", "skip"),
        ("RESOURCE_NOT_AVAILABLE", "workflow-pause", "pause"),
    ],
)
async def test_auto_recovery_gives_the_order(
    bench: Bench, others: Others, code: str, capability: str, action: str
) -> None:
    reply = await bench.ask("error-handle", stranger(code))
    assert (reply["handled"], reply["recovery_action"]) == (True, action)
    [(ordered, parameters)] = others.orders
    assert ordered == capability
    match parameters:
        case contracts.TaskRetryRequest():
            assert parameters.retry_config == {"max_retries": 3, "delay": 5.0}
        case contracts.WorkflowControlRequest():
            assert (parameters.instance_id, parameters.duration) == ("ins_1", 300.0)
        case _:
            assert parameters.task_id == "pay"


async def test_order_that_is_refused_is_escalated(bench: Bench, others: Others) -> None:
    others.refuses = True
    reply = await bench.ask("error-handle", stranger("TIMEOUT"))
    assert (reply["handled"], reply["escalated"]) == (False, True)
    assert others.alerts[0].alert_type == "error_escalation"


async def test_critical_error_is_escalated_at_once(bench: Bench, others: Others) -> None:
    reply = await bench.ask("error-handle", stranger("SECURITY_BREACH"))
    assert (reply["recovery_action"], reply["escalated"], reply["handled"]) == ("escalate", True, True)
    escalation = [alert for alert in others.alerts if alert.alert_type == "error_escalation"]
    assert escalation[0].severity == "critical"


async def test_escalation_on_demand_outweighs_the_table(bench: Bench, others: Others) -> None:
    reply = await bench.ask("error-handle", stranger("TIMEOUT", escalate_immediately=True))
    assert (reply["recovery_action"], reply["escalated"]) == ("escalate", True)
    assert others.orders == []
    assert len(others.alerts) == 1


async def test_error_without_an_instance_is_advised_only(bench: Bench, others: Others) -> None:
    reply = await bench.ask("error-handle", {"error": {"code": "TIMEOUT"}})
    assert (reply["recovery_action"], reply["handled"]) == ("retry", False)
    assert others.orders == []


async def test_errors_of_no_instance_do_not_use_up_each_others_budget(bench: Bench) -> None:
    for _ in range(6):
        reply = await bench.ask("error-handle", {"error": {"code": "TIMEOUT"}})
        assert reply["recovery_action"] == "retry"


@pytest.mark.parametrize(
    ("error", "context"),
    [
        ({}, {}),
        ({"code": 5}, {}),
        ({"code": "X"}, {"on_error": "retry"}),
        ({"code": "X"}, {"on_error": {"action": "dance"}}),
        ({"code": "X"}, {"attempt": "many"}),
        ({"code": "X", "retryable": "no"}, {}),
    ],
)
async def test_nonsense_is_refused_by_name(bench: Bench, error: Any, context: Any) -> None:
    with pytest.raises(InvalidParameters):
        await bench.ask("error-handle", {"error": error, "context": context})


# --- orders -----------------------------------------------------------------------------------------------


ABOUT = {"workflow_instance_id": "ins_1", "task_id": "pay"}


@pytest.mark.parametrize(
    ("action", "capability", "done"),
    [
        ("retry", "task-retry", "retried"),
        ("skip", "task-skip", "skipped"),
        ("pause", "workflow-pause", "paused"),
        ("abort", "workflow-stop", "abort"),
    ],
)
async def test_recover_orders_the_action(
    bench: Bench, others: Others, action: str, capability: str, done: str
) -> None:
    reply = await bench.ask("error-recover", {"recovery_action": action, "error_context": ABOUT})
    assert (reply["success"], reply["next_action"], reply["result"]["action"]) == (True, "", done)
    assert others.orders[0][0] == capability


async def test_recover_obeys_its_config(bench: Bench, others: Others) -> None:
    config = {"retry_delay": 1, "max_retries": 7}
    await bench.ask(
        "error-recover", {"recovery_action": "retry", "error_context": ABOUT, "recovery_config": config}
    )
    assert others.orders[0][1].retry_config == {"max_retries": 7, "delay": 1.0}


async def test_failed_recovery_says_what_comes_next(bench: Bench, others: Others) -> None:
    others.refuses = True
    reply = await bench.ask("error-recover", {"recovery_action": "skip", "error_context": ABOUT})
    assert (reply["success"], reply["next_action"]) == (False, "escalate")
    assert reply["result"]["error"]["code"] == "ILLEGAL_MOVE"


async def test_rollback_brings_the_version_before_back(bench: Bench, others: Others) -> None:
    asked = {"recovery_action": "rollback", "error_context": ABOUT}
    assert (await bench.ask("error-recover", asked))["success"] is False
    others.history = [{"version": 2, "state_data": {"a": 2}}, {"version": 1, "state_data": {"a": 1}}]
    reply = await bench.ask("error-recover", asked)
    assert (reply["success"], reply["result"]["restored_version"]) == (True, 1)
    assert (others.orders[-1][1].updates, others.orders[-1][1].merge_strategy) == ({"a": 1}, "replace")


async def test_fallback_asks_who_stands_in(bench: Bench) -> None:
    asked = {"recovery_action": "fallback", "error_context": ABOUT}
    with pytest.raises(InvalidParameters):
        await bench.ask("error-recover", asked)
    config = {"capability": "task-custom", "parameters": {"task_name": "by_hand"}}
    reply = await bench.ask("error-recover", {**asked, "recovery_config": config})
    assert reply["success"] is True
    assert reply["result"]["result"] == {"by": "hand"}


async def test_recover_can_escalate(bench: Bench, others: Others) -> None:
    about = {**ABOUT, "error": {"code": "TIMEOUT", "message": "late"}}
    reply = await bench.ask("error-recover", {"recovery_action": "escalate", "error_context": about})
    assert reply["result"]["escalation_id"].startswith("esc_")
    assert others.alerts[0].metadata["task_id"] == "pay"


@pytest.mark.parametrize(
    "asked",
    [
        {"recovery_action": "dance", "error_context": ABOUT},
        {"recovery_action": "retry", "error_context": {}},
        {"recovery_action": "retry", "error_context": {"workflow_instance_id": "i"}},
        {"recovery_action": "retry", "error_context": ABOUT, "recovery_config": {"typo": 1}},
        {"recovery_action": "retry", "error_context": ABOUT, "recovery_config": {"retry_delay": -1}},
    ],
)
async def test_incomplete_order_is_refused(bench: Bench, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameters):
        await bench.ask("error-recover", asked)


# --- escalation ---------------------------------------------------------------------------------------------


async def test_escalation_is_published_and_raises_an_alert(bench: Bench, others: Others) -> None:
    told: asyncio.Queue[Event] = asyncio.Queue()
    await bench.client.subscribe("error.escalated", told.put)
    asked = {"error": {"code": "TIMEOUT", "message": "late"}, "context": ABOUT, "reason": "three times"}
    reply = await bench.ask("error-escalate", asked)
    event = await asyncio.wait_for(told.get(), 5)
    assert event.data["escalation_id"] == reply["escalation_id"]
    assert (reply["escalated"], reply["severity"]) == (True, "high")
    assert others.alerts[0].severity == "error"
    assert others.alerts[0].metadata["workflow_instance_id"] == "ins_1"


async def test_unanswered_escalation_grows_to_critical(tmp_path: Path, others: Others) -> None:
    section = {"escalation_timeout": 0.01}
    async with running_agent(ErrorHandler, tmp_path, *others.offers(), error_handler=section) as bench:
        told: asyncio.Queue[Event] = asyncio.Queue()
        await bench.client.subscribe("error.escalated", told.put)
        await bench.ask("error-escalate", {"error": {"code": "ODD", "message": "?"}, "context": ABOUT})
        levels = [(await asyncio.wait_for(told.get(), 5)).data["level"] for _ in range(2)]
        assert levels == [0, 3]
        assert [alert.severity for alert in others.alerts] == ["info", "error", "critical"]


async def test_acknowledged_escalation_is_left_alone(tmp_path: Path, others: Others) -> None:
    others.acknowledged = True
    section = {"escalation_timeout": 0.01}
    async with running_agent(ErrorHandler, tmp_path, *others.offers(), error_handler=section) as bench:
        await bench.ask("error-escalate", {"error": {"code": "ODD", "message": "?"}, "context": ABOUT})
        await until(lambda: bench.agent.health()["open_escalations"] == 0)
        assert len(others.alerts) == 1


async def test_escalation_without_a_monitor_is_still_published(tmp_path: Path) -> None:
    async with running_agent(ErrorHandler, tmp_path, offer(contracts.LOG_READ, FakeLog().read)) as bench:
        told: asyncio.Queue[Event] = asyncio.Queue()
        await bench.client.subscribe("error.escalated", told.put)
        asking = asyncio.ensure_future(bench.ask("error-escalate", {"error": {"code": "ODD"}}))
        assert (await asyncio.wait_for(told.get(), 5)).data["code"] == "ODD"
        asking.cancel()


# --- the log ----------------------------------------------------------------------------------------------


def started(at: Any = START) -> events.Event:
    return events.InstanceStarted(
        at=at, workflow_id="flow", workflow_version="1", definition_hash="h", inputs={}
    )


def failed(code: str, at: Any = START, **details: Any) -> events.Event:
    return events.AttemptFailed(
        at=at, task_id="pay", attempt=1, error=ErrorInfo(code=code, message="no", details=details)
    )


async def test_history_is_restored_from_the_log_and_followed(tmp_path: Path, others: Others) -> None:
    others.log.add("ins_1", started())
    for number in range(3):
        others.log.add("ins_1", failed("TIMEOUT"))
        handled = events.RecoveryChosen(
            at=START,
            task_id="pay",
            action=RecoveryAction.RETRY,
            severity=Severity.HIGH,
            error_id=f"e{number}",
        )
        others.log.add("ins_1", handled)
    async with running_agent(ErrorHandler, tmp_path, *others.offers()) as bench:
        await until(lambda: bench.agent.health()["log_offset"] == 7)
        reply = await bench.ask("error-handle", question("TIMEOUT", attempt=9, action="retry"))
        assert reply["recovery_action"] == "abort"
        others.log.add("ins_2", failed("ODD"))
        await bench.client.publish("log.advanced", {"offset": 8})
        await until(lambda: bench.agent.health()["log_offset"] == 8)
        analysis = await bench.ask("error-analyze", {})
        summary = analysis["error_summary"]
        assert summary["by_code"] == {"TIMEOUT": 3, "ODD": 1}
        assert summary["by_workflow"] == {"flow": 3}
        assert summary["recovery_actions"] == {"retry": 3, "abort": 1}
        repeated = [each for each in analysis["patterns"] if each["name"] == "repeated_failure"]
        assert repeated[0]["count"] == 3
        assert analysis["recommendations"]


async def test_own_decision_is_not_counted_again_when_the_log_tells_of_it(
    bench: Bench, others: Others
) -> None:
    reply = await bench.ask("error-handle", question("TIMEOUT", action="retry"))
    others.log.add(
        "ins_1",
        events.RecoveryChosen(
            at=START,
            task_id="pay",
            action=RecoveryAction.RETRY,
            severity=Severity.HIGH,
            error_id=reply["error_id"],
        ),
    )
    await bench.client.publish("log.advanced", {"offset": 1})
    await until(lambda: bench.agent.health()["log_offset"] == 1)
    assert len(bench.agent.history.past("ins_1")) == 1


async def test_analysis_looks_at_window_codes_and_workflows(bench: Bench, others: Others) -> None:
    others.log.add("ins_1", started())
    others.log.add("ins_1", failed("OLD", at=START - timedelta(hours=2)))
    others.log.add("ins_1", failed("NEW"))
    failure = events.InstanceFailed(at=START, error=ErrorInfo(code="TIMEOUT_EXCEEDED", message="late"))
    others.log.add("ins_1", failure)
    await bench.client.publish("log.advanced", {"offset": 4})
    await until(lambda: bench.agent.health()["log_offset"] == 4)

    async def codes(**asked: Any) -> set[str]:
        return set((await bench.ask("error-analyze", asked))["error_summary"]["by_code"])

    assert await codes() == {"OLD", "NEW", "TIMEOUT_EXCEEDED"}
    assert await codes(time_window_hours=1) == {"NEW", "TIMEOUT_EXCEEDED"}
    assert await codes(error_types=["NEW"]) == {"NEW"}
    assert await codes(workflow_ids=["other"]) == set()
    for hours in (0, -1, 1e9):
        with pytest.raises(InvalidParameters):
            await codes(time_window_hours=hours)


async def test_unreadable_event_is_passed_over(bench: Bench, others: Others) -> None:
    record = others.log.add("ins_1", failed("X"))
    others.log.records[0] = contracts.EventRecord(
        offset=1, instance_id="ins_1", seq=1, type=record.type, at=START, data=b'{"error": 5}'
    )
    await bench.client.publish("log.advanced", {"offset": 1})
    await until(lambda: bench.agent.health()["log_offset"] == 1)
    assert "amp_log_events_unreadable_total 1.0" in generate_latest(bench.agent.metrics).decode()


async def test_too_many_errors_raise_one_alert(bench: Bench, others: Others) -> None:
    for _ in range(5):
        others.log.add("ins_1", failed("TIMEOUT"))
    await bench.client.publish("log.advanced", {"offset": 5})
    await asyncio.wait_for(others.alerted.wait(), 5)
    await until(lambda: bench.agent.health()["log_offset"] == 5)
    [alert] = others.alerts
    assert (alert.alert_type, alert.severity) == ("error_occurred", "error")
    assert alert.metadata["dedupe_key"] == "high"


async def test_patterns_tell_how_often_they_were_seen(bench: Bench, others: Others) -> None:
    others.log.add("ins_1", failed("TIMEOUT"))
    await bench.client.publish("log.advanced", {"offset": 1})
    await until(lambda: bench.agent.health()["log_offset"] == 1)
    patterns = {each["name"]: each for each in (await bench.ask("error-patterns", {}))["patterns"]}
    assert set(patterns) == {"timeout", "network", "validation"}
    assert (patterns["timeout"]["count"], patterns["network"]["count"]) == (1, 0)
    assert patterns["timeout"]["last_seen"] == START.isoformat()


# --- strategy and breakers ------------------------------------------------------------------------------------


async def test_strategy_is_a_preview(bench: Bench) -> None:
    reply = await bench.ask("recovery-strategy", {"error_code": "NETWORK_ERROR", "context": ABOUT})
    assert (reply["recovery_action"], reply["severity"], reply["delay_seconds"]) == ("retry", "high", 10.0)
    assert bench.agent.history.past("ins_1") == []


async def test_breaker_goes_round(bench: Bench) -> None:
    async def use(operation: str, **config: Any) -> dict[str, Any]:
        asked = {"operation": operation, "resource_id": "api", "config": config}
        return await bench.ask("circuit-breaker", asked)

    assert (await use("status"))["state"] == "closed"
    for _ in range(5):
        state = await use("check", outcome="failure")
    assert (state["state"], state["failure_count"], state["allowed"]) == ("open", 5, False)
    assert state["last_failure"] == START.isoformat()
    bench.clock.advance(seconds=300)
    assert (await use("status"))["state"] == "half_open"
    for _ in range(3):
        assert (await use("check")).get("allowed", True) is True
    assert (await use("check"))["allowed"] is False
    for _ in range(3):
        state = await use("check", outcome="success")
    assert (state["state"], state["failure_count"]) == ("closed", 0)
    tripped = await use("trip", timeout=10)
    assert tripped["state"] == "open"
    assert (await use("reset"))["state"] == "closed"


@pytest.mark.parametrize("config", [{"typo": 1}, {"timeout": 0}, {"outcome": "maybe"}])
async def test_breaker_config_is_checked(bench: Bench, config: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameters):
        await bench.ask("circuit-breaker", {"operation": "check", "resource_id": "api", "config": config})
    with pytest.raises(InvalidParameters):
        await bench.ask("circuit-breaker", {"operation": "check", "resource_id": ""})


async def test_errors_about_a_resource_open_its_breaker(bench: Bench) -> None:
    for _ in range(5):
        error = {"code": "ODD", "message": "?", "details": {"resource_id": "api"}}
        await bench.ask("error-handle", {"error": error})
    reply = await bench.ask("circuit-breaker", {"operation": "status", "resource_id": "api"})
    assert reply["state"] == "open"
    assert "amp_breakers_open 1.0" in generate_latest(bench.agent.metrics).decode()
