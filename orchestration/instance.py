"""One execution of a workflow as a value, and how each fact changes it.

`evolve` is the fold: it applies a fact that is already in the log and decides nothing. `Draft` is the instance
while facts are being applied: one copy for a whole step, not one a fact. Nothing outside this module and the
machine may change a draft.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from orchestration import events as ev
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import Plan, TaskPlan
from orchestration.status import InstanceStatus, TaskStatus

ACTIVE = frozenset({TaskStatus.READY, TaskStatus.RUNNING, TaskStatus.RETRYING, TaskStatus.OUTCOME_UNKNOWN})
"""A task that something is being done about."""
BLOCKING = frozenset({TaskStatus.FAILED, TaskStatus.CANCELLED})
"""A dependency that ended so keeps what depends on it from running."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A task in an instance.

    `waiting_for` counts dependencies that are not final. `failures` are the failed attempts of this round (a reset
    begins a new one), `losses` the attempts whose executor disappeared. `deciding` is true while the error handler
    is asked. `fallback_for` names the task that this one stands in for, `reconciles` the one whose outcome it finds
    out; `reconciling` is true of that one meanwhile. The time for all attempts counts from `total_from`.
    """

    task_id: str
    status: TaskStatus = TaskStatus.PENDING
    waiting_for: int = 0
    attempt: int = 0
    token: str = ""
    failures: int = 0
    losses: int = 0
    handler_retries: int = 0
    round: int = 1
    condition_met: bool | None = None
    deciding: bool = False
    awaiting_fallback: bool = False
    fallback_for: str = ""
    reconciles: str = ""
    reconciling: bool = False
    due_at: datetime | None = None
    started_at: datetime | None = None
    attempt_started_at: datetime | None = None
    total_from: datetime | None = None
    completed_at: datetime | None = None
    error: ErrorInfo | None = None
    outputs: Mapping[str, Any] = {}
    primary: Any = None
    primary_output: str = ""
    skip_reason: str = ""

    @property
    def is_called(self) -> bool:
        """True when a task on call was called for."""
        return bool(self.fallback_for or self.reconciles)

    @property
    def primary_value(self) -> Any:
        """Return the task's primary value, wherever it is kept."""
        return self.outputs.get(self.primary_output) if self.primary_output else self.primary


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of a workflow. `seq` is the number of facts it is made of.

    `variables` are the inputs and the declared outputs of finished tasks, later writers over earlier ones. `active`
    are the ids of tasks that something is being done about, `finished` those that completed, in order. `open_runs`
    counts tasks that are not final.
    """

    id: str
    seq: int
    status: InstanceStatus
    workflow_id: str
    definition_hash: str
    trigger: str
    inputs: Mapping[str, Any]
    variables: Mapping[str, Any]
    runs: Mapping[str, Run]
    active: Mapping[str, None]
    finished: tuple[str, ...]
    counts: Mapping[str, int]
    open_runs: int
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    updated_at: datetime | None = None
    resume_at: datetime | None = None
    pause_reason: str = ""
    outputs: Mapping[str, Any] = {}
    error: ErrorInfo | None = None
    failed_task: str = ""


_NEW_ROUND: Mapping[str, Any] = {
    "failures": 0,
    "losses": 0,
    "handler_retries": 0,
    "completed_at": None,
    "total_from": None,
    "deciding": False,
    "awaiting_fallback": False,
    "due_at": None,
    "token": "",
    "skip_reason": "",
}
"""What a run forgets when it begins anew."""


class Draft:
    """An instance while facts are applied to it. `unblocked` collects tasks whose last dependency became final."""

    __slots__ = (
        "_fields",
        "active",
        "counts",
        "finished",
        "open_runs",
        "plan",
        "runs",
        "unblocked",
        "variables",
    )

    def __init__(self, plan: Plan, instance: Instance | None) -> None:
        self.plan = plan
        self._fields: dict[str, Any] = {}
        self.unblocked: list[str] = []
        self.runs: dict[str, Run] = {}
        self.active: dict[str, None] = {}
        self.counts: dict[str, int] = {}
        self.variables: dict[str, Any] = {}
        self.finished: list[str] = []
        self.open_runs = 0
        if instance is not None:
            self._fields = {name: getattr(instance, name) for name in _SCALARS}
            self.runs = dict(instance.runs)
            self.active = dict(instance.active)
            self.counts = dict(instance.counts)
            self.variables = dict(instance.variables)
            self.finished = list(instance.finished)
            self.open_runs = instance.open_runs

    def __getattr__(self, name: str) -> Any:
        try:
            return self._fields[name]
        except KeyError:
            raise AttributeError(name) from None

    def put(self, **fields: Any) -> None:
        """Set fields of the instance."""
        self._fields.update(fields)

    def put_run(self, run: Run, **changes: Any) -> Run:
        """Replace a run, and keep `active`, `counts` and `open_runs` true."""
        changed = msgspec.structs.replace(run, **changes)
        before, after = run.status, changed.status
        self.runs[run.task_id] = changed
        if before is not after:
            self.counts[before] -= 1
            self.counts[after] = self.counts.get(after, 0) + 1
            self.open_runs += int(before.is_final) - int(after.is_final)
            if after in ACTIVE:
                self.active[run.task_id] = None
            else:
                self.active.pop(run.task_id, None)
        return changed

    def freeze(self) -> Instance:
        """Return the instance as a value."""
        return Instance(
            runs=self.runs,
            active=self.active,
            counts={status: count for status, count in self.counts.items() if count},
            variables=self.variables,
            finished=tuple(self.finished),
            open_runs=self.open_runs,
            **self._fields,
        )


_SCALARS = tuple(
    field
    for field in Instance.__struct_fields__
    if field not in {"runs", "active", "counts", "variables", "finished", "open_runs"}
)


def new_draft(plan: Plan, instance_id: str, started: ev.InstanceStarted) -> Draft:
    """Return the draft of an instance that has just begun."""
    draft = Draft(plan, None)
    draft.put(**dict.fromkeys(_SCALARS))
    draft.put(
        id=instance_id,
        seq=0,
        status=InstanceStatus.PENDING,
        workflow_id=started.workflow_id,
        definition_hash=started.definition_hash,
        trigger=started.trigger,
        inputs=started.inputs,
        created_at=started.at,
        pause_reason="",
        outputs={},
        failed_task="",
    )
    draft.variables = dict(started.inputs)
    draft.runs = {
        task.id: Run(task_id=task.id, waiting_for=len(task.depends_on)) for task in plan.tasks.values()
    }
    draft.counts = {TaskStatus.PENDING: len(draft.runs)}
    draft.open_runs = len(draft.runs)
    return draft


def evolve(draft: Draft, event: ev.Event) -> None:
    """Apply one fact to the draft. It must not decide: what follows from it is another fact."""
    match event:
        case ev.InstanceStarted():
            pass
        case ev.InstanceAdmitted():
            draft.put(status=InstanceStatus.RUNNING, started_at=event.at)
            for task in draft.plan.tasks.values():
                if not task.depends_on:
                    _unblock(draft, task)
        case ev.InstancePaused():
            draft.put(status=InstanceStatus.PAUSED, pause_reason=event.reason, resume_at=event.resume_at)
        case ev.InstanceResumed():
            begun = draft.started_at is not None
            draft.put(
                status=InstanceStatus.RUNNING if begun else InstanceStatus.PENDING,
                pause_reason="",
                resume_at=None,
            )
        case ev.InstanceCompleted():
            draft.put(status=InstanceStatus.COMPLETED, completed_at=event.at, outputs=event.outputs)
        case ev.InstanceFailed():
            draft.put(
                status=InstanceStatus.FAILED,
                completed_at=event.at,
                error=event.error,
                failed_task=event.task_id,
            )
        case ev.InstanceCancelled():
            error = ErrorInfo(code="CANCELLED", message=event.reason) if event.reason else None
            draft.put(status=InstanceStatus.CANCELLED, completed_at=event.at, error=error)
        case ev.VariablesUpdated():
            if event.replace:
                draft.variables.clear()
            draft.variables.update(event.updates)
        case ev.OutputMismatched() | ev.LateResult():
            pass
        case _:
            _evolve_run(draft, draft.runs[event.task_id], event)
    draft.put(seq=draft.seq + 1, updated_at=event.at)


def _evolve_run(draft: Draft, run: Run, event: Any) -> None:
    """Apply a fact about one task."""
    match event:
        case ev.ConditionEvaluated():
            draft.put_run(run, condition_met=event.result)
        case ev.TaskStarted():
            draft.put_run(
                run,
                status=TaskStatus.RUNNING,
                attempt=event.attempt,
                token=event.token,
                due_at=None,
                deciding=False,
                started_at=run.started_at or event.at,
                attempt_started_at=event.at,
                total_from=run.total_from or event.at,
            )
        case ev.TaskCompleted():
            draft.put_run(
                run,
                status=TaskStatus.COMPLETED,
                outputs=event.outputs,
                primary=event.primary,
                primary_output=event.primary_output,
                completed_at=event.at,
                started_at=run.started_at or event.at,
                deciding=False,
                awaiting_fallback=False,
                reconciling=False,
                due_at=None,
            )
            draft.variables.update(event.outputs)
            draft.finished.append(run.task_id)
            _ended(draft, run)
        case ev.AttemptFailed():
            draft.put_run(
                run,
                status=TaskStatus.RUNNING,
                token="",
                failures=run.failures + 1,
                error=event.error,
                deciding=True,
                reconciling=False,
            )
        case ev.AttemptLost():
            draft.put_run(run, losses=run.losses + 1, token="", error=event.error or run.error)
        case ev.TaskOutcomeUnknown():
            draft.put_run(run, status=TaskStatus.OUTCOME_UNKNOWN, token=event.token, reconciling=False)
        case ev.TaskReconciling():
            draft.put_run(run, reconciling=True)
            _begin_reconcile(draft, draft.plan.tasks[event.reconcile], run)
        case ev.TaskRetrying():
            draft.put_run(
                run,
                status=TaskStatus.RETRYING,
                due_at=event.due_at,
                deciding=False,
                reconciling=False,
                token="",
                losses=0 if event.decided_by == "operator" else run.losses,
                total_from=None if event.decided_by == "operator" else run.total_from,
            )
        case ev.RecoveryChosen():
            by_handler = event.action in ("retry", "pause", "escalate")
            by_person = event.action in ("pause", "escalate")
            draft.put_run(
                run,
                deciding=False,
                handler_retries=run.handler_retries + int(by_handler),
                total_from=None if by_person else run.total_from,
            )
            if event.action == "fallback":
                _begin_fallback(draft, draft.plan.tasks[run.task_id], run)
        case ev.TaskFailed():
            draft.put_run(
                run,
                status=TaskStatus.FAILED,
                error=event.error,
                completed_at=event.at,
                deciding=False,
                awaiting_fallback=False,
                reconciling=False,
            )
            _ended(draft, run)
        case ev.TaskSkipped():
            draft.put_run(
                run,
                status=TaskStatus.SKIPPED,
                skip_reason=event.reason,
                completed_at=event.at,
                deciding=False,
                awaiting_fallback=False,
                reconciling=False,
            )
            _ended(draft, run)
        case ev.TaskCancelled():
            draft.put_run(run, status=TaskStatus.CANCELLED, completed_at=event.at, deciding=False)
        case ev.TaskReset():
            _reset(draft, run)
        case _:
            raise TypeError(f"no rule for the event {type(event).__name__}")


def _ended(draft: Draft, run: Run) -> None:
    """A task became final: what waits for it, and the task whose outcome it was to find out, take note."""
    if run.reconciles:
        asked = draft.runs[run.reconciles]
        if asked.reconciling:
            draft.put_run(asked, reconciling=False)
    _release_dependents(draft, draft.plan.tasks[run.task_id])


def _release_dependents(draft: Draft, task: TaskPlan) -> None:
    for dependent_id in task.dependents:
        dependent = draft.runs[dependent_id]
        if dependent.status is not TaskStatus.PENDING:
            continue
        left = dependent.waiting_for - 1
        draft.put_run(dependent, waiting_for=left)
        if left == 0:
            _unblock(draft, draft.plan.tasks[dependent_id])


def _unblock(draft: Draft, task: TaskPlan) -> None:
    """Note a task whose dependencies are all final, and make it ready where the join lets it run.

    The join: none of its dependencies failed and at least one completed. A task on call waits until it is called for.
    """
    draft.unblocked.append(task.id)
    run = draft.runs[task.id]
    if task.is_on_call and not run.is_called:
        return
    ends = {draft.runs[name].status for name in task.depends_on}
    if not ends or (TaskStatus.COMPLETED in ends and not ends & BLOCKING):
        draft.put_run(run, status=TaskStatus.READY)


def _begin_fallback(draft: Draft, task: TaskPlan, run: Run) -> None:
    """The failed task waits, active, for the task that stands in for it."""
    draft.put_run(draft.runs[run.task_id], awaiting_fallback=True)
    stand_in = draft.put_run(draft.runs[task.on_error.fallback], fallback_for=task.id)
    if stand_in.waiting_for == 0:
        _unblock(draft, draft.plan.tasks[stand_in.task_id])


def _begin_reconcile(draft: Draft, task: TaskPlan, asked: Run) -> None:
    """Make the reconcile task ready for another round, whether it ran before or not."""
    waiting = sum(1 for name in task.depends_on if not draft.runs[name].status.is_final)
    looker = draft.runs[task.id]
    draft.put_run(
        looker,
        **_NEW_ROUND,
        status=TaskStatus.PENDING,
        round=looker.round + int(looker.status is not TaskStatus.PENDING),
        reconciles=asked.task_id,
        waiting_for=waiting,
        condition_met=None,
        error=None,
        outputs={},
        primary=None,
        primary_output="",
    )
    if waiting == 0:
        _unblock(draft, task)


def _reset(draft: Draft, run: Run) -> None:
    """Begin a new round of a task; what was skipped because it failed waits for it again."""
    draft.put_run(
        run,
        status=TaskStatus.READY,
        round=run.round + 1,
        **_NEW_ROUND,
    )
    if run.reconciles and draft.runs[run.reconciles].status is TaskStatus.OUTCOME_UNKNOWN:
        draft.put_run(draft.runs[run.reconciles], reconciling=True)
    again = skipped_behind(draft.plan, draft.runs, run.task_id)
    behind = {name for task_id in {run.task_id, *again} for name in draft.plan.tasks[task_id].dependents}
    for task_id in behind:
        dependent = draft.runs[task_id]
        if task_id in again or dependent.status is TaskStatus.PENDING:
            depends_on = draft.plan.tasks[task_id].depends_on
            waiting = sum(1 for name in depends_on if name in again or not draft.runs[name].status.is_final)
            draft.put_run(
                dependent, status=TaskStatus.PENDING, skip_reason="", completed_at=None, waiting_for=waiting
            )


def skipped_behind(plan: Plan, runs: Mapping[str, Run], task_id: str) -> set[str]:
    """Return the tasks that were skipped because this one did not complete, directly or not."""
    frontier, found = [task_id], set[str]()
    while frontier:
        for name in plan.tasks[frontier.pop()].dependents:
            run = runs[name]
            consequence = run.skip_reason in ("dependency_failed", "dependencies_skipped")
            if run.status is TaskStatus.SKIPPED and consequence and name not in found:
                found.add(name)
                frontier.append(name)
    return found
