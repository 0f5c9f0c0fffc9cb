import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from prometheus_client import generate_latest

from agents.monitor_agent import MonitorAgent
from agents.monitor_agent.store import MonitorStore, StoreTooNew
from amp.capability import Incoming
from amp.errors import AmpError, InvalidParameters
from amp.subscriptions import Event
from orchestration import contracts, events
from orchestration.contracts import ErrorInfo
from orchestration.tallies import fold, total
from tests.agent_bench import START, Bench, FakeLog, ManualClock, offer, peer, running_agent, until
from tests.unit.policies.test_tallies import histories, records

ERROR = ErrorInfo(code="TIMEOUT", message="late")


async def definitions(incoming: Incoming) -> contracts.DefinitionListReply:
    known = [
        contracts.DefinitionRecord(workflow_id=name, version="1", name=name, hash="h", content={})
        for name in ("flow", "unused")
    ]
    return contracts.DefinitionListReply(definitions=known)


async def instance(incoming: Incoming) -> contracts.InstanceGetReply:
    return contracts.InstanceGetReply(row=None)


def state_manager(log: FakeLog) -> list[Any]:
    """Return what the monitor asks of a state manager."""
    return [
        offer(contracts.LOG_READ, log.read),
        offer(contracts.DEFINITION_LIST, definitions),
        offer(contracts.INSTANCE_GET, instance),
    ]


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
async def bench(tmp_path: Path, log: FakeLog) -> AsyncIterator[Bench]:
    async with running_agent(MonitorAgent, tmp_path, *state_manager(log)) as running:
        yield running


def at(seconds: float) -> Any:
    return START + timedelta(seconds=seconds)


def run(
    log: FakeLog,
    name: str,
    *,
    workflow_id: str = "flow",
    seconds: float = 10,
    begin: float = 0,
    ends: str = "ok",
) -> None:
    """Add the events of one execution with one task."""
    started = events.InstanceStarted(
        at=at(begin), workflow_id=workflow_id, workflow_version="1", definition_hash="h", inputs={}
    )
    log.add(name, started)
    log.add(name, events.InstanceAdmitted(at=at(begin)))
    log.add(name, events.TaskStarted(at=at(begin), task_id="pay", attempt=1, token=f"{name}/pay/1"))
    if ends == "open":
        return
    end = at(begin + seconds)
    if ends == "ok":
        log.add(name, events.TaskCompleted(at=end, task_id="pay", attempt=1))
        log.add(name, events.InstanceCompleted(at=end))
    else:
        log.add(name, events.AttemptFailed(at=end, task_id="pay", attempt=1, error=ERROR))
        log.add(name, events.TaskFailed(at=end, task_id="pay", error=ERROR))
        log.add(name, events.InstanceFailed(at=end, error=ERROR, task_id="pay"))


async def caught_up(bench: Bench, log: FakeLog) -> None:
    offset = len(log.records)
    await bench.client.publish("log.advanced", {"offset": offset})
    await until(lambda: bench.agent.health()["log_offset"] == offset)


# --- counting -----------------------------------------------------------------------------------------------


async def test_metrics_come_from_the_log(bench: Bench, log: FakeLog) -> None:
    run(log, "a")
    run(log, "b", seconds=20, ends="bad")
    run(log, "c", ends="open")
    await caught_up(bench, log)
    bench.clock.advance(minutes=1)
    reply = await bench.ask("metrics-get", {"metric_type": "workflow", "workflow_id": "flow"})
    flow = reply["metrics"]["flow"]
    assert (flow["total_executions"], flow["successful_executions"], flow["failed_executions"]) == (2, 1, 1)
    assert (flow["avg_execution_time_seconds"], flow["min_execution_time_seconds"]) == (15, 10)
    assert flow["most_common_failures"] == [{"error": "TIMEOUT", "count": 1}]
    assert reply["timestamp"] == bench.clock.now().isoformat()
    tasks = (await bench.ask("metrics-get", {"metric_type": "task", "workflow_id": "flow"}))["metrics"]
    assert (tasks["pay"]["attempts"], tasks["pay"]["failed_executions"]) == (3, 1)
    every = (await bench.ask("metrics-get", {"metric_type": "task"}))["metrics"]
    assert list(every) == ["flow/pay"]
    system = (await bench.ask("metrics-get", {"metric_type": "system"}))["metrics"]
    assert (system["active_workflows"], system["running_tasks"], system["tasks_completed"]) == (1, 1, 1)
    assert system["throughput_per_hour"] == 2
    assert 0 <= system["memory_percent"] <= 100


