"""The variables of an instance, folded from its events: inputs, declared outputs, what was set from outside.

The fold is the machine's own rule for variables and nothing else of it.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agents.state_manager.storage.base import MAX_HISTORY_ENTRIES, Storage
from orchestration import events as ev
from orchestration.contracts import InstanceRow, LogReadRequest

MAX_FOLDED_INSTANCES = 256
PAGE_EVENTS = 500

_FOLDED_TYPES = ["workflow.started", "task.completed", "state.updated"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of an instance's variables; `state` is what they were after it."""

    seq: int
    at: datetime
    description: str
    state: Mapping[str, Any]


@dataclass(slots=True)
class Folded:
    """The variables of an instance up to an event."""

    seq: int = 0
    variables: Mapping[str, Any] = field(default_factory=dict)
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY_ENTRIES))

    def apply(self, seq: int, event: ev.Event) -> None:
        """Take one event into account."""
        match event:
            case ev.InstanceStarted():
                changed, description = dict(event.inputs), "inputs"
            case ev.TaskCompleted():
                changed, description = {**self.variables, **event.outputs}, f"outputs of {event.task_id}"
            case ev.VariablesUpdated():
                kept = {} if event.replace else self.variables
                changed, description = {**kept, **event.updates}, event.description or "set from outside"
            case _:
                return
        self.variables = changed
        self.changes.append(Change(seq, event.at, description, changed))


class Variables:
    """Folds instances on demand and remembers the last ones, so that a repeated look reads only what is new."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._folded: OrderedDict[str, Folded] = OrderedDict()

    def forget(self, instance_id: str) -> None:
        """Forget an instance that is gone."""
        self._folded.pop(instance_id, None)

    async def of(self, row: InstanceRow) -> Folded:
        """Return the variables of an instance, at least up to the row's seq."""
        known = self._folded.pop(row.instance_id, None)
        folded = Folded() if known is None else Folded(known.seq, known.variables, known.changes.copy())
        while folded.seq < row.seq:
            page = await self._storage.read_log(
                LogReadRequest(
                    instance_id=row.instance_id, after=folded.seq, limit=PAGE_EVENTS, types=_FOLDED_TYPES
                )
            )
            for record in page.events:
                folded.apply(record.seq, ev.decode(record.data))
            folded.seq = max(row.seq, page.next) if page.end else page.next
        self._folded[row.instance_id] = folded
        while len(self._folded) > MAX_FOLDED_INSTANCES:
            self._folded.popitem(last=False)
        return folded
