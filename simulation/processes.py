"""The six agents as they run in a simulation: the real ones, with the world outside exchanged at their seams.

Only what would touch a disk, a network or the machine's load is replaced. No decision of an agent may be changed here.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

import aiosqlite

from agents.condition_evaluator import ConditionEvaluator
from agents.error_handler import ErrorHandler
from agents.monitor_agent import MonitorAgent
from agents.monitor_agent import statements as monitor_sql
from agents.monitor_agent.store import MonitorStore
from agents.state_manager import StateManager
from agents.state_manager.storage.base import Storage
from agents.state_manager.store_clock import StoreClock
from agents.task_executor import TaskExecutor
from agents.workflow_engine import WorkflowEngine
from amp.capability import Capability, Offer
from orchestration.contracts import CustomTaskRequest, EventRecord
from runtime.settings import Settings
from simulation.store import SimulatedStore
from simulation.work import Anything, Ledger, SimulatedWork

__all__ = [
    "ConditionEvaluator",
    "ErrorHandler",
    "SimulatedExecutor",
    "SimulatedMonitor",
    "SimulatedStateManager",
    "WorkflowEngine",
]

SIMULATED_TYPES = ("api_call", "subprocess", "file_operation")
"""Task types that touch the world, besides `custom`. The others are computed by the real handlers."""


class SimulatedStateManager(StateManager):
    """The state manager over a store that outlives it."""

    def __init__(self, settings: Settings, *, store: SimulatedStore, **options: Any) -> None:
        super().__init__(settings, **options)
        self._kept = store

    def _storage(self, store_clock: StoreClock) -> Storage:
        self._kept.open_for(store_clock)
        return self._kept


class SimulatedExecutor(TaskExecutor):
    """The task executor whose effects go to the ledger. It also does the work of agents from outside.

    Args:
        foreign: The capabilities that such agents would offer.
    """

    def __init__(
        self, settings: Settings, *, ledger: Ledger, foreign: Sequence[str] = (), **options: Any
    ) -> None:
        super().__init__(settings, **options)
        self._foreign = foreign
        simulated = dict.fromkeys(SIMULATED_TYPES, SimulatedWork(ledger, Anything))
        simulated["custom"] = SimulatedWork(ledger, CustomTaskRequest)
        self._execution.handlers = {**self._execution.handlers, **simulated}

    def offers(self) -> list[Offer]:
        """Return the executor's capabilities and the foreign ones."""
        foreign = [
            Offer(
                capability=Capability(id=name),
                handler=partial(self._task, name, SIMULATED_TYPES[0]),
                parameters_type=None,
                check_input=False,
            )
            for name in self._foreign
        ]
        return [*super().offers(), *foreign]

    def release(self) -> None:
        """Do what the kernel does when a process ends: let go of its locks."""
        self._spool.close()


class InlineDatabase:
    """What the monitor's store uses of `aiosqlite.Connection`, without its thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def execute(self, statement: str, values: Iterable[Any] = ()) -> None:
        """Run a statement."""
        self._connection.execute(statement, tuple(values))

    async def executemany(self, statement: str, rows: Iterable[Iterable[Any]]) -> None:
        """Run a statement for each row."""
        self._connection.executemany(statement, [tuple(row) for row in rows])

    async def execute_fetchall(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        return self._connection.execute(statement, tuple(values)).fetchall()

    async def commit(self) -> None:
        """End the transaction."""
        self._connection.commit()

    async def rollback(self) -> None:
        """Undo the transaction."""
        self._connection.rollback()

    async def close(self) -> None:
        """Keep the database: it outlives the monitor."""


def new_monitor_database() -> sqlite3.Connection:
    """Return an empty database for the monitor."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(monitor_sql.SCHEMA)
    return connection


class _KeptMonitorStore(MonitorStore):
    """The monitor's store over a database that outlives it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(":memory:")
        self._connection = connection

    async def open(self) -> None:
        """Begin another life with what was committed."""
        if self._connection.in_transaction:
            self._connection.rollback()
        self._db = cast(aiosqlite.Connection, InlineDatabase(self._connection))


class _CalmMachine:
    """A machine that is never busy."""

    def read(self) -> dict[str, float | None]:
        """Return shares in percent."""
        return dict.fromkeys(("cpu_percent", "memory_percent", "disk_percent", "network_percent"), 10.0)


class SimulatedMonitor(MonitorAgent):
    """The monitor over a database that outlives it, on a machine that is never busy.

    What it is shown of the log goes to `seen` too, by offset: it must still be there in the end.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        database: sqlite3.Connection,
        seen: dict[int, EventRecord],
        **options: Any,
    ) -> None:
        super().__init__(settings, **options)
        self._seen = seen
        self.store = _KeptMonitorStore(database)
        self.resources = _CalmMachine()  # type: ignore[assignment]
        self.answers = self._make_answers()

    async def _take_events(self, events: Sequence[EventRecord], offset: int) -> None:
        for event in events:
            self._seen.setdefault(event.offset, event)
        await super()._take_events(events, offset)
