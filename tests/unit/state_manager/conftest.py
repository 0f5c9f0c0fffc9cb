"""The storages that the contract suite runs against."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents.state_manager.errors import StoreLost
from agents.state_manager.storage.base import Storage
from agents.state_manager.storage.memory import MemoryStorage
from agents.state_manager.storage.sqlite import SqliteStorage
from tests.unit.state_manager.store_values import ManualClock, make_store_clock


def refuse_loss(lost: StoreLost) -> None:
    raise AssertionError(f"the store was lost: {lost}")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["sqlite", "memory"])
async def storage(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[Storage]:
    store_clock = make_store_clock(clock)
    made: Storage = (
        SqliteStorage(tmp_path / "store.db", store_clock, refuse_loss)
        if request.param == "sqlite"
        else MemoryStorage(store_clock)
    )
    await made.start()
    yield made
    await made.stop()