async def test_only_the_range_counts(bench: Bench, log: FakeLog) -> None:
    run(log, "a")
    await caught_up(bench, log)
    bench.clock.advance(hours=2)
    asked = {"metric_type": "workflow", "workflow_id": "flow"}
    assert (await bench.ask("metrics-get", asked))["metrics"]["flow"]["total_executions"] == 0
    longer = await bench.ask("metrics-get", {**asked, "time_range": "3h"})
    assert longer["metrics"]["flow"]["total_executions"] == 1


@pytest.mark.parametrize("time_range", ["", "1x", "-1h", "forever"])
async def test_range_that_is_none_is_refused(bench: Bench, time_range: str) -> None:
    for capability, more in (
        ("metrics-get", {"metric_type": "system"}),
        ("metrics-aggregate", {}),
        ("performance-report", {"report_type": "summary"}),
    ):
        with pytest.raises(InvalidParameters):
            await bench.ask(capability, {"time_range": time_range, **more})


async def test_aggregate_counts_in_steps(bench: Bench, log: FakeLog) -> None:
    run(log, "a")
    run(log, "b", begin=600, ends="bad")
    await caught_up(bench, log)
    bench.clock.advance(minutes=30)
    reply = await bench.ask("metrics-aggregate", {"time_range": "1h", "step_seconds": 600})
    assert reply["step_seconds"] == 600
    assert sum(point["value"] for point in reply["points"]) == 2
    assert sum(point["by_status"]["failed"] for point in reply["points"]) == 1
    durations = await bench.ask("metrics-aggregate", {"metric": "duration", "time_range": "1h"})
    assert 10 in [point["value"] for point in durations["points"]]
    tasks = await bench.ask("metrics-aggregate", {"metric": "tasks", "time_range": "1h"})
    assert sum(point["value"] for point in tasks["points"]) == 2
    with pytest.raises(InvalidParameters, match="larger steps"):
        await bench.ask("metrics-aggregate", {"time_range": "7d", "step_seconds": 1})


async def test_restart_neither_loses_nor_repeats_a_count(tmp_path: Path, log: FakeLog) -> None:
    clock = ManualClock()
    run(log, "a")
    run(log, "b", ends="open")
    for _ in range(2):
        async with running_agent(MonitorAgent, tmp_path, *state_manager(log), clock=clock) as bench:
            await until(lambda: bench.agent.health()["log_offset"] == len(log.records))
    log.add("b", events.TaskCompleted(at=at(5), task_id="pay", attempt=1))
    log.add("b", events.InstanceCompleted(at=at(5)))
    async with running_agent(MonitorAgent, tmp_path, *state_manager(log), clock=clock) as bench:
        await until(lambda: bench.agent.health()["log_offset"] == len(log.records))
        clock.advance(minutes=1)
        flow = (await bench.ask("metrics-get", {"metric_type": "workflow"}))["metrics"]["flow"]
        assert (flow["total_executions"], flow["started_executions"]) == (2, 2)
        assert flow["min_execution_time_seconds"] == 5
        assert bench.agent.health()["active_workflows"] == 0


async def test_another_log_is_counted_anew(bench: Bench, log: FakeLog) -> None:
    for name in ("a", "b", "c"):
        run(log, name)
    await caught_up(bench, log)
    log.records.clear()
    log.newest = 0
    run(log, "new", workflow_id="other")
    await bench.client.publish("log.advanced", {"offset": len(log.records)})
    await until(lambda: bench.agent.health()["log_offset"] == len(log.records))
    bench.clock.advance(minutes=1)
    found = (await bench.ask("metrics-get", {"metric_type": "workflow"}))["metrics"]
    assert list(found) == ["other"]


async def test_late_hint_does_not_count_anew(bench: Bench, log: FakeLog) -> None:
    run(log, "a")
    await caught_up(bench, log)
    reads = log.reads
    await bench.client.publish("log.advanced", {"offset": 1})
    await until(lambda: log.reads > reads + 1)
    bench.clock.advance(minutes=1)
    flow = (await bench.ask("metrics-get", {"metric_type": "workflow"}))["metrics"]["flow"]
    assert flow["total_executions"] == 1


