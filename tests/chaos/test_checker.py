"""The checker finds what it is there to find: a sound store passes, and each way to break one is told apart."""

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from orchestration import events as ev
from orchestration.definition.compile import load_plan
from tests.builders import at
from tests.chaos import handlers, workload
from tests.chaos.checker import (
    Facts,
    Store,
    check_leftovers,
    check_store,
    check_totals,
    read_ledger,
    recorded_twice,
)
from tests.chaos.workload import End, Start
from tests.mesh import running_mesh

RUN = ("once", "recovery")
Break = Callable[["Kept"], None]


@dataclass(slots=True)
class Kept:
    """What a run without faults left: the store's file, what is known of it, one instance of each workflow of RUN."""

    database: Path
    facts: Facts
    instances: list[str]

    def change(self, statement: str, *values: object) -> None:
        """Change the store behind everybody's back."""
        with closing(sqlite3.connect(self.database)) as database, database:
            database.execute(statement, values)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sound(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kept]:
    folder = tmp_path_factory.mktemp("sound")
    ledger = folder / "ledger"
    settings = {"custom_handlers_path": str(workload.HANDLERS_PATH)}
    asked: dict[str, Start] = {}
    ends: dict[tuple[str, int], End] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(handlers.VARIABLE, str(ledger))
        async with running_mesh(folder, task_executor=settings) as mesh:
            for each in workload.DEFINITIONS:
                if each["id"] in RUN:
                    instance_id = await mesh.start(await mesh.define(each), {"n": 1})
                    document = await mesh.until(instance_id)
                    tasks = {name: (task["status"], task["outputs"]) for name, task in document.tasks.items()}
                    asked[instance_id] = Start(each["id"], 1, "key")
                    ends[each["id"], 1] = End("completed", document.instance["outputs"], tasks)
    facts = Facts(asked=asked, ends=ends, effects=read_ledger(ledger))
    yield Kept(folder / "data" / "workflow_state.db", facts, list(asked))


@pytest.fixture
def kept(sound: Kept, tmp_path: Path) -> Kept:
    return replace(sound, database=Path(shutil.copy(sound.database, tmp_path)))


def lose(kept: Kept) -> None:
    kept.change("DELETE FROM instances WHERE instance_id = ?", kept.instances[0])
    kept.change("DELETE FROM events WHERE instance_id = ?", kept.instances[0])


def lose_the_row(kept: Kept) -> None:
    kept.change("DELETE FROM instances WHERE instance_id = ?", kept.instances[0])


def leave_unfinished(kept: Kept) -> None:
    kept.change("DELETE FROM events WHERE instance_id = ? AND type = 'workflow.completed'", kept.instances[0])


def record_twice(kept: Kept) -> None:
    """Let a completion be followed by itself, before the end."""
    (name, *_) = kept.instances
    completed = (
        "SELECT {} FROM events WHERE instance_id = ? AND type = 'task.completed' ORDER BY seq DESC LIMIT 1"
    )
    with closing(sqlite3.connect(kept.database)) as database, database:
        (seq,) = database.execute(completed.format("seq"), (name,)).fetchone()
        kind, at, data = database.execute(completed.format("type, at, data"), (name,)).fetchone()
        for moved in (1_000, 1 - 1_000):
            database.execute(
                "UPDATE events SET seq = seq + ? WHERE instance_id = ? AND seq > ?", (moved, name, seq)
            )
        database.execute(
            "INSERT INTO events (instance_id, seq, type, at, data) VALUES (?, ?, ?, ?, ?)",
            (name, seq + 1, kind, at, data),
        )


def skip_a_number(kept: Kept) -> None:
    kept.change("DELETE FROM events WHERE instance_id = ? AND seq = 3", kept.instances[0])


def falsify_the_row(kept: Kept) -> None:
    kept.change("UPDATE instances SET status = 'failed' WHERE instance_id = ?", kept.instances[0])


