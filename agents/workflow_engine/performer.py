"""How each command of the machine is performed over the mesh, and how its answer comes back as a stimulus.

Nothing is decided here. A command that is under way is not performed twice: whoever asks again gets its answer.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from random import Random
from typing import Any
from weakref import WeakValueDictionary

import structlog

from agents.workflow_engine import heartbeats
from agents.workflow_engine.attempts import Attempts, is_ending
from agents.workflow_engine.driver import Driver, KeptResult, Letter
from agents.workflow_engine.flights import Flight, Flights
from agents.workflow_engine.peers import Peer, Peers
from agents.workflow_engine.questions import Question, Questions
from agents.workflow_engine.settlements import Settlements
from amp import crash
from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import commands as cmd
from orchestration import contracts
from orchestration import stimuli as st
from orchestration.instance import Instance
from orchestration.status import UNREPEATABLE
from orchestration.surroundings import Place
from runtime.clock import Clock
from runtime.settings import WorkflowEngineSettings

MAX_DISPATCHES_IN_FLIGHT = 1000
"""Most attempts of one engine that are on the mesh at once for one capability; more wait here. What nobody offers
keeps no place from what somebody does."""
CANCEL_TIMEOUT_SECONDS = 5.0

logger = structlog.get_logger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class MeshPerformer:
    """Performs commands with requests to other agents.

    Args:
        instance_of: Returns an instance as it is stored, when this engine drives it or saw it end.
    """

    def __init__(
        self,
        mesh: MeshClient,
        *,
        engine_id: str,
        settings: WorkflowEngineSettings,
        clock: Clock,
        random: Random,
        spawn: Spawn,
        count_dispatch: Callable[[str], None],
        instance_of: Callable[[str], Instance | None],
    ) -> None:
        self._mesh = mesh
        self._clock = clock
        self._spawn = spawn
        self._count_dispatch = count_dispatch
        self._instance_of = instance_of
        self._slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._flights = Flights()
        self._asked: dict[tuple[type, str, str], Question] = {}
        self._peers = Peers(mesh, self._on_gone)
        self._attempts = Attempts(
            mesh,
            engine_id=engine_id,
            clock=clock,
            random=random,
            generation=lambda: self._peers.generation,
        )
        self._questions = Questions(mesh, clock, timeout_seconds=settings.question_timeout_seconds)
        self._settlements = Settlements(mesh, spawn)

    async def listen(self) -> None:
        """Begin to keep account of who is on the mesh."""
        self._mesh.on_disconnected.append(self._disconnected)
        await self._peers.listen()

    def perform(self, driver: Driver, command: cmd.Command) -> None:
        """Begin to perform a command, unless it is under way; its outcome is posted to the driver."""
        match command:
            case cmd.Dispatch():
                self._begin_flight(driver, command.task_id, command.token, command.attempt, send=True)
            case cmd.AwaitResult():
                attempt = driver.instance.runs[command.task_id].attempt
                self._begin_flight(driver, command.task_id, command.token, attempt, send=False)
            case cmd.AskCondition() | cmd.AskRecovery():
                self._begin_question(driver, command)
            case cmd.CancelAttempt():
                self._spawn(self._cancel(command.token), f"cancel {driver.id}")

    def settle(self, kept: KeptResult) -> None:
        """Have the agent told that a result which it keeps is recorded, or will never be wanted."""
        self._settlements.add(kept)

    def hand_on(self, driver: Driver, letters: Sequence[Letter]) -> None:
        """Put results that this engine cannot record into the inbox, for the engine that owns the instance."""
        for letter in letters:
            stimulus = letter.stimulus
            if driver.committed.status.is_final:
                if letter.kept is not None:
                    self.settle(letter.kept)
            elif not letter.inbox_id and is_ending(stimulus):
                work = self._attempts.hand_on(driver, stimulus, letter.kept)
                self._spawn(work, f"hand on {stimulus.token}")

    def place_of(self, token: str) -> Place | None:
        """Return where an attempt is as far as this engine alone knows: held back here, or its result awaited."""
        return self._flights.place_of(token)

    def heartbeat(
        self, request: contracts.TaskHeartbeatRequest, stored: Mapping[str, Instance]
    ) -> contracts.TaskHeartbeatReply:
        """Take signs of life, and return the attempts whose result is not wanted any more, or that must not begin.

        Args:
            stored: The instances of the attempts that ask whether they may begin, as far as they exist.
        """
        self._flights.hear(request.beats, self._clock.now())
        unwanted = heartbeats.unwanted(request.beats, self._instance_of, stored)
        return contracts.TaskHeartbeatReply(unwanted=unwanted)

    # --- attempts --------------------------------------------------------------------------------------

    def _begin_flight(self, driver: Driver, task_id: str, token: str, attempt: int, *, send: bool) -> None:
        flight = self._flights.by_token.get(token)
        if flight is not None:
            flight.driver = driver
            return
        flight = Flight(driver, driver.plan.tasks[task_id], token, attempt)
        self._flights.by_token[token] = flight
        flight.work = self._spawn(self._fly(flight, send=send), f"attempt {token}")

    async def _fly(self, flight: Flight, *, send: bool) -> None:
        watched = flight.task.heartbeat_seconds > 0
        watch = self._spawn(self._watch(flight), f"heartbeat {flight.token}") if watched else None
        try:
            if send:
                await self._send(flight)
            else:
                await self._attempts.await_result(flight, whole_time=True)
        finally:
            del self._flights.by_token[flight.token]
            if watch is not None:
                watch.cancel()

    async def _send(self, flight: Flight) -> None:
        capability = flight.task.capability
        slots = self._slots.setdefault(capability, asyncio.Semaphore(MAX_DISPATCHES_IN_FLIGHT))
        flight.held = slots.locked()
        async with slots:
            if flight.held:
                flight.held = False
                if not flight.is_wanted:
                    return
            self._count_dispatch(capability)
            await self._attempts.send(flight)

    async def _watch(self, flight: Flight) -> None:
        """Post the loss of an attempt whose agent is silent. What it may still answer is taken all the same."""
        await heartbeats.watch(flight, self._mesh, self._clock)
        seconds = flight.task.heartbeat_seconds
        self._attempts.lost(flight, "", f"no sign of life for {seconds:g} s", may_be_at_work=True)

    async def _disconnected(self) -> None:
        """What nobody wants any more is not sent again over the next connection."""
        for flight in self._flights.unwanted():
            _end(flight)

    def _on_gone(self, gone: Mapping[str, Peer], generation: int) -> None:
        """A router was lost together with these processes: what one of them may have had is lost."""
        for flight in list(self._flights.by_token.values()):
            agents = [name for name, peer in gone.items() if flight.task.capability in peer.capabilities]
            if not agents or not 0 <= flight.generation <= generation:
                continue
            if flight.task.effects not in UNREPEATABLE:
                reason = "the router and the agent were lost together"
                self._attempts.lost(flight, agents[0], reason, may_be_at_work=True)
                _end(flight)
            elif flight.cut_short is not None:
                flight.cut_short.set()

    async def _cancel(self, token: str) -> None:
        """Tell every executor that an attempt's result is no longer wanted."""
        try:
            for number, agent in enumerate(
                await self._mesh.discover(capabilities=[contracts.TASK_CANCEL.id])
            ):
                if number:
                    crash.reach("engine.cancel.between")
                await self._mesh.request(
                    contracts.TASK_CANCEL.id,
                    contracts.TaskCancelRequest(token=token),
                    agent_id=str(agent["identity"]["id"]),
                    timeout_seconds=CANCEL_TIMEOUT_SECONDS,
                )
        except AmpError as error:
            logger.info("cancel_not_delivered", token=token, code=error.code)

    # --- questions -------------------------------------------------------------------------------------

    def _begin_question(self, driver: Driver, command: cmd.AskCondition | cmd.AskRecovery) -> None:
        key = (type(command), driver.id, command.task_id)
        question = self._asked.get(key)
        if question is not None:
            question.driver = driver
            return
        self._asked[key] = Question(driver, command.task_id)
        self._spawn(self._ask(key, command), f"{type(command).__name__} {driver.id}")

    async def _ask(self, key: tuple[type, str, str], command: cmd.AskCondition | cmd.AskRecovery) -> None:
        question = self._asked[key]
        answer: st.AnyStimulus | None
        try:
            if isinstance(command, cmd.AskCondition):
                answer = await self._questions.ask_condition(question)
            else:
                answer = await self._questions.ask_recovery(question, command.error)
        finally:
            del self._asked[key]
        if answer is not None:
            question.driver.post(answer)


def _end(flight: Flight) -> None:
    if flight.work is not None:
        flight.work.cancel()