async def test_purged_end_of_the_log_is_still_the_same_log(bench: Bench, log: FakeLog) -> None:
    run(log, "a")
    await caught_up(bench, log)
    log.records.clear()
    reads = log.reads
    await bench.client.publish("log.advanced", {"offset": 1})
    await until(lambda: log.reads > reads + 1)
    run(log, "b")
    await bench.client.publish("log.advanced", {"offset": log.newest})
    await until(lambda: bench.agent.health()["log_offset"] == log.newest)
    bench.clock.advance(minutes=1)
    flow = (await bench.ask("metrics-get", {"metric_type": "workflow"}))["metrics"]["flow"]
    assert flow["total_executions"] == 2


async def test_retention_forgets_what_is_too_old(bench: Bench, log: FakeLog) -> None:
    run(log, "a")
    await caught_up(bench, log)
    await bench.agent.store.forget(before=at(3600))
    assert await bench.agent.store.workflows(0) == {}
    assert await bench.agent.store.recent_executions(10) == []


async def test_unreadable_events_are_passed_over(bench: Bench, log: FakeLog) -> None:
    record = log.add("a", events.InstanceAdmitted(at=at(0)))
    broken = contracts.EventRecord(
        offset=1, instance_id="a", seq=1, type=record.type, at=at(0), data=b'{"task_id": 5}'
    )
    log.records[0] = broken
    run(log, "b")
    await caught_up(bench, log)
    text = generate_latest(bench.agent.metrics).decode()
    assert "amp_log_events_unreadable_total 1.0" in text
    assert 'amp_workflow_executions_total{status="completed"} 1.0' in text


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories())
def test_stored_totals_equal_those_counted_from_the_events(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, events.Event]]
) -> None:
    log = records(*history)
    counted = Counter(record.type for record in log)

    async def check() -> None:
        store = MonitorStore(str(tmp_path_factory.mktemp("store") / "monitor.db"))
        await store.open()
        instances = await store.open_instances()
        for first in range(0, len(log), 7):
            await store.save(fold(instances, log[first : first + 7]), cursor=min(first + 7, len(log)))
        await store.close()
        await store.open()
        assert await store.cursor() == len(log)
        assert await store.open_instances() == instances
        whole = total(part.tally for part in (await store.workflows(0)).values())
        tasks = total(part.tally for part in (await store.tasks(0)).values())
        by_bucket = total(tally for _, tally in await store.buckets(0))
        await store.close()
        assert whole.started == by_bucket.started == counted["workflow.started"]
        assert whole.completed == by_bucket.completed == counted["workflow.completed"]
        assert whole.failed == by_bucket.failed == counted["workflow.failed"]
        assert tasks.completed == counted["task.completed"]
        assert tasks.errors == counted["task.attempt_failed"]
        assert (whole.seconds_min, whole.seconds_max) == (by_bucket.seconds_min, by_bucket.seconds_max)

    asyncio.run(check())


async def test_store_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    store = MonitorStore(str(tmp_path / "monitor.db"))
    await store.open()
    async with store._transaction() as db:
        await db.execute("UPDATE meta SET value = 99 WHERE key = 'schema_version'")
    await store.close()
    await store.close()
    with pytest.raises(StoreTooNew, match="99"):
        await store.open()


async def test_failed_save_changes_nothing(tmp_path: Path, log: FakeLog) -> None:
    store = MonitorStore(str(tmp_path / "monitor.db"))
    await store.open()
    run(log, "a")
    changes = fold({}, log.records)
    with pytest.raises(OverflowError):
        await store.save(changes, cursor=2**80)
    assert await store.cursor() == 0
    assert await store.workflows(0) == {}
    await store.save(changes, cursor=5)
    assert (await store.workflows(0))["flow"].tally.completed == 1
    await store.close()


async def test_damaged_store_is_put_aside_and_made_again(tmp_path: Path, log: FakeLog) -> None:
    (tmp_path / "monitor.db").write_bytes(b"this is no database" * 1000)
    run(log, "a")
    async with running_agent(MonitorAgent, tmp_path, *state_manager(log)) as bench:
        await until(lambda: bench.agent.health()["log_offset"] == len(log.records))
        bench.clock.advance(minutes=1)
        flow = (await bench.ask("metrics-get", {"metric_type": "workflow"}))["metrics"]["flow"]
        assert flow["total_executions"] == 1
    assert (tmp_path / "monitor.db.damaged").exists()


