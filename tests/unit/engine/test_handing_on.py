"""What reached an engine that lost the instance: nothing that only this engine knows is lost."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from agents.workflow_engine.driver import Driver, KeptResult
from agents.workflow_engine.inbox import stimulus_of
from agents.workflow_engine.performer import MeshPerformer
from amp.errors import AmpError, ExecutionError
from amp.replies import Answer
from orchestration import contracts, machine
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo, InboxItem
from orchestration.status import Effects, RecoveryAction, Severity
from runtime.settings import WorkflowEngineSettings
from tests.builders import START, make_plan, make_task
from tests.unit.engine.test_driver import FakeClock, FakeLog

PLAN = make_plan(
    *(make_task(name, effects=Effects.ONCE, outputs=["x"]) for name in ("ok", "bad", "never", "gone"))
)
KEPT = KeptResult("worker", "ins_1/ok/1")


@dataclass
class FakeMesh:
    """A mesh on which every attempt ends as it is told to; it keeps what is put into inboxes."""

    ending: AmpError | dict[str, Any] | None = None
    puts: list[contracts.InboxPutRequest] = field(default_factory=list)
    on_disconnected: list[Any] = field(default_factory=list)

    async def request(self, capability: str, parameters: Any, **more: Any) -> Any:
        if isinstance(parameters, contracts.InboxPutRequest):
            self.puts.append(parameters)
        return contracts.InboxPutReply(inbox_id=len(self.puts), found=True, open=True)

    async def request_full(self, capability: str, parameters: object, **more: Any) -> Answer[Any]:
        if isinstance(self.ending, AmpError):
            raise self.ending
        if self.ending is None:
            await asyncio.Event().wait()
        return Answer(self.ending, "success", {}, "worker")


class Engine:
    """A driver with the real performer, over a log that is shut until `log.open` is set."""

    def __init__(self, ending: AmpError | dict[str, Any] | None = None) -> None:
        self.clock, self.log, self.mesh = FakeClock(), FakeLog(), FakeMesh(ending)
        self.work: list[asyncio.Task[Any]] = []
        self.settled: list[KeptResult] = []
        mesh: Any = self.mesh
        self.performer = MeshPerformer(
            mesh,
            engine_id="engine",
            settings=WorkflowEngineSettings(),
            clock=self.clock,
            random=Random(1),
            spawn=self.spawn,
            count_dispatch=lambda capability: None,
            instance_of=lambda name: None,
        )
        self.step = machine.start(PLAN, "ins_1", {}, at=START, admit=True)
        self.driver = Driver(
            PLAN,
            instance=self.step.instance,
            owner="me",
            epoch=1,
            log=self.log,
            performer=self.performer,
            clock=self.clock,
            spawn=self.spawn,
            on_change=lambda driver: None,
            on_lost=lambda driver, reason: None,
        )
        self.driver.settle = self.settled.append  # type: ignore[method-assign]

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.work.append(task)
        return task

    async def rest(self) -> None:
        """Let everything happen that can happen, then end what waits."""
        for _ in range(20):
            await asyncio.sleep(0)
        for task in self.work:
            task.cancel()
        await asyncio.gather(*self.work, return_exceptions=True)

    def endings(self) -> dict[str, st.AnyStimulus]:
        """Return by task what the next owner reads in the inbox."""
        items = [
            InboxItem(inbox_id=n, instance_id="ins_1", kind=put.kind, data=put.data, at=START)
            for n, put in enumerate(self.mesh.puts, start=1)
        ]
        return {str(item.data["task_id"]): stimulus_of(item, PLAN, START, 0.5) for item in items}


def token(task_id: str) -> str:
    return f"ins_1/{task_id}/1"


OK = st.AttemptSucceeded(
    at=START, task_id="ok", token=token("ok"), outputs={"x": 7}, primary={"x": 7}, metadata={"agent_id": "w"}
)
BAD = st.AttemptErrored(
    at=START,
    task_id="bad",
    token=token("bad"),
    error=ErrorInfo(code="E", message="m", details={"d": 1}, retryable=False, retry_after_seconds=3.0),
    jitter=0.5,
)
NEVER = st.AttemptVanished(
    at=START, task_id="never", token=token("never"), agent_id="worker", reason="unwanted", begun=False
)
KNOWN_ELSEWHERE: list[tuple[st.AnyStimulus, int]] = [
    (st.AttemptVanished(at=START, task_id="gone", token=token("gone"), reason="lost"), 0),
    (st.PauseOrder(at=START), 1),
    (st.UpdateOrder(at=START, updates={"v": 1}), 2),
    (st.RecoveryAnswer(at=START, task_id="gone", action=RecoveryAction.ABORT, severity=Severity.LOW), 0),
    (st.ConditionAnswer(at=START, task_id="gone", result=True), 0),
    (st.Tick(at=START), 0),
]
"""With the number of the inbox entry that brought it: a loss is found again or waited for, orders are in the inbox
until they are consumed, questions are asked again."""


@pytest.mark.parametrize("when", ["before_the_append", "during_the_append", "let_go"])
async def test_every_ending_in_the_mailbox_of_an_engine_that_lost_the_instance_reaches_the_next(
    when: str,
) -> None:
    engine = Engine()
    await engine.driver.begin(engine.step)
    engine.log.answer = "stale_owner"
    if when != "before_the_append":
        engine.log.open.clear()
        engine.driver.post(st.UpdateOrder(at=START, updates={"first": 1}), inbox_id=9)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    engine.driver.post(OK, kept=KEPT)
    engine.driver.post(BAD)
    engine.driver.post(NEVER)
    for stimulus, inbox_id in KNOWN_ELSEWHERE:
        engine.driver.post(stimulus, inbox_id=inbox_id)
    if when == "let_go":
        engine.driver.let_go()
    engine.log.open.set()
    await engine.rest()
    assert engine.driver.lost
    assert engine.endings() == {"ok": OK, "bad": BAD, "never": NEVER}
    assert {put.dedupe_key for put in engine.mesh.puts} == {token("ok"), token("bad"), token("never")}
    assert engine.settled == [KEPT]


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ({"result": {}, "outputs": {"x": 7}}, st.AttemptSucceeded),
        (ExecutionError("broken"), st.AttemptErrored),
        (AmpError("NOT_BEGUN", "never"), st.AttemptVanished),
    ],
)
async def test_an_ending_that_comes_after_the_instance_was_lost_reaches_the_next(
    ending: AmpError | dict[str, Any], kind: type
) -> None:
    engine = Engine(ending)
    await engine.driver.begin(engine.step)
    engine.driver.let_go()
    await engine.rest()
    endings = engine.endings()
    assert set(endings) == set(PLAN.tasks)
    assert {type(stimulus) for stimulus in endings.values()} == {kind}
