"""Executors as real processes, killed with -9 at chosen places: no finished work is lost, no effect happens twice.

The test plays the engine and the state manager; two tests at the end have real ones.
"""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.errors import AmpError
from amp.transports.websocket import WebSocketTransport
from orchestration import contracts
from orchestration.contracts import Contract, schema_of
from orchestration.status import Effects
from tests.integration.test_executor_subprocess import alive, eventually
from tests.processes import JOIN_SECONDS, Processes, running_processes

pytestmark = pytest.mark.processes

HANDLERS = '''
import json, os
from pathlib import Path

LEDGER = Path(os.environ["LEDGER"])

def effect(params, context):
    """An effect that must happen once: a line in a file, there for good when this returns."""
    with LEDGER.open("a") as file:
        file.write(json.dumps({"key": context["idempotency_key"]}) + "\\n")
        file.flush()
        os.fsync(file.fileno())
    return {"done": True}

def deadly(params, context):
    os.kill(os.getpid(), 9)

HANDLERS = {"effect": effect, "deadly": deadly}
'''
CUSTOM = contracts.TASK_CUSTOM.id
EFFECT = {"task_name": "effect"}


class Scene:
    """Executors as processes, and an engine with an inbox that the test looks into."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.folder = processes.folder
        self.inbox: list[contracts.InboxPutRequest] = []
        self.unwanted: set[str] = set()
        offers = [
            offer(contracts.INBOX_PUT, self._put),
            offer(contracts.TASK_HEARTBEAT, self._hear),
        ]
        self.engine = MeshClient(
            AgentIdentity(id="engine", session_id="s1"),
            WebSocketTransport(processes.router_url),
            offers=offers,
            random=Random(2),
        )

    async def _put(self, incoming: Incoming) -> contracts.InboxPutReply:
        self.inbox.append(incoming.parameters)
        return contracts.InboxPutReply(inbox_id=len(self.inbox), found=True, open=True)

    async def _hear(self, incoming: Incoming) -> contracts.TaskHeartbeatReply:
        beats = incoming.parameters.beats
        return contracts.TaskHeartbeatReply(
            unwanted=[beat.token for beat in beats if beat.token in self.unwanted]
        )

    @property
    def ledger(self) -> list[str]:
        """The keys under which effects happened."""
        file = self.folder / "ledger"
        return [json.loads(line)["key"] for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def spooled(self) -> list[str]:
        """The states of what lies in all spools."""
        kinds = (".accepted", ".begun", ".result", ".partial")
        files = (self.folder / "data" / "spool").glob("*/*")
        return sorted(file.suffix for file in files if file.suffix in kinds)

    async def begin(
        self, name: str = "executor", *, crash: str = "", agent_id: str = "task-executor-1"
    ) -> subprocess.Popen[bytes]:
        """Start an executor, which may be told to die somewhere; return when it is on the mesh, or has died."""
        environment = self.processes.environment
        environment |= {"AMP_CRASH": crash, "AMP_TASK_EXECUTOR__AGENT_ID": agent_id}
        process = self.processes.start("task_executor", name)
        async with asyncio.timeout(JOIN_SECONDS):
            while process.poll() is None and agent_id not in await self.executors():
                await asyncio.sleep(0.02)
        return process

    async def executors(self) -> set[str]:
        found = await self.processes.client.discover(capabilities=[CUSTOM])
        return {str(agent["identity"]["id"]) for agent in found}

    async def died(self, name: str = "executor") -> None:
        """Return when a process has killed itself."""
        process = self.processes.running.pop(name)
        code = await asyncio.to_thread(process.wait, JOIN_SECONDS)
        assert code == -signal.SIGKILL, self.processes.log_of(name)

    async def ask(
        self, parameters: dict[str, Any], token: str = "ins_1/pay/1", **more: Any
    ) -> contracts.TaskResult:
        """Dispatch an attempt as an engine does, and return its result."""
        values: dict[str, Any] = {
            "engine_id": "engine",
            "workflow_id": "flow",
            "workflow_instance_id": "ins_1",
            "task_id": "pay",
            "attempt": 1,
            "timeout_seconds": 60.0,
            "idempotency_key": "ins_1/pay/0",
            "effects": Effects.ONCE,
        }
        capability, agent_id = more.pop("capability", CUSTOM), more.pop("agent_id", None)
        return await self.engine.request(
            capability,
            parameters,
            context=contracts.Attempt(token=token, **{**values, **more}),
            reply_type=contracts.TaskResult,
            agent_id=agent_id,
        )

    async def lose(self, parameters: dict[str, Any], **more: Any) -> None:
        """Dispatch an attempt to an executor that dies of it."""
        with pytest.raises(AmpError):
            await self.ask(parameters, **more)
        await self.died()


def offer(contract: Contract, handler: Any) -> Offer:
    capability = Capability(
        id=contract.id,
        description=contract.description,
        category=contract.category,
        input_schema=schema_of(contract.request),
        output_schema=schema_of(contract.reply),
    )
    return Offer(capability=capability, handler=handler, parameters_type=contract.request)


@asynccontextmanager
async def scene(folder: Path, *agents: str) -> AsyncIterator[Scene]:
    (folder / "handlers.py").write_text(HANDLERS)
    async with running_processes(folder, agents=agents) as processes:
        processes.environment |= {
            "LEDGER": str(folder / "ledger"),
            "AMP_TASK_EXECUTOR__CUSTOM_HANDLERS_PATH": str(folder / "handlers.py"),
            "AMP_TASK_EXECUTOR__SUBPROCESS__ALLOWED_COMMANDS": "[sh]",
        }
        made = Scene(processes)
        if not agents:
            await made.engine.start(wait_seconds=JOIN_SECONDS)
        try:
            yield made
        finally:
            await made.engine.stop(drain_seconds=0)


@pytest.mark.parametrize("point", ["executor.spool.written", "executor.spool.synced"])
async def test_a_finished_effect_survives_the_death_of_its_executor(tmp_path: Path, point: str) -> None:
    async with scene(tmp_path) as mesh:
        await mesh.begin(crash=f"{point}:1")
        await mesh.lose(EFFECT)
        assert (mesh.ledger, mesh.inbox) == (["ins_1/pay/0"], [])
        await mesh.begin()
        await eventually(lambda: bool(mesh.inbox) and not mesh.spooled, "it was not delivered")
        again = await asyncio.gather(mesh.ask(EFFECT, token="ins_1/ship/1", idempotency_key="ins_1/ship/0"))
    (put,) = mesh.inbox
    assert (put.instance_id, put.kind, put.dedupe_key) == ("ins_1", "task_result", "ins_1/pay/1")
    assert put.data["result"]["outputs"] == {"done": True}
    assert again[0].outputs == {"done": True}
    assert mesh.ledger == ["ins_1/pay/0", "ins_1/ship/0"]


@pytest.mark.parametrize(
    ("point", "effects"),
    [("executor.task.accepted", 0), ("executor.effect.after", 1)],
    ids=["before the effect", "after the effect"],
)
async def test_what_had_begun_is_told_as_lost_and_never_begun_again(
    tmp_path: Path, point: str, effects: int
) -> None:
    async with scene(tmp_path) as mesh:
        await mesh.begin(crash=f"{point}:1")
        await mesh.lose(EFFECT)
        assert (len(mesh.ledger), mesh.spooled) == (effects, [".begun"])
        await mesh.begin()
        await eventually(lambda: bool(mesh.inbox) and not mesh.spooled, "it was not told")
    assert mesh.inbox[0].data["lost"]["begun"] is True
    assert len(mesh.ledger) == effects


async def test_an_orphaned_result_is_delivered_by_whoever_starts_next(tmp_path: Path) -> None:
    async with scene(tmp_path) as mesh:
        await mesh.begin(crash="executor.spool.synced:1")
        await mesh.lose(EFFECT)
        await mesh.begin(agent_id="another-executor")
        await eventually(lambda: bool(mesh.inbox) and not mesh.spooled, "it was not delivered")
        folders = [folder.name for folder in (tmp_path / "data" / "spool").iterdir()]
    assert mesh.inbox[0].dedupe_key == "ins_1/pay/1"
    assert folders == ["another-executor"]


async def test_a_living_executors_folder_is_left_alone(tmp_path: Path) -> None:
    async with scene(tmp_path) as mesh:
        await mesh.begin("first")
        await mesh.ask(EFFECT)
        await mesh.begin("second", agent_id="task-executor-2")
        assert await mesh.ask(EFFECT, token="t2", agent_id="task-executor-2")
        assert mesh.spooled == [".result", ".result"]
        reply = await mesh.engine.request(
            contracts.TASK_SETTLED.id, {"tokens": ["ins_1/pay/1"]}, agent_id="task-executor-1"
        )
        assert reply == {"removed": 1}
    assert mesh.inbox == []


async def test_deliveries_that_are_cut_short_go_on_in_the_life_after(tmp_path: Path) -> None:
    async with scene(tmp_path) as mesh:
        await mesh.begin()
        for number in range(5):
            await mesh.ask(EFFECT, token=f"t{number}", idempotency_key=f"k{number}")
        mesh.processes.kill("executor")
        await mesh.begin(crash="executor.recovery.between:1")
        await mesh.died()
        await mesh.begin()
        await eventually(
            lambda: len({put.dedupe_key for put in mesh.inbox}) == 5 and not mesh.spooled,
            "a result stays behind",
        )
    assert sorted(mesh.ledger) == [f"k{number}" for number in range(5)]


async def test_death_between_the_engines_word_and_the_removal_repeats_a_result_and_no_effect(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as mesh:
        await mesh.begin(crash="executor.settled.received:1")
        await mesh.ask(EFFECT)
        with pytest.raises(AmpError):
            await mesh.engine.request(contracts.TASK_SETTLED.id, {"tokens": ["ins_1/pay/1"]})
        await mesh.died()
        await mesh.begin()
        await eventually(lambda: bool(mesh.inbox) and not mesh.spooled, "it was not delivered")
    assert [put.dedupe_key for put in mesh.inbox] == ["ins_1/pay/1"]
    assert len(mesh.ledger) == 1


async def test_programs_whose_executor_and_guard_were_killed_are_ended_at_the_next_start(
    tmp_path: Path,
) -> None:
    script = "(setsid sleep 300 & echo $! > a); sleep 300 & echo $! > b; echo $$ > c; wait"
    files = [tmp_path / "data" / "files" / name for name in "abc"]
    async with scene(tmp_path) as mesh:
        executor = await mesh.begin()
        task = {"command": "sh", "args": ["-c", script]}
        work = asyncio.ensure_future(mesh.ask(task, capability=contracts.TASK_SUBPROCESS.id))
        await eventually(
            lambda: all(file.exists() and file.read_text().strip() for file in files), "it never started"
        )
        pids = [int(file.read_text()) for file in files]
        guard = int(process_facts(pids[2])[1])
        executor.send_signal(signal.SIGSTOP)  # so that it does not see its guard die
        os.kill(guard, signal.SIGKILL)
        await eventually(lambda: not alive(pids[2]), "the program outlived its guard")
        mesh.processes.kill("executor")
        assert any(map(alive, pids[:2])), "something must be left behind, or this test shows nothing"
        await asyncio.gather(work, return_exceptions=True)
        await mesh.begin()
        await eventually(lambda: not any(map(alive, pids)), f"some of {pids} live on")


async def test_a_task_that_kills_its_executor_is_refused_and_others_proceed(tmp_path: Path) -> None:
    deadly = {"parameters": {"task_name": "deadly"}, "effects": Effects.NONE, "idempotency_key": "bad"}
    async with scene(tmp_path) as mesh:
        for number in range(2):
            await mesh.begin()
            await mesh.lose(token=f"bad/{number}", **deadly)
        await mesh.begin()
        with pytest.raises(AmpError) as caught:
            await mesh.ask(token="bad/3", **deadly)
        assert (caught.value.code, caught.value.retryable) == ("POISON_TASK", False)
        assert (await mesh.ask(EFFECT)).outputs == {"done": True}


async def test_a_stopped_executor_that_wakes_up_late_begins_nothing(tmp_path: Path) -> None:
    """It is frozen with the request in hand, and what it was to do is given up meanwhile."""
    async with scene(tmp_path) as mesh:
        frozen = await mesh.begin(crash="executor.task.received:1:stop")
        work = asyncio.ensure_future(mesh.ask(EFFECT))
        await eventually(lambda: process_facts(frozen.pid)[0] == "T", "it never froze")
        mesh.unwanted = {"ins_1/pay/1"}
        frozen.send_signal(signal.SIGCONT)
        with pytest.raises(AmpError) as caught:
            await work
    assert caught.value.code == "NOT_BEGUN"
    assert mesh.ledger == []


async def test_the_idempotency_key_is_the_same_over_attempts_executors_and_lives(tmp_path: Path) -> None:
    """With a real engine: the first executor is killed in the middle, and the next attempt's answer is an error."""
    keys: list[str] = []
    came = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        keys.append(request.headers["idempotency-key"])
        came.set()
        if len(keys) == 1:
            await asyncio.sleep(60)
        return web.json_response({"n": len(keys)}, status=503 if len(keys) == 2 else 200)

    application = web.Application()
    application.router.add_post("/", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    call = {
        "id": "call",
        "type": "api_call",
        "parameters": {"method": "POST", "url": f"http://127.0.0.1:{runner.addresses[0][1]}/", "data": {}},
        "outputs": ["body"],
        "retry_config": {"strategy": "fixed_delay", "max_attempts": 3, "initial_delay_seconds": 0.1},
    }
    try:
        async with scene(tmp_path, "state_manager", "workflow_engine", "error_handler") as mesh:
            await mesh.begin()
            instance_id = await start(mesh, call)
            async with asyncio.timeout(40):
                await came.wait()
            mesh.processes.kill("executor")
            await mesh.begin(agent_id="another-executor")
            document = await mesh.processes.until(instance_id)
    finally:
        await runner.cleanup()
    assert document.instance["status"] == "completed"
    assert len(keys) == 3
    assert len(set(keys)) == 1


async def test_an_instance_ends_as_if_nothing_had_happened_when_its_executor_dies_after_the_effect(
    tmp_path: Path,
) -> None:
    pay, ship = (
        {
            "id": task_id,
            "type": "custom",
            "effects": "once",
            "parameters": EFFECT,
            "outputs": [f"{task_id}_done"],
            "depends_on": depends_on,
        }
        for task_id, depends_on in (("pay", []), ("ship", ["pay"]))
    )
    async with scene(tmp_path, "state_manager", "workflow_engine", "error_handler") as mesh:
        await mesh.begin(crash="executor.spool.synced:1")
        instance_id = await start(mesh, pay, ship)
        await mesh.died()
        await mesh.begin()
        document = await mesh.processes.until(instance_id)
    assert document.instance["status"] == "completed"
    assert [key.split("/")[1] for key in mesh.ledger] == ["pay", "ship"]


async def start(mesh: Scene, *tasks: dict[str, Any]) -> str:
    """Define a workflow with these tasks and start it at a real engine."""
    client = mesh.processes.client
    await mesh.processes.joined(contracts.STATE_APPEND.id, contracts.WORKFLOW_START.id)
    await client.request(
        contracts.WORKFLOW_CREATE.id,
        contracts.WorkflowCreateRequest(
            definition={"id": "flow", "name": "Flow", "tasks": list(tasks)}, overwrite=True
        ),
        patience_seconds=30,
    )
    reply = await client.request(
        contracts.WORKFLOW_START.id,
        contracts.WorkflowStartRequest(workflow_id="flow"),
        reply_type=contracts.WorkflowStarted,
        patience_seconds=30,
    )
    return reply.instance_id


def process_facts(pid: int) -> list[str]:
    """Return a process's state, its parent and so on, as the system lists them."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
