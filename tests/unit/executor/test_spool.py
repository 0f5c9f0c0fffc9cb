"""What is kept of attempts that must not be lost, in which order, and what a successor reads from it."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agents.task_executor.errors import SpoolFull, TimedOut
from agents.task_executor.spool import HEAD_BYTES, Record, Spool, State
from agents.task_executor.spool_folder import ACCEPTED, ASIDE, BEGUN, PARTIAL, RESULT, record_name, take
from amp import crash
from orchestration.contracts import Attempt
from orchestration.status import Effects
from tests.unit.executor.clocks import FixedClock

RECORD_BYTES = 1000


def attempt(token: str = "t") -> Attempt:
    return Attempt(
        token=token,
        engine_id="engine",
        workflow_id="w",
        workflow_instance_id="ins",
        task_id="task",
        attempt=2,
        timeout_seconds=1,
        idempotency_key="k",
        effects=Effects.ONCE,
    )


async def spool(folder: Path, *, records: int = 3, max_files: int = 100) -> Spool:
    made = Spool(
        FixedClock(),
        max_bytes=records * (RECORD_BYTES + HEAD_BYTES),
        max_files=max_files,
        record_bytes=RECORD_BYTES,
    )
    await made.open(take(folder, "executor"))
    return made


def files(folder: Path) -> dict[str, str]:
    """Return the records on the disk: token names to suffixes."""
    return {
        file.stem: file.suffix
        for file in (folder / "executor").iterdir()
        if file.suffix in (ACCEPTED, BEGUN, RESULT, PARTIAL)
    }


async def test_an_attempt_is_accepted_begun_and_ended_and_a_successor_sees_each_state(tmp_path: Path) -> None:
    first = await spool(tmp_path)
    for token, state in (("a", State.ACCEPTED), ("b", State.BEGUN), ("c", State.ENDED)):
        await first.accept(attempt(token))
        if state >= State.BEGUN:
            await first.begin(token)
        if state is State.ENDED:
            assert await first.keep(attempt(token), msgspec.Raw(b'{"n":1}'), engine_id="e2", sync=True)
        assert first.state_of(token) is state
    first.close()
    second = await spool(tmp_path)
    assert [second.state_of(token) for token in "abc"] == [State.ACCEPTED, State.BEGUN, State.ENDED]
    record = await second.record("c")
    assert record is not None
    assert record.result == msgspec.Raw(b'{"n":1}')
    assert (record.token, record.instance_id, record.task_id, record.attempt) == ("c", "ins", "task", 2)
    assert second.tokens(state=State.ENDED) == ["c"]
    assert second.tokens(engine_id="another") == []
    second.close()


async def test_an_error_is_an_ending_too(tmp_path: Path) -> None:
    first = await spool(tmp_path)
    await first.accept(attempt())
    await first.keep(attempt(), TimedOut("late", details={"a": 1}), engine_id="e", sync=True)
    record = await first.record("t")
    assert record is not None
    assert record.error == {"code": "TIMEOUT", "message": "late", "details": {"a": 1, "retryable": True}}
    assert record.result is msgspec.UNSET
    first.close()


async def test_intent_and_ending_are_synced_before_anybody_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, done = await spool(tmp_path), []
    folder = tmp_path / "executor"

    def noted(what: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            if what == "fsync":
                target = os.readlink(f"/proc/self/fd/{arguments[0]}")
                done.append(f"sync {Path(target).name.replace(record_name('t'), 't')}")
            else:
                done.append(f"{what} {Path(str(arguments[1])).suffix}")
            real(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", noted("fsync", os.fsync))
    monkeypatch.setattr(os, "rename", noted("rename", os.rename))
    await made.accept(attempt())
    assert [step for step in done if step.startswith("sync")] == []
    done.clear()
    await made.begin("t")
    assert done == ["rename .begun", "sync executor"]
    done.clear()
    await made.keep(attempt(), msgspec.Raw(b"1"), engine_id="e", sync=True)
    assert done == ["sync t.partial", "rename .result"]
    assert files(tmp_path) == {record_name("t"): RESULT}
    done.clear()
    await made.keep(attempt("u"), msgspec.Raw(b"1"), engine_id="e", sync=False)
    assert done == ["rename .result"]
    assert folder.exists()
    made.close()


async def test_a_full_spool_refuses_before_the_effect_and_takes_again_when_there_is_room(
    tmp_path: Path,
) -> None:
    made = await spool(tmp_path, records=2)
    await made.accept(attempt("a"))
    await made.accept(attempt("b"))
    with pytest.raises(SpoolFull, match=r"task_executor\.spool") as caught:
        await made.accept(attempt("c"))
    assert (caught.value.code, caught.value.retryable) == ("INSUFFICIENT_RESOURCES", True)
    assert caught.value.details["retry_after_ms"] == 1000
    await made.keep(attempt("a"), msgspec.Raw(b"1"), engine_id="e", sync=True)
    with pytest.raises(SpoolFull):
        await made.accept(attempt("c"))
    assert await made.remove(["a", "never"]) == 1
    await made.accept(attempt("c"))
    assert len(made) == 2
    made.close()


async def test_the_number_of_files_is_bounded_too(tmp_path: Path) -> None:
    made = await spool(tmp_path, max_files=1)
    await made.accept(attempt("a"))
    with pytest.raises(SpoolFull):
        await made.accept(attempt("b"))
    assert not await made.keep(attempt("b"), msgspec.Raw(b"1"), engine_id="e", sync=False)
    assert await made.keep(attempt("a"), msgspec.Raw(b"1"), engine_id="e", sync=False)
    made.close()


async def test_what_is_removed_gives_its_room_back(tmp_path: Path) -> None:
    made = await spool(tmp_path)
    for _ in range(10):
        await made.accept(attempt())
        await made.begin("t")
        await made.keep(attempt(), msgspec.Raw(b"1"), engine_id="e", sync=True)
        await made.remove(["t"])
    assert (made.bytes, len(made), files(tmp_path)) == (0, 0, {})
    made.close()


async def test_a_disk_that_takes_nothing_refuses_before_the_effect(tmp_path: Path) -> None:
    made = await spool(tmp_path)
    os.rename(tmp_path / "executor", tmp_path / "moved")
    with pytest.raises(SpoolFull, match="cannot be written"):
        await made.accept(attempt())
    assert len(made) == 0
    assert not await made.keep(attempt(), msgspec.Raw(b"1"), engine_id="e", sync=True)
    made.close()


async def test_a_disk_without_room_for_an_ending_refuses_before_the_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await spool(tmp_path)
    monkeypatch.setattr("agents.task_executor.spool_folder.SpoolFolder.free_bytes", lambda _: 10)
    with pytest.raises(SpoolFull, match="10 bytes left"):
        await made.accept(attempt())
    assert files(tmp_path) == {}
    made.close()


async def test_without_a_folder_nothing_is_taken(tmp_path: Path) -> None:
    made = Spool(FixedClock(), max_bytes=10**6, max_files=10, record_bytes=10)
    with pytest.raises(SpoolFull, match="cannot be used"):
        await made.accept(attempt())
    assert not await made.keep(attempt(), msgspec.Raw(b"1"), engine_id="e", sync=False)
    assert (await made.record("t"), await made.remove(["t"])) == (None, 0)
    made.close()


class Died(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("point", "left"), [("executor.spool.written", State.ENDED), ("executor.spool.synced", State.ENDED)]
)
async def test_a_whole_ending_counts_wherever_the_process_died_after_writing_it(
    tmp_path: Path, point: str, left: State
) -> None:
    first = await spool(tmp_path)
    await first.accept(attempt())
    await first.begin("t")

    def die(reached: str) -> None:
        if reached == point:
            raise Died

    crash.on_reach(die)
    try:
        with pytest.raises(Died):
            await first.keep(attempt(), msgspec.Raw(b'{"n":1}'), engine_id="e", sync=True)
    finally:
        crash.on_reach(None)
    first.close()
    second = await spool(tmp_path)
    assert second.state_of("t") is left
    record = await second.record("t")
    assert record is not None
    assert record.result == msgspec.Raw(b'{"n":1}')
    await second.remove(["t"])
    assert files(tmp_path) == {}
    second.close()


async def test_half_an_ending_is_none_and_the_intent_before_it_counts(tmp_path: Path) -> None:
    first = await spool(tmp_path)
    await first.accept(attempt())
    await first.begin("t")
    first.close()
    (tmp_path / "executor" / f"{record_name('t')}{PARTIAL}").write_bytes(b'{"token":"t","result":{"a"')
    second = await spool(tmp_path)
    assert second.state_of("t") is State.BEGUN
    assert files(tmp_path) == {record_name("t"): BEGUN}
    second.close()


async def test_what_cannot_be_read_is_set_aside_and_the_start_goes_on(tmp_path: Path) -> None:
    first = await spool(tmp_path)
    await first.accept(attempt("good"))
    first.close()
    folder = tmp_path / "executor"
    whole = msgspec.json.encode(
        Record(token="t", engine_id="e", instance_id="i", task_id="t", attempt=1, at=FixedClock().now())
    )
    (folder / f"{record_name('garbage')}{RESULT}").write_bytes(b"\x00\xff not json")
    (folder / f"{record_name('t')}{RESULT}").write_bytes(whole)  # says that it ended, and not how
    (folder / f"{record_name('other')}{BEGUN}").write_bytes(whole)  # another attempt's name
    (folder / f"{record_name('deep')}{RESULT}").write_bytes(b"[" * 100_000)
    (folder / "notes.txt").write_text("mine")
    (folder / f"link{RESULT}").symlink_to("/etc/passwd")
    second = await spool(tmp_path)
    assert second.tokens() == ["good"]
    assert len(list((folder / ASIDE).iterdir())) == 6
    second.close()


async def test_an_intent_whose_content_was_lost_with_the_power_says_nothing_and_hinders_nobody(
    tmp_path: Path,
) -> None:
    first = await spool(tmp_path)
    await first.accept(attempt())
    await first.begin("t")
    first.close()
    (tmp_path / "executor" / f"{record_name('t')}{BEGUN}").write_bytes(b"")
    second = await spool(tmp_path)
    assert (len(second), files(tmp_path)) == (0, {})
    second.close()
