"""One turn of the machine, and the moves that its rules share: begin an attempt, fail it, retry, skip.

Only the machine and the rules beside it use this. Every move records facts; nothing here is decided twice.
"""

from datetime import datetime, timedelta

from orchestration import commands as cmd
from orchestration import events as ev
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import TaskPlan
from orchestration.instance import Draft, Run, evolve
from orchestration.retry import delay_seconds, should_retry
from orchestration.status import InstanceStatus, TaskStatus
from orchestration.times import total_due_at

MAX_LOSSES = 3
"""An attempt whose executor disappeared is dispatched again until so many were lost; then the task is poison."""
WITH_AN_ATTEMPT = frozenset({TaskStatus.RUNNING, TaskStatus.OUTCOME_UNKNOWN})
"""States in which the result of the current attempt is wanted."""


class Turn:
    """One call of `advance`: the draft, the facts so far, the commands so far, the tasks that became final."""

    __slots__ = ("at", "commands", "draft", "ended", "events", "plan")

    def __init__(self, draft: Draft, at: datetime) -> None:
        self.draft = draft
        self.plan = draft.plan
        self.at = at
        self.events: list[ev.Event] = []
        self.commands: list[cmd.Command] = []
        self.ended: list[str] = []

    def record(self, event: ev.Event) -> None:
        """Note a fact and apply it."""
        self.events.append(event)
        evolve(self.draft, event)
        if isinstance(event, (ev.TaskCompleted, ev.TaskFailed, ev.TaskSkipped)):
            self.ended.append(event.task_id)

    def cancel(self, run: Run) -> None:
        """Have whoever works on a task's attempt told that its result is no longer wanted."""
        if run.status in WITH_AN_ATTEMPT and run.token:
            self.commands.append(cmd.CancelAttempt(run.task_id, run.token))


def is_current(run: Run, token: str) -> bool:
    """Return whether a result under this token is still wanted."""
    return run.status in WITH_AN_ATTEMPT and bool(token) and run.token == token


def needs_question(task: TaskPlan) -> bool:
    """Return whether the condition evaluator is asked before the task begins."""
    return task.condition is not None and bool(task.condition.expression)


def proceed(turn: Turn, task_id: str) -> None:
    """Bring a task nearer to its attempt: condition first, then the attempt; neither while paused."""
    run, task = turn.draft.runs[task_id], turn.plan.tasks[task_id]
    if turn.draft.status is not InstanceStatus.RUNNING:
        return
    if run.condition_met is None and task.condition is not None:
        required = task.condition.required_outputs
        missing = [name for name in required if turn.draft.variables.get(name) is None]
        if missing:
            skip(turn, task_id, "required_output_missing", f"no value for {', '.join(missing)}")
            return
        if needs_question(task):
            turn.commands.append(cmd.AskCondition(task_id))
            return
    limit = total_due_at(task, run)
    if limit is not None and limit <= turn.at:
        attempt_failed(turn, run, out_of_time(task, run.error), jitter=0.0)
        return
    attempt = run.attempt + 1
    token = f"{turn.draft.id}/{task_id}/{attempt}"
    turn.record(ev.TaskStarted(at=turn.at, task_id=task_id, attempt=attempt, token=token))
    turn.commands.append(cmd.Dispatch(task_id, attempt, token))


def again(turn: Turn, task_id: str, reason: str, decided_by: str = "") -> None:
    """Begin another attempt now, or when the instance is resumed."""
    run = turn.draft.runs[task_id]
    if decided_by or turn.draft.status is not InstanceStatus.RUNNING:
        retry(turn, run, turn.at, reason, decided_by)
    proceed(turn, task_id)


def attempt_failed(turn: Turn, run: Run, error: ErrorInfo, jitter: float) -> None:
    """Record a failed attempt and either plan the next one or ask what to do."""
    task = turn.plan.tasks[run.task_id]
    failures = run.failures + 1
    due_at: datetime | None = None
    if should_retry(task.retry, failures, error):
        wait = max(delay_seconds(task.retry, failures, jitter), error.retry_after_seconds or 0.0)
        due_at = turn.at + timedelta(seconds=wait)
        limit = total_due_at(task, run)
        if limit is not None and due_at >= limit:
            due_at, error = None, out_of_time(task, error)
    turn.record(ev.AttemptFailed(at=turn.at, task_id=run.task_id, attempt=run.attempt, error=error))
    if due_at is None:
        turn.commands.append(cmd.AskRecovery(run.task_id, error))
        return
    reason = f"{error.code}; attempt {failures} of {task.retry.max_attempts} failed"
    retry(turn, turn.draft.runs[run.task_id], due_at, reason)


def out_of_time(task: TaskPlan, last: ErrorInfo | None) -> ErrorInfo:
    """Return the error of a task whose time for all attempts is up. `last` is the error of its last attempt."""
    after = "" if last is None else f"; its last attempt ended with {last.code}: {last.message}"
    message = f"not done within {task.total_timeout_seconds:g} s, all attempts together{after}"
    details = {} if last is None else {"last_code": last.code}
    return ErrorInfo(code="TOTAL_TIMEOUT", message=message, details=details, retryable=False)


def retry(turn: Turn, run: Run, due_at: datetime, reason: str, decided_by: str = "") -> None:
    """Plan another attempt."""
    turn.record(
        ev.TaskRetrying(
            at=turn.at,
            task_id=run.task_id,
            attempt=run.attempt + 1,
            due_at=due_at,
            reason=reason,
            decided_by=decided_by,
        )
    )


def skip(turn: Turn, task_id: str, reason: str, detail: str) -> None:
    """End a task without having done it."""
    turn.record(ev.TaskSkipped(at=turn.at, task_id=task_id, reason=reason, detail=detail))


def fail(turn: Turn, task_id: str, error: ErrorInfo) -> None:
    """End a task that failed for good."""
    turn.record(ev.TaskFailed(at=turn.at, task_id=task_id, error=error))