class FullDisk(MonitorStore):
    """A store whose disk is full for a while."""

    full = True

    async def save(self, *arguments: Any, **more: Any) -> None:
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")
        await super().save(*arguments, **more)


async def test_full_disk_is_survived_and_nothing_counts_twice(
    tmp_path: Path, log: FakeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.monitor_agent.agent.MonitorStore", FullDisk)
    monkeypatch.setattr("agents.log_reader.RETRY_SECONDS", 0.01)
    run(log, "a", ends="bad")
    async with running_agent(MonitorAgent, tmp_path, *state_manager(log)) as bench:
        await until(lambda: log.reads > 3)
        assert bench.agent.health()["active_workflows"] == 0
        bench.agent.store.full = False
        await until(lambda: bench.agent.health()["log_offset"] == len(log.records))
        bench.clock.advance(minutes=1)
        flow = (await bench.ask("metrics-get", {"metric_type": "workflow"}))["metrics"]["flow"]
        assert (flow["started_executions"], flow["failed_executions"]) == (1, 1)
        failures = [each for each in bench.agent.alerts.open_alerts if each.type == "workflow_failure"]
        assert [each.count for each in failures] == [1]


# --- alerts -------------------------------------------------------------------------------------------------


async def test_failed_workflow_raises_one_alert_that_is_counted(bench: Bench, log: FakeLog) -> None:
    told: asyncio.Queue[Event] = asyncio.Queue()
    await bench.client.subscribe("alert.changed", told.put)
    run(log, "a", ends="bad")
    run(log, "b", ends="bad")
    await caught_up(bench, log)
    reply = await bench.ask("alert-list", {})
    [alert] = reply["alerts"]
    assert (alert["type"], alert["severity"], alert["count"]) == ("workflow_failure", "error", 2)
    assert (await asyncio.wait_for(told.get(), 5)).data["alert"]["id"] == alert["id"]


async def test_alerts_survive_a_restart_and_are_not_raised_again(tmp_path: Path, log: FakeLog) -> None:
    run(log, "a", ends="bad")
    for _ in range(2):
        async with running_agent(MonitorAgent, tmp_path, *state_manager(log)) as bench:
            await until(lambda: bench.agent.health()["log_offset"] == len(log.records))
            alerts = (await bench.ask("alert-list", {}))["alerts"]
            failures = [alert for alert in alerts if alert["type"] == "workflow_failure"]
            assert [alert["count"] for alert in failures] == [1]


async def test_alert_is_acknowledged_and_resolved(bench: Bench) -> None:
    asked = {"alert_type": "sla", "severity": "warning", "title": "Late", "description": "Too late"}
    created = await bench.ask("alert-create", asked)
    assert created["created"] is True
    again = await bench.ask("alert-create", asked)
    assert again == {"alert_id": created["alert_id"], "created": False}
    seen = await bench.ask("alert-update", {"alert_id": created["alert_id"], "acknowledged": True})
    assert (seen["updated"], seen["alert"]["acknowledged"], seen["alert"]["count"]) == (True, True, 2)
    over = await bench.ask("alert-update", {"alert_id": created["alert_id"], "resolved": True})
    assert over["alert"]["resolved"] is True
    assert (await bench.ask("alert-update", {"alert_id": created["alert_id"], "resolved": True}))[
        "updated"
    ] is False
    assert (await bench.ask("alert-list", {}))["alerts"] == []
    listed = await bench.ask("alert-list", {"include_resolved": True, "severity": "warning"})
    assert listed["total_count"] == 1
    assert (await bench.ask("alert-list", {"include_resolved": True, "severity": "error"}))[
        "total_count"
    ] == 0
    assert (await bench.ask("alert-create", asked))["created"] is True


@pytest.mark.parametrize(
    "wrong",
    [{"severity": "bad"}, {"title": ""}, {"alert_type": ""}, {"metadata": {"x": "y" * 20_000}}],
)
async def test_wrong_alerts_are_refused(bench: Bench, wrong: dict[str, Any]) -> None:
    asked = {"alert_type": "sla", "severity": "warning", "title": "Late", "description": "", **wrong}
    with pytest.raises(InvalidParameters):
        await bench.ask("alert-create", asked)
    with pytest.raises(InvalidParameters):
        await bench.ask("alert-list", {"severity": "bad"})
    with pytest.raises(AmpError, match="no alert"):
        await bench.ask("alert-update", {"alert_id": "nobody", "resolved": True})


async def test_alerts_are_bounded(tmp_path: Path, log: FakeLog) -> None:
    async with running_agent(
        MonitorAgent, tmp_path, *state_manager(log), monitor_agent={"max_alerts": 3}
    ) as bench:
        for number in range(5):
            bench.clock.advance(seconds=1)
            asked = {"alert_type": "sla", "severity": "info", "title": str(number), "description": ""}
            await bench.ask("alert-create", asked)
        titles = [alert["title"] for alert in (await bench.ask("alert-list", {}))["alerts"]]
        assert titles == ["4", "3", "2"]
        assert len(await bench.agent.store.alerts()) == 3


async def test_rules_fire_and_are_over(bench: Bench, log: FakeLog) -> None:
    run(log, "a", ends="bad")
    run(log, "slow", workflow_id="slow", seconds=400)
    await caught_up(bench, log)
    bench.clock.advance(minutes=10)
    await bench.agent.evaluate_rules()
    await bench.agent.evaluate_rules()
    alerts = {alert["type"]: alert for alert in (await bench.ask("alert-list", {}))["alerts"]}
    assert set(alerts) == {"workflow_failure", "high_failure_rate", "slow_execution"}
    assert alerts["high_failure_rate"]["metadata"]["workflow_id"] == "flow"
    assert (alerts["high_failure_rate"]["count"], alerts["slow_execution"]["severity"]) == (1, "info")
    bench.clock.advance(hours=2)
    await bench.agent.evaluate_rules()
    assert [alert["type"] for alert in (await bench.ask("alert-list", {}))["alerts"]] == ["workflow_failure"]


async def test_rules_of_the_settings_are_obeyed(tmp_path: Path, log: FakeLog) -> None:
    rules = [
        {"alert_type": "busy", "title": "Busy", "condition": "active_workflows > 0", "scope": "system"},
        {"alert_type": "broken", "title": "Broken", "condition": "nobody > 0", "severity": "error"},
    ]
    section = {"alert_rules": rules}
    run(log, "a", ends="open")
    async with running_agent(MonitorAgent, tmp_path, *state_manager(log), monitor_agent=section) as bench:
        await until(lambda: bench.agent.health()["log_offset"] == len(log.records))
        await bench.agent.evaluate_rules()
        assert [alert["type"] for alert in (await bench.ask("alert-list", {}))["alerts"]] == ["busy"]


async def test_escalated_errors_of_the_log_raise_an_alert(bench: Bench, log: FakeLog) -> None:
    run(log, "a", ends="open")
    log.add(
        "a",
        events.RecoveryChosen(
            at=at(1), task_id="pay", action="escalate", severity="critical", escalated=True
        ),
    )
    await caught_up(bench, log)
    [alert] = (await bench.ask("alert-list", {}))["alerts"]
    assert (alert["type"], alert["severity"]) == ("error_escalation", "critical")


async def test_an_unknown_outcome_is_an_alert_until_somebody_decided(tmp_path: Path, log: FakeLog) -> None:
    def lost(name: str) -> None:
        run(log, name, ends="open")
        log.add(name, events.AttemptLost(at=at(1), task_id="pay", attempt=1))
        log.add(name, events.TaskOutcomeUnknown(at=at(1), task_id="pay", attempt=1, token="t"))

    async with running_agent(MonitorAgent, tmp_path, *state_manager(log)) as bench:
        lost("a")
        lost("b")
        lost("c")
        log.add("c", events.TaskReconciling(at=at(1), task_id="pay", reconcile="look"))
        await caught_up(bench, log)
        alerts = (await bench.ask("alert-list", {}))["alerts"]
        assert {alert["metadata"]["workflow_instance_id"] for alert in alerts} == {"a", "b"}
        log.add("a", events.TaskCompleted(at=at(2), task_id="pay", attempt=1))
        await caught_up(bench, log)
        [alert] = (await bench.ask("alert-list", {}))["alerts"]
        assert (alert["type"], alert["count"]) == ("outcome_unknown", 1)
    async with running_agent(MonitorAgent, tmp_path, *state_manager(log)) as bench:
        await bench.agent.evaluate_rules()
        [alert] = (await bench.ask("alert-list", {}))["alerts"]
        assert (alert["metadata"]["workflow_instance_id"], alert["count"]) == ("b", 1)
        log.add("b", events.InstanceCancelled(at=at(3)))
        await caught_up(bench, log)
        assert (await bench.ask("alert-list", {}))["alerts"] == []


# --- agents ---------------------------------------------------------------------------------------------------


async def test_health_check_really_asks(bench: Bench) -> None:
    await bench.client.request("health-check", {})
    reply = await bench.ask("health-check", {})
    assert reply["agents"]["tester"]["status"] == "healthy"
    assert reply["agents"]["tester"]["role"] == "state-manager"
    assert reply["agents"]["tester"]["response_time_ms"] is not None
    assert reply["agents"]["monitor-agent"]["status"] == "healthy"
    assert reply["status"] == "unhealthy"
    assert "workflow-engine" in reply["missing_roles"]
    assert set(reply["system"]) == {"cpu_percent", "memory_percent", "disk_percent", "network_percent"}
    one = await bench.ask("health-check", {"agent_id": "tester"})
    assert (one["status"], list(one["agents"])) == ("healthy", ["tester"])
    nobody = await bench.ask("health-check", {"agent_id": "nobody"})
    assert (nobody["status"], nobody["agents"]["nobody"]["status"]) == ("unhealthy", "missing")


async def refuse(incoming: Incoming) -> None:
    raise AmpError("WORKFLOW_NOT_FOUND", "no")


async def never(incoming: Incoming) -> None:
    await asyncio.Event().wait()


async def test_agents_are_well_silent_or_gone(bench: Bench) -> None:
    engine = peer(bench.network, "engine", offer(contracts.WORKFLOW_LIST, refuse))
    stranger = peer(bench.network, "stranger")
    await engine.start(wait_seconds=5)
    await stranger.start(wait_seconds=5)
    await bench.agent.check_agents()
    statuses = {key: each.status for key, each in bench.agent.roster.agents.items()}
    assert (statuses["engine"], statuses["stranger"]) == ("healthy", "present")
    metrics = (await bench.ask("metrics-get", {"metric_type": "agent", "agent_id": "engine"}))["metrics"]
    assert list(metrics) == ["engine"]
    assert metrics["engine"]["event_data"]["event_type"] == "probe.refused"
    await stranger.stop()
    await until(lambda: bench.agent.roster.agents["stranger"].status == "left")
    await engine.stop()
    await bench.agent.check_agents()
    assert bench.agent.roster.unhealthy() == []


async def test_lost_agent_is_an_alert_after_a_while_until_it_is_back(bench: Bench) -> None:
    roster = bench.agent.roster
    engine = {"agent_id": "engine", "session_id": "s1", "capabilities": ["workflow-list"]}
    roster.joined(engine)
    roster.left({**engine, "session_id": "older", "reason": "disconnected"})
    assert roster.agents["engine"].status == "present"
    roster.left({**engine, "reason": "disconnected"})
    assert roster.agents["engine"].status == "lost"
    await bench.agent.check_agents()
    assert (await bench.ask("alert-list", {}))["alerts"] == []
    bench.clock.advance(minutes=5)
    await bench.agent.check_agents()
    await bench.agent.check_agents()
    [alert] = (await bench.ask("alert-list", {}))["alerts"]
    assert (alert["type"], alert["severity"], alert["count"]) == ("agent_unhealthy", "warning", 1)
    roster.joined({"agent_id": "engine-2", "session_id": "s2", "capabilities": ["workflow-list"]})
    await bench.agent.check_agents()
    assert (await bench.ask("alert-list", {}))["total_count"] in (0, 1)
    roster.joined({**engine, "session_id": "s3"})
    assert roster.unhealthy() == []


async def test_silent_agent_is_unresponsive(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.monitor_agent.roster.PROBE_TIMEOUT_SECONDS", 0.05)
    engine = peer(bench.network, "engine", offer(contracts.WORKFLOW_LIST, never))
    await engine.start(wait_seconds=5)
    try:
        await bench.agent.check_agents()
        assert bench.agent.roster.agents["engine"].status == "unresponsive"
        assert bench.agent.roster.agents["engine"].silent_probes == 1
    finally:
        await engine.stop(drain_seconds=0)


async def test_answer_to_a_probe_does_not_bring_back_who_left_meanwhile(bench: Bench) -> None:
    roster = bench.agent.roster

    async def leave(incoming: Incoming) -> contracts.WorkflowList:
        gone = roster.agents["engine"]
        roster.left({"agent_id": "engine", "session_id": gone.session_id, "reason": "deregistered"})
        return contracts.WorkflowList(workflows={})

    engine = peer(bench.network, "engine", offer(contracts.WORKFLOW_LIST, leave))
    await engine.start(wait_seconds=5)
    await bench.agent.check_agents()
    assert roster.agents["engine"].status == "left"
    await engine.stop()


async def test_a_rejoined_agent_of_another_role_does_not_replace(bench: Bench) -> None:
    roster = bench.agent.roster
    lost = {"agent_id": "a", "session_id": "1", "capabilities": ["workflow-list"]}
    roster.joined(lost)
    roster.left({**lost, "reason": "disconnected"})
    bench.clock.advance(minutes=6)
    assert len(roster.unhealthy()) == 1
    roster.joined({"agent_id": "b", "session_id": "2", "capabilities": ["workflow-list"]})
    assert roster.unhealthy() == []


# --- reports --------------------------------------------------------------------------------------------------


async def test_reports_have_their_fields(bench: Bench, log: FakeLog) -> None:
    run(log, "a")
    run(log, "b", ends="bad")
    run(log, "c", workflow_id="other", ends="open")
    await caught_up(bench, log)
    bench.clock.advance(minutes=1)

    async def report(**asked: Any) -> dict[str, Any]:
        reply = await bench.ask("performance-report", asked)
        assert reply["generated_at"] == bench.clock.now().isoformat()
        return reply["report"]

    summary = await report(report_type="summary")
    assert (summary["total_executions"], summary["success_rate"], summary["active_workflows"]) == (2, 50, 1)
    assert summary["recent_alerts"] == 1
    other = await report(report_type="summary", workflow_ids=["other"])
    assert (other["total_executions"], other["active_workflows"], other["success_rate"]) == (0, 1, 100)
    detailed = await report(report_type="detailed", include_predictions=True)
    assert {"workflow_metrics", "task_metrics", "agent_health", "system_metrics", "alerts"} <= set(detailed)
    assert detailed["task_metrics"]["flow/pay"]["total_executions"] == 2
    assert "predictions" in detailed
    few = await report(report_type="detailed", workflow_ids=["nobody"])
    assert (few["workflow_metrics"], few["task_metrics"]) == ({}, {})
    trends = await report(report_type="trends", workflow_ids=["flow"])
    assert trends["execution_trends"]["trend"] == "insufficient_data"


async def test_dashboard_has_every_widget(bench: Bench, log: FakeLog) -> None:
    run(log, "a")
    run(log, "b", ends="bad")
    run(log, "c", ends="open")
    await caught_up(bench, log)
    bench.clock.advance(minutes=1)
    widgets = ["overview", "performance", "alerts", "workflows"]
    reply = await bench.ask("dashboard-data", {"widgets": widgets})
    dashboard = reply["dashboard"]
    overview = dashboard["overview"]
    assert (overview["active_workflows"], overview["running_tasks"], overview["total_workflows"]) == (1, 1, 2)
    assert (overview["success_rate"], overview["recent_errors"]) == (50, 1)
    assert set(dashboard["performance"]) == {"avg_execution_time", "throughput", "resource_utilization"}
    assert len(dashboard["alerts"]["active_alerts"]) == 1
    assert len(dashboard["workflows"]["recent_executions"]) == 3
    assert list((await bench.ask("dashboard-data", {}))["dashboard"]) == ["refresh_interval", "overview"]
    with pytest.raises(InvalidParameters, match="overview"):
        await bench.ask("dashboard-data", {"widgets": ["weather"]})


async def test_dashboard_without_a_state_manager_counts_what_it_saw(tmp_path: Path, log: FakeLog) -> None:
    run(log, "a")
    async with running_agent(MonitorAgent, tmp_path, offer(contracts.LOG_READ, log.read)) as bench:
        await until(lambda: bench.agent.health()["log_offset"] == len(log.records))
        reply = await bench.ask("dashboard-data", {})
        assert reply["dashboard"]["overview"]["total_workflows"] == 1
