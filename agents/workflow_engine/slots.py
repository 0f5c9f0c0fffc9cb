"""Which instances run and which wait for a slot. Bookkeeping only; it starts nothing."""

from collections import OrderedDict
from collections.abc import Iterator

from orchestration.status import InstanceStatus


class Slots:
    """At most `limit` instances run at a time; the others wait in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running: set[str] = set()
        self.pending: OrderedDict[str, None] = OrderedDict()

    @property
    def has_free(self) -> bool:
        """Whether an instance may begin at once."""
        return len(self.running) < self.limit and not self.pending

    def note(self, instance_id: str, status: InstanceStatus) -> None:
        """Keep count after an instance's status changed. Who waits already keeps the place in the line."""
        match status:
            case InstanceStatus.RUNNING:
                self.running.add(instance_id)
                self.pending.pop(instance_id, None)
            case InstanceStatus.PENDING:
                self.running.discard(instance_id)
                self.pending.setdefault(instance_id)
            case _:
                self.forget(instance_id)

    def forget(self, instance_id: str) -> None:
        """Drop an instance that is not driven here any more, or that needs no slot."""
        self.running.discard(instance_id)
        self.pending.pop(instance_id, None)

    def admit(self) -> Iterator[str]:
        """Yield the instances that may begin now, longest waiting first; each counts as running from then on."""
        while self.pending and len(self.running) < self.limit:
            instance_id, _ = self.pending.popitem(last=False)
            self.running.add(instance_id)
            yield instance_id

    def place(self, instance_id: str) -> int:
        """Return the place in the line, from 1; 0 for who does not wait."""
        return next((place for place, waiting in enumerate(self.pending, 1) if waiting == instance_id), 0)
