"""The monitor as a process: it reads the log, counts, raises alerts and answers questions about all of it.

Every number comes from the log by cursor, never from a message that could get lost.
"""

import asyncio
import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from agents.base import Agent
from agents.log_reader import LogReader
from agents.monitor_agent.alerting import AlertBook, firing
from agents.monitor_agent.answers import Answers
from agents.monitor_agent.resources import Resources
from agents.monitor_agent.roster import Roster
from agents.monitor_agent.store import MonitorStore
from amp import crash
from amp.capability import Incoming, Offer
from amp.errors import AmpError, InsufficientResources, InvalidParameters
from amp.subscriptions import Event
from orchestration import contracts, reports
from orchestration.alerts import (
    BUILT_IN_RULES,
    Alert,
    AlertSeverity,
    Finding,
    Rule,
    RuleOutcome,
    compare,
    compare_type,
)
from orchestration.contracts import EventRecord
from orchestration.tallies import EVENT_TYPES, OpenInstance, bucket_of, fold
from orchestration.undecided import OUTCOME_UNKNOWN, undecided
from runtime.ids import new_id
from runtime.lean_prometheus import Counter, Gauge
from runtime.settings import MonitorAgentSettings, Settings

STORE_FILE = "monitor.db"
RULE_RANGE = timedelta(hours=1)
"""The rules look at this much of the past."""
MAX_METADATA_BYTES = 16 * 1024
MAX_TYPE_CHARACTERS = 100
_COUNTED_TYPES = frozenset(
    {"workflow_failure", "error_escalation", "error_occurred", "agent_unhealthy", OUTCOME_UNKNOWN}
    | {rule.alert_type for rule in BUILT_IN_RULES}
)