def fill_an_inbox(kept: Kept) -> None:
    kept.change("INSERT INTO inbox (instance_id, kind, data, at) VALUES ('i', 'pause', '{}', 0)")


def start_unasked(kept: Kept) -> None:
    asked = {name: start for name, start in kept.facts.asked.items() if name != kept.instances[0]}
    kept.facts = replace(kept.facts, asked=asked)


def expect_something_else(kept: Kept) -> None:
    end = kept.facts.ends["recovery", 1]
    kept.facts = replace(
        kept.facts, ends={**kept.facts.ends, ("recovery", 1): replace(end, outputs={"x": 1})}
    )


def repeat_an_effect(kind: str) -> Break:
    def repeat(kept: Kept) -> None:
        effects = {name: list(done) for name, done in kept.facts.effects.items()}
        every = [effect for done in effects.values() for effect in done]
        chosen = next(effect for effect in every if effect.kind == kind)
        effects[chosen.instance].append(chosen)
        kept.facts = replace(kept.facts, effects=effects)

    return repeat


def forget_the_effects(kept: Kept) -> None:
    kept.facts = replace(kept.facts, effects={})


def test_a_sound_store_passes(kept: Kept) -> None:
    with Store(kept.database) as store:
        verdict = check_store(store, kept.facts)
    assert verdict.violations == []
    assert verdict.counts["instances"] == len(RUN)
    assert verdict.counts["effects"] > len(RUN)


@pytest.mark.parametrize(
    ("break_it", "kind"),
    [
        (lose, "lost"),
        (lose_the_row, "broken"),
        (leave_unfinished, "stuck"),
        (record_twice, "recorded_twice"),
        (skip_a_number, "broken"),
        (falsify_the_row, "broken"),
        (fill_an_inbox, "broken"),
        (start_unasked, "broken"),
        (expect_something_else, "differing"),
        (repeat_an_effect("once"), "done_twice"),
        (repeat_an_effect("idempotent"), "broken"),
        (forget_the_effects, "broken"),
    ],
)
def test_each_kind_of_damage_is_found(kept: Kept, break_it: Break, kind: str) -> None:
    break_it(kept)
    with Store(kept.database) as store:
        verdict = check_store(store, kept.facts)
    assert verdict.counts[kind] > 0, verdict.violations


def test_a_reconcile_task_ends_once_each_time_that_it_is_called_for() -> None:
    called = ev.TaskReconciling(at=at(0), task_id="send", reconcile="find")
    ended = ev.TaskCompleted(at=at(0), task_id="find", attempt=1, outputs={})
    assert recorded_twice([called, ended, called, ended]) == []
    assert recorded_twice([called, ended, ended]) == ["task find ended twice"]


def test_totals_that_differ_from_the_store_are_told(kept: Kept) -> None:
    right = {
        name: {
            "started_executions": 1,
            "successful_executions": 1,
            "failed_executions": 0,
            "cancelled_executions": 0,
        }
        for name in RUN
    }
    with Store(kept.database) as store:
        assert check_totals(store, right) == []
        assert len(check_totals(store, {**right, "once": {**right["once"], "failed_executions": 1}})) == 1


def test_spooled_results_and_unfinished_files_are_left_behind(tmp_path: Path) -> None:
    (tmp_path / "spool" / "agent").mkdir(parents=True)
    (tmp_path / "kept.json").write_text("{}")
    assert check_leftovers(tmp_path) == []
    (tmp_path / "spool" / "agent" / "lock").write_text("")
    (tmp_path / "spool" / "agent" / "token.result").write_text("{}")
    (tmp_path / "half.tmp").write_text("")
    assert len(check_leftovers(tmp_path)) == 2


def test_every_definition_of_the_workload_has_a_plan() -> None:
    for each in workload.DEFINITIONS:
        assert load_plan(json.loads(json.dumps(each))).workflow_id == each["id"]
