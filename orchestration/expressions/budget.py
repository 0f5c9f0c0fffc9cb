"""What an evaluation may still spend: every step, made text, number and comparison goes through here."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from orchestration.expressions.errors import FAILED, LIMIT, NOT_ALLOWED, ExpressionError
from orchestration.expressions.limits import Limits
from orchestration.expressions.values import kind

CHARS_PER_STEP = 32
"""Characters of text that are produced at the cost of one step."""
COMPARED_CHARS_PER_STEP = 4096
"""Characters of text that are compared at the cost of one step."""

SCALARS = frozenset({str, int, float, bool, type(None)})
"""Types of JSON values without parts."""


class Budget:
    """The meter that functions see: counts steps and checks sizes. `now` is the moment that counts as now."""

    def __init__(self, limits: Limits, steps: int, now: datetime | None) -> None:
        self.limits = limits
        self._steps = steps
        self._now = now

    @property
    def steps_left(self) -> int:
        """How many steps there are still; none when they ran out."""
        return max(0, self._steps)

    def charge(self, steps: int) -> None:
        """Count steps; raises when they run out."""
        self._steps -= steps
        if self._steps < 0:
            raise ExpressionError(LIMIT, "the expression takes too many steps")

    def measure(self, value: Any) -> int:
        """Charge for every part of a value, as often as it occurs, and return their number."""
        if type(value) in SCALARS:
            return 1
        total = 0
        waiting = [value]
        while waiting:
            part = waiting.pop()
            size = 1
            if isinstance(part, str):
                size += len(part) // CHARS_PER_STEP
            elif isinstance(part, Mapping):
                size += len(part)
                waiting.extend(part.values())
            elif isinstance(part, list | tuple | frozenset):
                waiting.extend(part)
            total += size
            self.charge(size)
        return total

    def equal(self, left: Any, right: Any) -> bool:
        """Return whether two values are equal. Comparing parts with parts is charged before."""
        if type(left) is str and type(right) is str:
            self.charge(len(left) // COMPARED_CHARS_PER_STEP)
        elif type(left) not in SCALARS and type(right) not in SCALARS:
            self.measure(left)
        return bool(left == right)

    def contains(self, container: Any, element: Any) -> bool:
        """Return whether the element is in the container; nothing is in null."""
        if container is None:
            return False
        if isinstance(container, str):
            self.charge(len(container) // CHARS_PER_STEP)
        elif isinstance(container, list | tuple):
            self.charge(len(container))
            long = type(element) is str and len(element) > COMPARED_CHARS_PER_STEP
            if long or type(element) not in SCALARS:
                self.measure(container)
        elif not isinstance(container, Mapping | frozenset):
            raise ExpressionError(
                FAILED, f"'in' looks into lists, objects and texts, not into {kind(container)}"
            )
        return element in container

    def text(self, value: str) -> str:
        """Return a made text, charged and checked for its length."""
        if len(value) > self.limits.max_string_chars:
            raise ExpressionError(LIMIT, f"a text may have {self.limits.max_string_chars} characters")
        self.charge(len(value) // CHARS_PER_STEP)
        return value

    def number(self, value: Any) -> Any:
        """Return a made number (or anything else), checked for its size."""
        if type(value) is int and not -self.limits.max_integer <= value <= self.limits.max_integer:
            raise ExpressionError(LIMIT, "an integer is larger than 10 to the power of 30")
        if type(value) is complex:
            raise ExpressionError(FAILED, "the result is not a real number")
        return value

    def room(self, size: int, most: int, unit: str) -> None:
        """Raise when something would be made larger than `most`."""
        if size > most:
            raise ExpressionError(LIMIT, f"this would have more than {most} {unit}")

    def time(self) -> datetime:
        """Return the moment that counts as now."""
        if self._now is None:
            raise ExpressionError(NOT_ALLOWED, "the time cannot be asked for here")
        return self._now