class MonitorAgent(Agent):
    """Tracks performance, raises alerts, knows who is well, reports."""

    section_name: ClassVar[str] = "monitor_agent"

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(settings, **options)
        self.section: MonitorAgentSettings = settings.monitor_agent
        self.store = MonitorStore(str(Path(settings.data_dir) / STORE_FILE))
        self.instances: dict[str, OpenInstance] = {}
        self.alerts = AlertBook({}, self.section.max_alerts)
        self.roster = Roster(self.clock, self.agent_id)
        self.resources = Resources(self.clock, Path(settings.data_dir))
        self.answers = self._make_answers()
        self.rules: tuple[Rule, ...] = (*BUILT_IN_RULES, *_configured(self.section))
        self._saving = asyncio.Lock()
        self._reader: LogReader | None = None
        registry = self.metrics
        self._events = Counter("amp_monitor_events", "Events of the log counted", registry=registry)
        self._unreadable = Counter("amp_log_events_unreadable", "Events passed over", registry=registry)
        self._raised = Counter("amp_alerts_raised", "Alerts raised", ["type", "severity"], registry=registry)
        self._executions = Counter(
            "amp_workflow_executions", "Executions ended", ["status"], registry=registry
        )
        for name, text, read in (
            ("amp_active_workflows", "Instances that have not ended", lambda: len(self.instances)),
            ("amp_running_tasks", "Attempts under way", lambda: self.answers.running_tasks()),
            ("amp_alerts_open", "Alerts not resolved", lambda: len(self.alerts.open_alerts)),
            ("amp_monitor_offset", "Offset of the log counted up to", self._offset),
            ("amp_monitor_lag", "Offsets of the log not counted yet", self._lag),
        ):
            Gauge(name, text, registry=registry).set_function(read)

    def offers(self) -> list[Offer]:
        """Return the capabilities of the monitor."""
        return [
            self.offer(contracts.METRICS_GET, self.answers.get_metrics),
            self.offer(contracts.METRICS_AGGREGATE, self.answers.aggregate_metrics),
            self.offer(contracts.ALERT_CREATE, self.create_alert),
            self.offer(contracts.ALERT_LIST, self.list_alerts),
            self.offer(contracts.ALERT_UPDATE, self.update_alert),
            self.offer(contracts.HEALTH_CHECK, self.answers.check_health),
            self.offer(contracts.PERFORMANCE_REPORT, self.answers.report_performance),
            self.offer(contracts.DASHBOARD_DATA, self.answers.dashboard_data),
        ]

    def _make_answers(self) -> Answers:
        return Answers(
            store=self.store,
            instances=self.instances,
            alerts=self.alerts,
            roster=self.roster,
            resources=self.resources,
            clock=self.clock,
            mesh=lambda: self.mesh,
            position=self._position,
        )

    # --- its life --------------------------------------------------------------------------------------

    async def on_start(self) -> None:
        """Open the store and take up where it ends."""
        problem = await self.store.open_or_rebuild()
        if problem:
            self.logger.error("monitor_store_rebuilt", reason=problem)
        self.instances = await self.store.open_instances()
        self.alerts = AlertBook(await self.store.alerts(), self.section.max_alerts)
        self.answers = self._make_answers()

    async def on_ready(self) -> None:
        """Begin to read the log, to watch the agents and to evaluate the rules."""
        self.roster.own_id = self.agent_id
        await self.mesh.subscribe("agent.*", self._take_agent_event)
        self._reader = LogReader(
            self.mesh,
            types=EVENT_TYPES,
            after=await self.store.cursor(),
            apply=self._take_events,
            on_rewound=self._start_over,
        )
        self.spawn(self._reader.run(), "log reader")
        self.spawn(self._watch_agents(), "agent watch")
        self.spawn(self._watch_rules(), "rule watch")

    async def on_stopped(self) -> None:
        """Close the store."""
        await self.store.close()

    def health(self) -> dict[str, Any]:
        """Return how far the log is counted and what is open."""
        return {
            **self._position(),
            "active_workflows": len(self.instances),
            "open_alerts": len(self.alerts.open_alerts),
        }

    # --- what it counts --------------------------------------------------------------------------------

    async def _take_events(self, events: Sequence[EventRecord], offset: int) -> None:
        """Count a batch of events and save what changed together with the offset."""
        crash.reach("monitor.page.read")
        async with self._saving:
            changes = fold(self.instances, events)
            told = [self._raise(finding, at)[0] for _, at, finding in changes.findings]
            if changes.undecided:
                told += self._apply(self._undecided())
            changed, dropped = self.alerts.take_changes()
            try:
                await self.store.save(changes, cursor=offset, alerts=changed, dropped_alerts=dropped)
            except sqlite3.Error as error:
                await self._go_back()
                raise InsufficientResources(f"the monitor's store cannot be written: {error}") from None
        crash.reach("monitor.page.after_commit")
        self._events.inc(len(events))
        for execution in changes.ended:
            self._executions.labels(execution.status).inc()
        if changes.unreadable:
            self._unreadable.inc(changes.unreadable)
            self.logger.warning("log_events_unreadable", count=changes.unreadable, offset=offset)
        await self._announce(told)

    async def _go_back(self) -> None:
        """Hold what was saved last, so that the same events can be counted again."""
        saved = await self.store.open_instances()
        self.instances.clear()
        self.instances.update(saved)
        self.alerts.reset(await self.store.alerts())

    async def _start_over(self) -> None:
        """Another log is there: count anew."""
        async with self._saving:
            self.instances.clear()
            await self.store.start_over()

    async def _watch_rules(self) -> None:
        """Evaluate the rules and forget what is too old, each `alert_check_interval`."""
        while True:
            try:
                await self.evaluate_rules()
                kept = timedelta(hours=self.section.metrics_retention_hours)
                await self.store.forget(before=self.clock.now() - kept)
            except sqlite3.Error as error:
                self.logger.error("monitor_store_failed", reason=str(error))
            await asyncio.sleep(self.section.alert_check_interval)

    async def evaluate_rules(self) -> None:
        """Raise what holds now and was not open, resolve what no longer holds."""
        now = self.clock.now()
        tallies = await self.store.workflows(bucket_of(now - RULE_RANGE))
        workflows = {key: reports.workflow_metrics(key, *part) for key, part in tallies.items()}
        findings, broken = firing(self.rules, workflows, self.answers.system_facts(tallies), now)
        for rule, error in broken:
            self.logger.warning(
                "alert_rule_broken", alert_type=rule.alert_type, code=error.code, error=error.message
            )
        await self._change(compare(findings, self.alerts.open_alerts, self.rules))
        await self._change(self._undecided())

    async def _watch_agents(self) -> None:
        """Ask every agent, each `health_check_interval`."""
        while True:
            try:
                await self.check_agents()
            except sqlite3.Error as error:
                self.logger.error("monitor_store_failed", reason=str(error))
            await asyncio.sleep(self.section.health_check_interval)

    async def check_agents(self) -> None:
        """Ask every agent; raise and resolve the alerts that follow."""
        try:
            await self.roster.check(self.mesh)
        except AmpError as error:
            self.logger.warning("agents_not_checked", code=error.code)
            return
        findings = self.roster.unhealthy()
        await self._change(compare_type(findings, self.alerts.open_alerts, "agent_unhealthy"))

    async def _change(self, outcome: RuleOutcome) -> None:
        async with self._saving:
            changed = self._apply(outcome)
            await self._save_alerts()
        await self._announce(changed)

    def _apply(self, outcome: RuleOutcome) -> list[Alert]:
        """Raise and resolve what an outcome says, to be saved; return the alerts."""
        now = self.clock.now()
        raised = [self._raise(finding, now)[0] for finding in outcome.findings]
        return [*raised, *(self.alerts.resolve(alert, now) for alert in outcome.over)]

    def _undecided(self) -> RuleOutcome:
        """Return what changes about the tasks for which a person must decide."""
        return compare_type(undecided(self.instances.values()), self.alerts.open_alerts, OUTCOME_UNKNOWN)

    def _raise(self, finding: Finding, at: datetime) -> tuple[Alert, bool]:
        alert, created = self.alerts.raise_(finding, new_id=new_id("alr", self.clock, self.random), at=at)
        if created:
            known = alert.type if alert.type in _COUNTED_TYPES else "other"
            self._raised.labels(known, alert.severity.value).inc()
            self.logger.warning(
                "alert_raised", alert_id=alert.id, type=alert.type, severity=alert.severity.value
            )
        return alert, created

    async def _save_alerts(self) -> None:
        changed, dropped = self.alerts.take_changes()
        if changed or dropped:
            await self.store.save(alerts=changed, dropped_alerts=dropped)

    async def _announce(self, alerts: Any) -> None:
        for alert in {alert.id: alert for alert in alerts}.values():
            crash.reach("monitor.alert.raised")
            try:
                await self.mesh.publish(
                    contracts.EVENT_ALERT_CHANGED,
                    {"alert": reports.alert_object(alert)},
                    subscribers_only=True,
                )
            except AmpError as error:
                self.logger.warning("alert_not_published", alert_id=alert.id, code=error.code)

    async def _take_agent_event(self, event: Event) -> None:
        if event.event_type == contracts.EVENT_AGENT_JOINED:
            self.roster.joined(event.data)
        elif event.event_type == contracts.EVENT_AGENT_LEFT:
            self.roster.left(event.data)

    # --- what it is asked ------------------------------------------------------------------------------

    async def create_alert(self, incoming: Incoming) -> contracts.AlertCreateReply:
        """Answer `alert-create`."""
        request: contracts.AlertCreateRequest = incoming.parameters
        if not request.alert_type or not request.title:
            raise InvalidParameters("alert_type and title must not be empty", {"path": "$.title"})
        if len(msgspec.json.encode(request.metadata)) > MAX_METADATA_BYTES:
            raise InvalidParameters(f"metadata may have {MAX_METADATA_BYTES} bytes", {"path": "$.metadata"})
        finding = Finding(
            type=request.alert_type[:MAX_TYPE_CHARACTERS],
            severity=AlertSeverity(request.severity),
            title=request.title,
            description=request.description,
            metadata=request.metadata,
        )
        async with self._saving:
            alert, created = self._raise(finding, self.clock.now())
            await self._save_alerts()
        await self._announce([alert])
        return contracts.AlertCreateReply(alert_id=alert.id, created=created)

    async def list_alerts(self, incoming: Incoming) -> contracts.AlertListReply:
        """Answer `alert-list`."""
        request: contracts.AlertListRequest = incoming.parameters
        if request.severity and request.severity not in list(AlertSeverity):
            raise InvalidParameters(
                f"severity {request.severity[:50]!r} is none of {', '.join(AlertSeverity)}",
                {"path": "$.severity"},
            )
        listed = self.alerts.listed(severity=request.severity, include_resolved=request.include_resolved)
        return contracts.AlertListReply(
            alerts=[reports.alert_object(alert) for alert in listed[: request.limit]], total_count=len(listed)
        )

    async def update_alert(self, incoming: Incoming) -> contracts.AlertUpdateReply:
        """Answer `alert-update`."""
        request: contracts.AlertUpdateRequest = incoming.parameters
        before = self.alerts.get(request.alert_id)
        if before is None:
            raise AmpError(
                "RESOURCE_NOT_FOUND",
                f"there is no alert {request.alert_id[:100]!r}",
                {"path": "$.alert_id"},
                retryable=False,
            )
        now, alert = self.clock.now(), before
        async with self._saving:
            if request.acknowledged:
                alert = self.alerts.acknowledge(alert, now)
            if request.resolved:
                alert = self.alerts.resolve(alert, now)
            await self._save_alerts()
        if alert != before:
            await self._announce([alert])
        return contracts.AlertUpdateReply(alert=reports.alert_object(alert), updated=alert != before)

    def _offset(self) -> int:
        return self._reader.offset if self._reader is not None else 0

    def _position(self) -> dict[str, int]:
        return {"log_offset": self._offset(), "log_lag": self._lag()}

    def _lag(self) -> int:
        return self._reader.newest - self._reader.offset if self._reader is not None else 0


def _configured(section: MonitorAgentSettings) -> list[Rule]:
    """Return the rules of the settings."""
    return [msgspec.convert(rule, Rule, from_attributes=True) for rule in section.alert_rules]
