"""Values for tests: give only what the test is about."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from orchestration import machine
from orchestration import stimuli as st
from orchestration.commands import AskCondition, AskRecovery, Dispatch
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import Condition, OnError, Plan, TaskPlan
from orchestration.instance import Instance
from orchestration.invariants import check_history
from orchestration.retry import RetryPolicy, RetryStrategy
from orchestration.status import Effects, RecoveryAction, Severity

START = datetime(2026, 1, 15, 10, 0, tzinfo=UTC)
NO_RETRY = RetryPolicy(strategy=RetryStrategy.NONE, max_attempts=1)


def at(seconds: float) -> datetime:
    """Return a time so many seconds after the start."""
    return START + timedelta(seconds=seconds)


def make_task(
    id: str,
    *depends_on: str,
    outputs: Iterable[str] | None = None,
    condition: Condition | None = None,
    retry: RetryPolicy = NO_RETRY,
    effects: Effects = Effects.NONE,
    effects_declared: bool = True,
    on_error: OnError | None = None,
    timeout_seconds: float = 300.0,
    is_fallback: bool = False,
    is_reconcile: bool = False,
    reconcile: str = "",
    named_codes: Iterable[str] = (),
    schedule_to_start_seconds: float = 3600.0,
    heartbeat_seconds: float = 0.0,
    total_timeout_seconds: float = 0.0,
) -> TaskPlan:
    """Return a task; by default it runs at once, retries nothing and has one output named after itself."""
    return TaskPlan(
        id=id,
        name=id,
        type="data_transform",
        agent_id=None,
        capability="task-data-transform",
        parameters={},
        has_templates=False,
        references=frozenset(),
        whole_context=False,
        depends_on=depends_on,
        dependents=(),
        condition=condition,
        timeout_seconds=timeout_seconds,
        retry=retry,
        named_codes=frozenset(named_codes),
        output_names=tuple(outputs) if outputs is not None else (f"{id}_out",),
        effects=effects,
        effects_declared=effects_declared,
        on_error=on_error or OnError(),
        is_fallback=is_fallback,
        is_reconcile=is_reconcile,
        reconcile=reconcile,
        schedule_to_start_seconds=schedule_to_start_seconds,
        heartbeat_seconds=heartbeat_seconds,
        total_timeout_seconds=total_timeout_seconds,
    )


def make_plan(
    *tasks: TaskPlan,
    global_timeout_seconds: float = 3600.0,
    output_schema: dict[str, Any] | None = None,
    output_names: tuple[str, ...] = (),
) -> Plan:
    """Return a plan of these tasks, its graph indexed."""
    dependents: dict[str, list[str]] = {task.id: [] for task in tasks}
    for task in tasks:
        for name in task.depends_on:
            dependents[name].append(task.id)
    indexed = {
        task.id: msgspec.structs.replace(task, dependents=tuple(dependents[task.id])) for task in tasks
    }
    return Plan(
        workflow_id="flow",
        version="1.0",
        name="Flow",
        definition_hash="hash",
        global_timeout_seconds=global_timeout_seconds,
        tasks=indexed,
        declared=frozenset(name for task in tasks for name in task.output_names),
        input_schema=None,
        output_schema=output_schema,
        output_names=output_names,
    )


class Play:
    """Drives the pure machine by hand and keeps everything that it said."""

    def __init__(self, plan: Plan, inputs: dict[str, Any] | None = None, *, admit: bool = True) -> None:
        self.plan = plan
        self.now = 0.0
        step = machine.start(plan, "ins_1", inputs or {}, at=at(0), admit=admit)
        self.instance: Instance = step.instance
        self.events = list(step.events)
        self.commands = list(step.commands)

    def send(self, stimulus: st.AnyStimulus) -> machine.Step:
        """Let something reach the instance; check that the facts alone rebuild it and break no invariant."""
        step = machine.advance(self.plan, self.instance, stimulus)
        self.instance = step.instance
        self.events.extend(step.events)
        self.commands.extend(step.commands)
        assert machine.replay(self.plan, self.instance.id, self.events) == self.instance
        assert check_history(self.plan, self.instance.id, self.events) == []
        return step

    def later(self, seconds: float) -> datetime:
        """Let time pass and return the time."""
        self.now += seconds
        return at(self.now)

    def token(self, task_id: str) -> str:
        """Return the token of the task's current attempt."""
        return self.instance.runs[task_id].token

    def succeed(self, task_id: str, **outputs: Any) -> machine.Step:
        """Let the current attempt of a task end well."""
        given = outputs or {f"{task_id}_out": task_id}
        return self.send(
            st.AttemptSucceeded(at=self.later(1), task_id=task_id, token=self.token(task_id), outputs=given)
        )

    def fail(self, task_id: str, code: str = "BROKEN", *, jitter: float = 0.5, **error: Any) -> machine.Step:
        """Let the current attempt of a task end badly."""
        info = ErrorInfo(code=code, message=f"{code} happened", **error)
        return self.send(
            st.AttemptErrored(
                at=self.later(1), task_id=task_id, token=self.token(task_id), error=info, jitter=jitter
            )
        )

    def decide(self, task_id: str, action: RecoveryAction, delay_seconds: float = 0.0) -> machine.Step:
        """Answer for the error handler."""
        return self.send(
            st.RecoveryAnswer(
                at=self.later(1),
                task_id=task_id,
                action=action,
                severity=Severity.MEDIUM,
                delay_seconds=delay_seconds,
            )
        )

    def lose(self, task_id: str, reason: str = "gone") -> machine.Step:
        """Let the agent that has the current attempt of a task disappear."""
        return self.send(
            st.AttemptVanished(at=self.later(1), task_id=task_id, token=self.token(task_id), reason=reason)
        )

    def tick(self, seconds: float) -> machine.Step:
        """Let time pass and tell the instance."""
        return self.send(st.Tick(at=self.later(seconds)))

    def statuses(self) -> dict[str, str]:
        """Return where each task stands."""
        return {task_id: run.status.value for task_id, run in self.instance.runs.items()}

    def dispatched(self) -> list[str]:
        """Return the ids of the tasks dispatched so far, in order, repeats included."""
        return [command.task_id for command in self.commands if isinstance(command, Dispatch)]

    def asked(self) -> list[str]:
        """Return the ids of the tasks whose condition or recovery was asked about."""
        return [
            command.task_id for command in self.commands if isinstance(command, AskCondition | AskRecovery)
        ]
