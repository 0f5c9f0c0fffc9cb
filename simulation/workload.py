"""What a simulation runs: workflows made from a seed, the starts and orders of their users, or a definition of yours.

Pure: the same seed makes the same work. Whatever it makes ends the same way however often agents die, so that a run
with faults can be compared with one without.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

LONG_TIMEOUT_SECONDS = 200.0
"""Longer than any fault lasts, so that only what is meant to time out does."""
SHORT_TIMEOUT_SECONDS = 2.0
NEVER_SECONDS = 50_000.0
MAX_TASKS = 7
ALL_CODES = {"retry_on_codes": ["*"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a user wants of an instance, so many seconds after its start was acknowledged."""

    kind: str
    after_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start that a user insists on. `again` sends it once more after it was acknowledged."""

    label: str
    workflow_id: str
    inputs: Mapping[str, Any]
    at: float
    by_key: bool
    again: bool
    orders: tuple[Order, ...] = ()

    @property
    def is_stopped(self) -> bool:
        """Return whether its user stops it."""
        return any(order.kind == "stop" for order in self.orders)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Definitions and starts."""

    definitions: tuple[Mapping[str, Any], ...]
    starts: tuple[Start, ...]
    executors: int = 2
    engines: int = 1


def generated(seed: int, *, over_seconds: float) -> Workload:
    """Return the workload of a seed, its starts spread over so many seconds."""
    random = Random(f"{seed}:workload")
    definitions = [_workflow(random, f"flow-{number}") for number in range(random.randint(1, 2))]
    starts = [
        _start(random, number, random.choice(definitions), over_seconds)
        for number in range(random.randint(2, 4))
    ]
    if random.random() < 0.2:
        definitions.append(_endless(random))
        starts.append(_stopped(random, len(starts), over_seconds))
    return Workload(
        definitions=tuple(definitions),
        starts=tuple(starts),
        executors=random.randint(1, 3),
        engines=random.choice((1, 1, 2, 3)),
    )


def of_definition(
    seed: int, definition: Mapping[str, Any], inputs: Mapping[str, Any], *, over_seconds: float
) -> Workload:
    """Return a few starts of a person's own definition."""
    random = Random(f"{seed}:workload")
    starts = [
        Start(
            label=f"start-{number}",
            workflow_id=str(definition["id"]),
            inputs=inputs,
            at=random.random() * over_seconds,
            by_key=random.random() < 0.5,
            again=random.random() < 0.3,
            orders=_pause(random) if random.random() < 0.2 else (),
        )
        for number in range(random.randint(2, 4))
    ]
    return Workload(
        definitions=(definition,),
        starts=tuple(starts),
        executors=random.randint(1, 3),
        engines=random.choice((1, 1, 2, 3)),
    )


def _start(random: Random, number: int, definition: Mapping[str, Any], over_seconds: float) -> Start:
    return Start(
        label=f"start-{number}",
        workflow_id=str(definition["id"]),
        inputs={"n": random.randrange(100)},
        at=random.random() * over_seconds,
        by_key=random.random() < 0.5,
        again=random.random() < 0.3,
        orders=_pause(random) if random.random() < 0.3 else (),
    )


def _pause(random: Random) -> tuple[Order, ...]:
    paused = random.random() * 5
    return (
        Order(kind="pause", after_seconds=paused),
        Order(kind="resume", after_seconds=paused + random.random() * 10),
    )


def _endless(random: Random) -> dict[str, Any]:
    """Return a workflow that only ends when it is stopped."""
    waits = _custom(random, "waits", [], {"before": NEVER_SECONDS}, effects="idempotent")
    waits["timeout_seconds"] = NEVER_SECONDS * 2
    begin = _custom(random, "begin", [], {}, effects="idempotent")
    return {"id": "endless", "global_timeout_seconds": NEVER_SECONDS * 4, "tasks": [begin, waits]}


def _stopped(random: Random, number: int, over_seconds: float) -> Start:
    return Start(
        label=f"start-{number}",
        workflow_id="endless",
        inputs={},
        at=random.random() * over_seconds,
        by_key=random.random() < 0.5,
        again=False,
        orders=(Order(kind="stop", after_seconds=random.random() * 20),),
    )


# --- workflows ----------------------------------------------------------------------------------------------


def _workflow(random: Random, workflow_id: str) -> dict[str, Any]:
    shape = random.choice(("chain", "fan", "any"))
    tasks: list[dict[str, Any]] = []
    steps: list[str] = []
    for number in range(random.randint(3, MAX_TASKS)):
        before = _dependencies(random, shape, steps)
        name = f"t{number}"
        tasks.extend(_task(random, name, before))
        steps.append(name)
    return {
        "id": workflow_id,
        "global_timeout_seconds": 20_000,
        "input_schema": {"type": "object", "properties": {"n": {"type": "integer", "default": 7}}},
        "output_schema": {
            "type": "object",
            "properties": {f"{name}_value": {"type": ["integer", "null"]} for name in steps},
        },
        "tasks": tasks,
    }


