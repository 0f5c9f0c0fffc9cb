"""The workflows that are run while processes die: every construct, and for each input one possible end.

`expected_ends` runs each of them once without any fault, in one process; the checker compares with that.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import handlers
from tests.mesh import running_mesh

HANDLERS_PATH = Path(handlers.__file__)
VARIANTS = 4
"""Inputs of every workflow: {"n": 0} to {"n": VARIANTS - 1}."""
ONCE_SECONDS = 10
"""Longest time of an effect that must happen once: so long an engine waits for an attempt of its predecessor."""
STOPPED = "stopped"
"""The workflow whose instances the harness stops: how far they came until then is chance."""
PARCEL = "parcel"
"""The workflow with an effect that takes long enough to be interrupted and must happen once."""
PAUSED = "paused"
"""The workflow whose instances the harness pauses and resumes."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """How an instance must end. `tasks` is None where only the status is certain."""

    status: str
    outputs: Mapping[str, Any]
    tasks: Mapping[str, tuple[str, Mapping[str, Any]]] | None


@dataclass(frozen=True, slots=True)
class Start:
    """One instance to start. `key` is its Idempotency-Key."""

    workflow_id: str
    n: int
    key: str


def custom(task_id: str, handler: str, *depends_on: str, **more: Any) -> Object:
    """Return a task that one of our handlers performs; its output `value` is named after the task."""
    parameters = {"value": "{n}", **more.pop("with_", {})}
    return {
        "id": task_id,
        "type": "custom",
        "effects": "idempotent",
        "parameters": {"task_name": handler, "parameters": parameters},
        "depends_on": list(depends_on),
        "outputs": [f"{task_id}_value"],
        **more,
    }


def transform(task_id: str, expression: str, *depends_on: str) -> Object:
    """Return a task that computes; its output is named after the task."""
    return {
        "id": task_id,
        "type": "data_transform",
        "parameters": {
            "input_data": "{n}",
            "transformations": [{"type": "custom", "config": {"expression": expression}}],
        },
        "depends_on": list(depends_on),
        "outputs": [f"{task_id}_value"],
    }


def definition(workflow_id: str, tasks: list[Object], *outputs: str) -> Object:
    """Return a workflow that returns these variables."""
    return {
        "id": workflow_id,
        "input_schema": {"type": "object", "properties": {"n": {"type": "integer", "default": 0}}},
        "output_schema": {"type": "object", "properties": {name: {} for name in outputs}},
        "global_retry_config": {
            "strategy": "fixed_delay",
            "max_attempts": 4,
            "initial_delay_seconds": 0.1,
            "retry_on_codes": ["NETWORK_ERROR", "TIMEOUT"],
        },
        "tasks": tasks,
    }


def _chain() -> Object:
    links = [custom("t0", "effect")]
    links += [
        custom(f"t{i}", "effect", f"t{i - 1}", with_={"value": f"{{t{i - 1}_value + 1}}", "before": 0.01})
        for i in range(1, 8)
    ]
    return definition("chain", links, "t7_value")


def _fan() -> Object:
    arms = [
        custom(f"w{i}", "effect", "source", with_={"value": f"{{n * {i}}}", "after": 0.02}) for i in range(6)
    ]
    total = " + ".join(f"w{i}_value" for i in range(6))
    join = transform("join", total, *(f"w{i}" for i in range(6)))
    return definition("fan", [transform("source", "data * 10"), *arms, join], "join_value")


def _branch() -> Object:
    check = {
        "id": "check",
        "type": "validation",
        "parameters": {
            "data": {"n": "{n}"},
            "rules": [{"type": "range", "field": "n", "config": {"max": 2}}],
        },
        "outputs": ["valid"],
    }
    level = {
        "id": "level",
        "type": "decision",
        "parameters": {
            "tree": {"condition": "n > 1", "true_branch": "high", "false_branch": "low"},
            "context": {"n": "{n}"},
        },
        "outputs": ["level_value"],
    }
    large = custom("large", "effect", "check", condition={"expression": "n >= 2"})
    small = custom("small", "effect", "check", condition={"expression": "n < 2", "condition_type": "simple"})
    needs = custom("needs", "effect", "large", condition={"required_outputs": ["large_value"]})
    after = custom("after", "effect", "large", "small", "level")
    return definition("branch", [check, level, large, small, needs, after], "level_value", "after_value")


def _retries() -> Object:
    backoff = {"strategy": "exponential_backoff", "max_attempts": 5, "initial_delay_seconds": 0.05}
    return definition(
        "retries",
        [
            custom("second", "flaky", with_={"succeeds_at": 2}),
            custom("third", "flaky", with_={"succeeds_at": 3}, retry_config=backoff),
            custom("both", "effect", "second", "third"),
            transform("sum", "second_value + third_value", "both"),
        ],
        "sum_value",
    )


def _recovery() -> Object:
    bad = {"code": "RESOURCE_NOT_FOUND"}
    return definition(
        "recovery",
        [
            custom("first", "broken", with_=bad, on_error={"action": "fallback", "fallback": "stand_in"}),
            custom("stand_in", "effect", with_={"value": "{n + 100}"}),
            custom("left_out", "broken", with_=bad, on_error={"action": "skip"}),
            custom("beside", "effect"),
            custom("after", "effect", "left_out", "beside"),
            custom(
                "judged",
                "broken",
                with_={"code": "VALIDATION_ERROR"},
                on_error={"action": "auto"},
            ),
            custom("last", "effect", "first", with_={"value": "{first_value}"}),
        ],
        "last_value",
    )


def _failing() -> Object:
    return definition(
        "failing",
        [
            custom("good", "effect"),
            custom("bad", "broken", "good", with_={"code": "RESOURCE_NOT_FOUND"}),
            custom("never", "effect", "bad"),
            custom("aside", "effect", with_={"before": 0.05}),
        ],
        "good_value",
    )


def _once() -> Object:
    def charge(task_id: str, after: str, seconds: float) -> list[Object]:
        return [
            custom(
                task_id,
                "once",
                after,
                with_={"before": seconds, "after": seconds},
                effects="once",
                timeout_seconds=ONCE_SECONDS,
                reconcile=f"find_{task_id}",
                outputs=["receipt"],
            ),
            custom(f"find_{task_id}", "look", with_={"task": task_id}, effects="read", outputs=[]),
        ]

    return definition(
        "once",
        [
            custom("cart", "effect"),
            *charge("charge", "cart", 0.02),
            *charge("ship", "charge", 0.05),
            custom("mail", "effect", "ship", with_={"value": "{receipt}"}),
        ],
        "receipt",
        "mail_value",
    )


def _parcel() -> Object:
    send = custom(
        "send",
        "once",
        with_={"before": 0.7, "after": 0.3},
        effects="once",
        timeout_seconds=ONCE_SECONDS,
        heartbeat_seconds=3,
        reconcile="find_send",
        outputs=["receipt"],
    )
    find = custom("find_send", "look", with_={"task": "send"}, effects="read", outputs=[])
    return definition(
        PARCEL, [send, find, custom("tell", "effect", "send", with_={"value": "{receipt}"})], "receipt"
    )


def _files() -> Object:
    def work(task_id: str, after: list[str], **parameters: Any) -> Object:
        return {
            "id": task_id,
            "type": "file_operation",
            "effects": "idempotent",
            "parameters": parameters,
            "depends_on": after,
        }

    path = "runs/{workflow_instance_id}.json"
    return definition(
        "files",
        [
            work("write", [], operation="write", file_path=path, content={"n": "{n}"}),
            work("copy", ["write"], operation="copy", file_path=path, destination=path + ".copy"),
            {**work("read", ["copy"], operation="read", file_path=path + ".copy"), "outputs": ["content"]},
            custom("done", "effect", "read", with_={"value": "{content}"}),
        ],
        "content",
    )


def _process() -> Object:
    def run(task_id: str, command: str, after: list[str], args: list[str]) -> Object:
        return {
            "id": task_id,
            "type": "subprocess",
            "effects": "idempotent",
            "parameters": {"command": command, "args": args},
            "depends_on": after,
            "outputs": [f"{task_id}_value"],
        }

    return definition(
        "process",
        [
            run("say", "echo", [], ["n={n}"]),
            run("wait", "sleep", [], ["0.2"]),
            custom("heard", "effect", "say", "wait", with_={"value": "{say_value}"}),
            transform("length", "len(heard_value)", "heard"),
        ],
        "length_value",
    )


def _beating() -> Object:
    return definition(
        "beating",
        [
            custom("long", "slow", with_={"before": 1.2}, heartbeat_seconds=2),
            custom("short", "slow", with_={"before": 0.2}, heartbeat_seconds=2),
            custom("after", "effect", "long", "short"),
        ],
        "after_value",
    )


def _overdue() -> Object:
    retry = {"strategy": "fixed_delay", "max_attempts": 2, "initial_delay_seconds": 0.1}
    return definition(
        "overdue",
        [
            custom(
                "endless",
                "slow",
                with_={"before": 60},
                timeout_seconds=0.3,
                retry_config=retry,
                on_error={"action": "skip"},
            ),
            custom("beside", "effect"),
            custom("after", "effect", "endless", "beside"),
        ],
        "after_value",
    )


def _keys() -> Object:
    return definition(
        "keys",
        [
            custom("one", "deduplicated", with_={"after": 0.02}),
            custom("two", "deduplicated", "one", with_={"value": "{one_value + 1}"}),
            custom("three", "deduplicated", "two", with_={"value": "{two_value + 1}", "before": 0.02}),
        ],
        "three_value",
    )


def _paused() -> Object:
    steps = [custom("s0", "effect", with_={"after": 0.05})]
    steps += [custom(f"s{i}", "effect", f"s{i - 1}", with_={"after": 0.05}) for i in range(1, 6)]
    return definition(PAUSED, steps, "s5_value")


def _stopped() -> Object:
    waits = [custom(f"wait{i}", "slow", "begin", with_={"before": 300}) for i in range(3)]
    return definition(STOPPED, [custom("begin", "effect"), *waits], "begin_value")


DEFINITIONS: tuple[Object, ...] = (
    _chain(),
    _fan(),
    _branch(),
    _retries(),
    _recovery(),
    _failing(),
    _once(),
    _parcel(),
    _files(),
    _process(),
    _beating(),
    _overdue(),
    _keys(),
    _paused(),
    _stopped(),
)
TASKS_OF: Mapping[str, int] = {each["id"]: len(each["tasks"]) for each in DEFINITIONS}
COMMON = ("chain", "fan", "chain", "fan", "chain", "fan")
"""In a long run these come more often than the others, as chains and fans do in life."""


def one_of_each(label: str) -> list[Start]:
    """Return a start of every workflow; labels make the keys of different calls differ."""
    return [
        Start(each["id"], number % VARIANTS, f"{label}-{each['id']}")
        for number, each in enumerate(DEFINITIONS)
    ]


def mixed(count: int, label: str) -> Iterable[Start]:
    """Yield `count` starts, every workflow again and again."""
    cycle = [*(each["id"] for each in DEFINITIONS), *COMMON]
    for number in range(count):
        place, turn = number % len(cycle), number // len(cycle)
        yield Start(cycle[place], (turn + place) % VARIANTS, f"{label}-{number}")


async def expected_ends(folder: Path) -> dict[tuple[str, int], End]:
    """Return by workflow and n how an instance ends when nothing goes wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get(handlers.VARIABLE)
    os.environ[handlers.VARIABLE] = str(folder / "ledger")
    ends: dict[tuple[str, int], End] = {}
    executor = {
        "custom_handlers_path": str(HANDLERS_PATH),
        "subprocess": {"allowed_commands": ["echo", "sleep"]},
    }
    try:
        async with running_mesh(folder, task_executor=executor) as mesh:
            started: list[tuple[str, int, str]] = []
            for each in DEFINITIONS:
                workflow_id = await mesh.define(each)
                if workflow_id != STOPPED:
                    started += [
                        (workflow_id, n, await mesh.start(workflow_id, {"n": n})) for n in range(VARIANTS)
                    ]
            for workflow_id, n, instance_id in started:
                document = await mesh.until(instance_id)
                ends[workflow_id, n] = End(
                    document.instance["status"],
                    document.instance["outputs"],
                    {task_id: (task["status"], task["outputs"]) for task_id, task in document.tasks.items()},
                )
    finally:
        if before is None:
            del os.environ[handlers.VARIABLE]
        else:
            os.environ[handlers.VARIABLE] = before
    ends.update({(STOPPED, n): End("cancelled", {}, None) for n in range(VARIANTS)})
    return ends
