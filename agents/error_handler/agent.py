"""The error handler as a process: it is asked about errors, remembers them and gives the orders that follow.

What to do is decided by `orchestration.recovery`; a question of the engine (`auto_recover` false) has no effect
beyond being remembered.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, ClassVar

import msgspec

from agents.base import Agent
from agents.error_handler.breakers import BreakerBoard
from agents.error_handler.escalation import Escalation, Escalations
from agents.error_handler.history import (
    EVENT_TYPES,
    Decision,
    ErrorHistory,
    ErrorRecord,
    advice,
    describe_patterns,
    find_patterns,
    make_record,
    summarize,
)
from agents.error_handler.orders import RecoveryOrders
from agents.log_reader import LogReader
from amp import crash
from amp.capability import Incoming, Offer
from amp.errors import AmpError, InvalidParameters
from orchestration import contracts
from orchestration.alerts import THRESHOLDS, severity_for, too_many
from orchestration.contracts import ErrorHandleReply, ErrorInfo, EventRecord
from orchestration.recovery import (
    FailureContext,
    PastError,
    Recovery,
    RecoveryPolicy,
    choose,
    read_question,
    severity_of,
)
from orchestration.status import RecoveryAction, Severity
from runtime.ids import new_id
from runtime.lean_prometheus import Counter, Gauge
from runtime.settings import ErrorHandlerSettings, Settings

MAX_WINDOW_HOURS = 24 * 366
MAX_TIMES_A_SEVERITY = 1000
WATCHED_SUBJECTS = ("workflow_instance_id", "workflow_id", "task_id", "agent_id")
DONE = {RecoveryAction.RETRY: "retried", RecoveryAction.SKIP: "skipped", RecoveryAction.PAUSE: "paused"}


class ErrorHandler(Agent):
    """Classifies failures, chooses and orders recovery, owns circuit breakers, escalates."""

    section_name: ClassVar[str] = "error_handler"

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(settings, **options)
        self.section: ErrorHandlerSettings = self.settings.error_handler
        self.policy = RecoveryPolicy(
            max_retry_attempts=self.section.max_retry_attempts,
            retry_delay_seconds=self.section.retry_delay_seconds,
            pause_duration_seconds=self.section.pause_duration_seconds,
        )
        self.history = ErrorHistory(self.section.max_records_per_instance)
        self.breakers = BreakerBoard(self.settings.circuit_breaker)
        self._reader: LogReader | None = None
        self._times: dict[Severity, deque[datetime]] = {
            severity: deque(maxlen=MAX_TIMES_A_SEVERITY) for severity in Severity
        }
        self._alerted_at: dict[Severity, datetime] = {}
        registry = self.metrics
        self._errors = Counter("amp_errors", "Errors seen, by severity", ["severity"], registry=registry)
        self._decisions = Counter("amp_recoveries", "Recoveries chosen", ["action"], registry=registry)
        self._ordered = Counter(
            "amp_recovery_orders",
            "Orders given, by action and outcome",
            ["action", "outcome"],
            registry=registry,
        )
        self._escalated = Counter("amp_escalations", "Escalations, by level", ["level"], registry=registry)
        self._unreadable = Counter("amp_log_events_unreadable", "Events passed over", registry=registry)
        open_breakers = Gauge("amp_breakers_open", "Circuit breakers that are open", registry=registry)
        open_breakers.set_function(lambda: float(self.breakers.counts(self.clock.now())["open"]))

    def offers(self) -> list[Offer]:
        """Return the seven capabilities of the error handler."""
        return [
            self.offer(contracts.ERROR_HANDLE, self.handle_error),
            self.offer(contracts.ERROR_RECOVER, self.recover),
            self.offer(contracts.ERROR_ESCALATE, self.escalate),
            self.offer(contracts.ERROR_ANALYZE, self.analyze),
            self.offer(contracts.CIRCUIT_BREAKER, self.circuit_breaker),
            self.offer(contracts.RECOVERY_STRATEGY, self.recovery_strategy),
            self.offer(contracts.ERROR_PATTERNS, self.error_patterns),
        ]

    async def on_ready(self) -> None:
        """Begin to read the log."""
        self._reader = LogReader(self.mesh, types=EVENT_TYPES, after=0, apply=self._take_events)
        self.spawn(self._reader.run(), "log reader")

    @cached_property
    def orders(self) -> RecoveryOrders:
        """The orders that recovery gives over the mesh."""
        return RecoveryOrders(self.mesh, self.section)

    @cached_property
    def escalations(self) -> Escalations:
        """The escalations that were raised and are followed up."""
        return Escalations(
            self.mesh,
            timeout_seconds=self.section.escalation_timeout,
            spawn=self.spawn,
            count=lambda level: self._escalated.labels(str(level)).inc(),
        )

    def health(self) -> dict[str, Any]:
        """Return how much is remembered and how the breakers stand."""
        return {
            "errors_remembered": len(self.history),
            "open_escalations": len(self.escalations) if hasattr(self, "mesh") else 0,
            "breakers": self.breakers.counts(self.clock.now()),
            "log_offset": self._reader.offset if self._reader else 0,
        }

    # --- what it is asked ------------------------------------------------------------------------------

    async def handle_error(self, incoming: Incoming) -> ErrorHandleReply:
        """Answer `error-handle`: choose a recovery and, when asked to, order it."""
        crash.reach("error.verdict.before")
        request: contracts.ErrorHandleRequest = incoming.parameters
        error, context = self._question(request.error, request.context)
        is_question = not request.auto_recover and not request.escalate_immediately
        known = self.history.decided(
            context.workflow_instance_id, context.task_id, context.attempt, error.code
        )
        if is_question and known is not None:
            return known
        recovery = choose(error, context, self.history.past(context.workflow_instance_id), self.policy)
        if request.escalate_immediately:
            recovery = msgspec.structs.replace(
                recovery,
                action=RecoveryAction.ESCALATE,
                delay_seconds=0.0,
                reason="asked for",
                escalated=True,
            )
        error_id = new_id("err", self.clock, self.random)
        if is_question:
            reply = _answer(recovery, error_id, handled=recovery.action is not RecoveryAction.ABORT)
        else:
            self._remember(error_id, error, context, request.context)
            reply = await self._carry_out(error_id, error, context, recovery)
        self._note_decision(error_id, error, context, reply)
        crash.reach("error.verdict.after")
        return reply

    async def recover(self, incoming: Incoming) -> contracts.ErrorRecoverReply:
        """Answer `error-recover`: order an action."""
        request: contracts.ErrorRecoverRequest = incoming.parameters
        try:
            action = RecoveryAction(request.recovery_action)
        except ValueError:
            known = ", ".join(RecoveryAction)
            raise InvalidParameters(
                f"recovery_action {request.recovery_action[:100]!r} is none of {known}",
                {"path": "$.recovery_action"},
            ) from None
        if action is RecoveryAction.ESCALATE:
            error, context = self._question(_error_of(request.error_context), request.error_context)
            escalation = await self._escalate(error, context, "ordered")
            return contracts.ErrorRecoverReply(
                success=True, result={"action": "escalated", "escalation_id": escalation.id}, next_action=""
            )
        success, result = await self._order(action, request.error_context, request.recovery_config)
        return contracts.ErrorRecoverReply(
            success=success, result=result, next_action="" if success else RecoveryAction.ESCALATE.value
        )

    async def escalate(self, incoming: Incoming) -> contracts.ErrorEscalateReply:
        """Answer `error-escalate`."""
        request: contracts.ErrorEscalateRequest = incoming.parameters
        error, context = self._question(request.error, request.context)
        escalation = await self._escalate(error, context, request.reason or "asked for")
        return contracts.ErrorEscalateReply(
            escalated=True, escalation_id=escalation.id, severity=escalation.severity
        )

    async def analyze(self, incoming: Incoming) -> contracts.ErrorAnalyzeReply:
        """Answer `error-analyze`."""
        request: contracts.ErrorAnalyzeRequest = incoming.parameters
        since = self._since(request.time_window_hours)
        records = list(
            self.history.select(since, codes=set(request.error_types), workflow_ids=set(request.workflow_ids))
        )
        return contracts.ErrorAnalyzeReply(
            error_summary=summarize(records, self.history.actions_since(since), request.time_window_hours),
            patterns=find_patterns(records),
            recommendations=advice(records, self.clock.now()),
        )

    async def circuit_breaker(self, incoming: Incoming) -> contracts.CircuitBreakerReply:
        """Answer `circuit-breaker`."""
        request: contracts.CircuitBreakerRequest = incoming.parameters
        reply = self.breakers.operate(
            request.operation, request.resource_id, request.config, self.clock.now()
        )
        crash.reach("error.breaker.changed")
        return reply

    async def recovery_strategy(self, incoming: Incoming) -> contracts.RecoveryStrategyReply:
        """Answer `recovery-strategy`: what would be chosen. Nothing is recorded."""
        request: contracts.RecoveryStrategyRequest = incoming.parameters
        told = {"code": request.error_code, "message": request.error_message}
        error, context = self._question(told, request.context)
        recovery = choose(error, context, self.history.past(context.workflow_instance_id), self.policy)
        return contracts.RecoveryStrategyReply(
            recovery_action=recovery.action,
            severity=recovery.severity,
            delay_seconds=recovery.delay_seconds,
            reason=recovery.reason,
        )

    async def error_patterns(self, incoming: Incoming) -> contracts.ErrorPatternsReply:
        """Answer `error-patterns`."""
        request: contracts.ErrorPatternsRequest = incoming.parameters
        records = list(self.history.select(self._since(request.time_window_hours)))
        return contracts.ErrorPatternsReply(patterns=describe_patterns(records))

    # --- what follows ----------------------------------------------------------------------------------

    async def _carry_out(
        self, error_id: str, error: ErrorInfo, context: FailureContext, recovery: Recovery
    ) -> ErrorHandleReply:
        """Order what was chosen; what cannot be ordered is escalated."""
        match recovery.action:
            case RecoveryAction.ESCALATE:
                await self._escalate(error, context, recovery.reason)
                return _answer(recovery, error_id, handled=True)
            case RecoveryAction.ABORT:
                if recovery.escalated:
                    await self._escalate(error, context, recovery.reason)
                return _answer(recovery, error_id, handled=False)
        about = {"workflow_instance_id": context.workflow_instance_id, "task_id": context.task_id}
        config = {
            "retry_delay": recovery.delay_seconds,
            "pause_duration": recovery.delay_seconds,
            "reason": f"{error.code}: {recovery.reason}",
        }
        if context.workflow_instance_id and recovery.action is not RecoveryAction.FALLBACK:
            success, result = await self._order(recovery.action, about, config)
            if not success:
                await self._escalate(
                    error, context, f"{recovery.action} failed: {result['error']['message']}"
                )
                recovery = msgspec.structs.replace(recovery, escalated=True)
            return _answer(recovery, error_id, handled=success)
        return _answer(recovery, error_id, handled=False)

    async def _order(
        self, action: RecoveryAction, about: Mapping[str, Any], config: Mapping[str, Any]
    ) -> tuple[bool, dict[str, Any]]:
        """Return whether an order was accepted, and what came of it."""
        try:
            answer = await self.orders.give(action, about, config)
        except InvalidParameters:
            raise
        except AmpError as error:
            self._ordered.labels(action.value, "failed").inc()
            self.logger.warning("recovery_order_failed", action=action.value, code=error.code)
            return False, {"action": action.value, "error": {"code": error.code, "message": error.message}}
        self._ordered.labels(action.value, "accepted").inc()
        self.logger.info("recovery_ordered", action=action.value, **_subjects(about))
        return True, {"action": DONE.get(action, action.value), **answer}

    async def _escalate(self, error: ErrorInfo, context: FailureContext, reason: str) -> Escalation:
        history = self.history.past(context.workflow_instance_id)
        return await self.escalations.raise_(
            Escalation(
                id=new_id("esc", self.clock, self.random),
                error=error,
                severity=severity_of(error, context, history),
                reason=reason,
                context=_subjects(msgspec.structs.asdict(context)),
            )
        )

    def _question(
        self, error: Mapping[str, Any], context: Mapping[str, Any]
    ) -> tuple[ErrorInfo, FailureContext]:
        try:
            return read_question(error, context, self.clock.now())
        except ValueError as problem:
            raise InvalidParameters(str(problem)) from None

    def _since(self, hours: float) -> datetime:
        if not 0 < hours <= MAX_WINDOW_HOURS:
            raise InvalidParameters(
                f"time_window_hours must be above 0 and at most {MAX_WINDOW_HOURS}",
                {"path": "$.time_window_hours"},
            )
        return self.clock.now() - timedelta(hours=hours)

    # --- what it remembers -----------------------------------------------------------------------------

    def _note_decision(
        self, error_id: str, error: ErrorInfo, context: FailureContext, reply: ErrorHandleReply
    ) -> None:
        self._decisions.labels(reply.recovery_action.value).inc()
        past = PastError(
            at=context.at, code=error.code, task_id=context.task_id, action=reply.recovery_action
        )
        decision = Decision(past=past, error_id=error_id, attempt=context.attempt, reply=reply)
        self.history.decide(context.workflow_instance_id, decision)

    def _remember(
        self, error_id: str, error: ErrorInfo, context: FailureContext, told: Mapping[str, Any]
    ) -> None:
        """Keep an error that a stranger reports. Those of instances come through the log."""
        severity = severity_of(error, context, self.history.past(context.workflow_instance_id))
        state = told.get("workflow_state")
        record = make_record(
            error_id, error, context, severity, workflow_state=state if isinstance(state, str) else ""
        )
        self.history.add(record)
        self._watch(record)

    async def _take_events(self, events: Sequence[EventRecord], offset: int) -> None:
        for event in events:
            try:
                record = self.history.take(event)
            except msgspec.MsgspecError:
                self._unreadable.inc()
                self.logger.warning("log_events_unreadable", count=1, offset=event.offset)
                continue
            if record is not None:
                self._watch(record)

    def _watch(self, record: ErrorRecord) -> None:
        """Count an error, its resource's failure, and say so when errors of its severity become too many."""
        self._errors.labels(record.severity.value).inc()
        resource_id = record.error_details.get("resource_id")
        if isinstance(resource_id, str) and resource_id:
            self.breakers.failed(resource_id, record.timestamp)
            crash.reach("error.breaker.changed")
        times = self._times[record.severity]
        times.append(record.timestamp)
        now = self.clock.now()
        last = self._alerted_at.get(record.severity)
        window = THRESHOLDS[record.severity].window
        if (last is None or now - last >= window) and (count := too_many(record.severity, times, now)):
            self._alerted_at[record.severity] = now
            self.spawn(self._tell_too_many(record, count), f"alert {record.id}")

    async def _tell_too_many(self, record: ErrorRecord, count: int) -> None:
        minutes = THRESHOLDS[record.severity].window.total_seconds() / 60
        try:
            await self.mesh.request(
                contracts.ALERT_CREATE.id,
                {
                    "alert_type": "error_occurred",
                    "severity": severity_for(record.severity).value,
                    "title": f"Errors of severity {record.severity}",
                    "description": f"{count} in {minutes:g} minutes, the last one {record.error_code}",
                    "metadata": {
                        "dedupe_key": record.severity.value,
                        "last_error_code": record.error_code,
                        "last_workflow_id": record.workflow_id,
                        "last_instance_id": record.workflow_instance_id,
                        "last_task_id": record.task_id,
                    },
                },
                timeout_seconds=10.0,
                patience_seconds=10.0,
            )
        except AmpError as error:
            self._alerted_at.pop(record.severity, None)
            self.logger.warning("alert_not_raised", code=error.code, alert_type="error_occurred")


def _answer(recovery: Recovery, error_id: str, *, handled: bool) -> ErrorHandleReply:
    return ErrorHandleReply(
        handled=handled,
        recovery_action=recovery.action,
        escalated=recovery.escalated,
        recommendations=list(recovery.recommendations),
        severity=recovery.severity,
        error_id=error_id,
        delay_seconds=recovery.delay_seconds,
        reason=recovery.reason,
    )


def _error_of(error_context: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the error that an order's context tells of, or that there is one."""
    error = error_context.get("error")
    return (
        error if isinstance(error, Mapping) and error else {"code": "UNKNOWN", "message": "ordered by hand"}
    )


def _subjects(facts: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(facts[key]) for key in WATCHED_SUBJECTS if facts.get(key)}