def _dependencies(random: Random, shape: str, steps: list[str]) -> list[str]:
    if not steps:
        return []
    if shape == "chain":
        return [steps[-1]]
    if shape == "fan":
        return list(steps[1:]) if len(steps) == MAX_TASKS - 1 else [steps[0]]
    return random.sample(steps, random.randint(0, min(2, len(steps))))


def _task(random: Random, name: str, before: list[str]) -> list[dict[str, Any]]:
    """Return a task of some kind, and the tasks that it can call for."""
    kinds = ("plain", "plain", "plain", "computed", "flaky", "broken", "slow", "once", "once", "checked")
    match random.choice(kinds):
        case "computed":
            return [_computed(name, before)]
        case "flaky":
            task = _custom(random, name, before, {"fails": random.randint(1, 2)}, effects="idempotent")
            return [task | {"retry_config": _retry(random)}]
        case "broken":
            task = _custom(random, name, before, {"broken": True}, effects="idempotent")
            return _with_recovery(random, task, before)
        case "slow":
            task = _custom(random, name, before, {"before": 3600.0}, effects="read")
            task |= {"timeout_seconds": SHORT_TIMEOUT_SECONDS, "retry_config": {"max_attempts": 2}}
            return _with_recovery(random, task, before)
        case "once":
            return _once(random, name, before)
        case "checked" if before:
            task = _custom(random, name, before, {}, effects="none")
            return [task | {"condition": {"expression": f"({before[0]}_value or 1) % 3 != 0"}}]
        case _:
            return [_custom(random, name, before, {}, effects=random.choice(("none", "read", "idempotent")))]


def _custom(
    random: Random, name: str, before: list[str], about: dict[str, Any], *, effects: str
) -> dict[str, Any]:
    given = [f"{{{task}_value}}" for task in before] or ["{n}" if name.startswith("t") else "x"]
    times = {"before": round(random.random() * 2, 3), "after": round(random.random(), 3)}
    return {
        "id": name,
        "type": "custom",
        "depends_on": before,
        "parameters": {"task_name": "work", "parameters": {**times, "given": given, **about}},
        "outputs": [f"{name}_value"],
        "effects": effects,
        "timeout_seconds": LONG_TIMEOUT_SECONDS,
        "schedule_to_start_seconds": LONG_TIMEOUT_SECONDS,
        "retry_config": {"max_attempts": 5, **ALL_CODES},
    }


def _computed(name: str, before: list[str]) -> dict[str, Any]:
    """Return a task that the real data engine computes."""
    values = [f"{{{task}_value}}" for task in before] or ["{n}"]
    return {
        "id": name,
        "type": "data_transform",
        "depends_on": before,
        "parameters": {
            "input_data": values,
            "transformations": [{"type": "custom", "config": {"expression": "len(data) * 7"}}],
        },
        "outputs": [f"{name}_value"],
    }


def _retry(random: Random) -> dict[str, Any]:
    strategy = random.choice(("fixed_delay", "linear_backoff", "exponential_backoff"))
    return {"strategy": strategy, "max_attempts": 6, "initial_delay_seconds": 0.5, **ALL_CODES}


def _with_recovery(random: Random, task: dict[str, Any], before: list[str]) -> list[dict[str, Any]]:
    match random.choice(("fail", "skip", "fallback")):
        case "fallback":
            stand_in = _custom(random, f"{task['id']}_else", before, {}, effects="idempotent")
            stand_in["outputs"] = [f"{task['id']}_else_value"]
            return [task | {"on_error": {"action": "fallback", "fallback": stand_in["id"]}}, stand_in]
        case action:
            return [task | {"on_error": {"action": action}}]


def _once(random: Random, name: str, before: list[str]) -> list[dict[str, Any]]:
    """Return a task that must not be repeated, and perhaps the one that finds out whether it was done."""
    unclear = random.choice(("", "", "before", "after"))
    task = _custom(random, name, before, {"unclear": unclear} if unclear else {}, effects="once")
    if unclear:
        # The default policy retries such errors, where a task may be repeated.
        del task["retry_config"]
    else:
        task["retry_config"] = {"max_attempts": 1}
    if random.random() < 0.4:
        return [task]
    asked = task["parameters"]["parameters"]
    about = {"given": asked["given"]}
    asks = {
        "id": f"{name}_asks",
        "type": "custom",
        "depends_on": before,
        "parameters": {"task_name": "work", "parameters": about},
        "effects": "idempotent",
        "retry_config": {"max_attempts": 5, **ALL_CODES},
    }
    return [task | {"reconcile": asks["id"]}, asks]
