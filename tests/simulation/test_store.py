"""The store that outlives the state manager: what was committed stays, and only that."""

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from agents.state_manager.store_clock import StoreClock
from amp import crash
from orchestration.contracts import DefinitionGetRequest, DefinitionPutRequest, DefinitionRecord
from simulation.clock import MachineClock
from simulation.lives import CURRENT, Killed, Life
from simulation.loop import VirtualLoop
from simulation.store import Plant, SimulatedStore

ANSWERED, SILENT = "created", "nobody was answered"


def life_of_a_write(plant: Plant, dies: Callable[[str], bool]) -> tuple[str, bool]:
    """Return what a writer was answered whose process dies at the first place that `dies` names, and what is kept."""
    loop, store, life = VirtualLoop(), SimulatedStore(Random(1), plant), Life("state-manager#1")
    answers: list[str] = []

    def reach(point: str) -> None:
        if CURRENT.get() is life and dies(point):
            life.kill()
            raise Killed

    async def write() -> None:
        definition = DefinitionRecord(
            workflow_id="flow", version="1", name="Flow", hash="h", content={}, source="", format="yaml"
        )
        reply = await store.put_definition(DefinitionPutRequest(definition=definition))
        answers.append(reply.status)

    async def live() -> bool:
        clock = MachineClock(loop)
        store.open_for(StoreClock(clock))
        await store.start()
        life.enter(loop.create_task, write())
        await asyncio.sleep(5)
        store.open_for(StoreClock(clock))
        await store.start()
        return await store.get_definition(DefinitionGetRequest(workflow_id="flow")) is not None

    crash.on_reach(reach)
    try:
        kept = loop.run_until_complete(live())
    finally:
        crash.on_reach(None)
        loop.end([life])
    return (answers[0] if answers else SILENT), kept


@pytest.mark.parametrize(
    ("point", "answer", "kept"),
    [
        ("", ANSWERED, True),
        ("store.request.queued", SILENT, False),
        ("store.commit.before", SILENT, False),
        ("store.commit.after", SILENT, True),
    ],
)
def test_a_write_is_answered_after_its_commit_and_kept_from_then_on(
    point: str, answer: str, kept: bool
) -> None:
    assert life_of_a_write("", point.__eq__) == (answer, kept)


def test_the_planted_bug_answers_what_is_not_kept() -> None:
    assert life_of_a_write("answer-before-commit", "store.commit.before".__eq__) == (ANSWERED, False)
    assert life_of_a_write("answer-before-commit", lambda point: False) == (ANSWERED, True)
