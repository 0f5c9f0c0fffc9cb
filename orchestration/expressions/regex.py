"""Regular expressions that cannot hang.

`re` backtracks and knows no timeout. So a pattern is parsed first and the most steps that backtracking can take on a
text of n characters is computed from its structure; a search that could exceed the budget is refused before it runs.

The bound: every part of a pattern has a number of *ways* in which it can match from one place, and the *steps*
it takes to try them all. A sequence multiplies ways, a branch adds them, a repeat of a part with one way has
as many ways as repetitions; a repeat of a part with several ways multiplies them again and again, which is how
`(a+)+` explodes. Two facts make ordinary patterns cheap: alternatives that begin with different characters exclude
each other, and a run of characters that must be followed by something outside the run can end at one place only. Both
need the characters a part can begin with; when in doubt a part can begin with anything, so the bound errs upwards.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from orchestration.expressions.errors import LIMIT, SYNTAX, ExpressionError

MAX_PATTERN_CHARS = 1000
MAX_GROUPS = 50
MAX_NESTED_REPEATS = 6
"""Repeats inside repeats. Each level is looked at twice, so the bound takes 2 ** levels as long to compute."""
MAX_TEXT_CHARS = 1024 * 1024
MAX_STEPS = 20_000_000
"""Steps of the backtracking matcher in one call: at most a tenth of a second."""
CACHED_PATTERNS = 256
HUGE = 10**12
"""Where counting ways and steps stops."""

_OTHER = -1
"""Stands for every character above Latin-1."""
_ANYTHING = frozenset(range(-1, 256))
_NEWLINE = 10
_ENDS = (sre.AT_END, sre.AT_END_STRING)
"""After these comes the end of the text or a new line, so a run without new lines ends there at one place."""


@dataclass(frozen=True, slots=True)
class _Cost:
    """Bounds for one part on a text of n characters: ways, steps, least width, and the characters it can begin with."""

    ways: int
    steps: int
    width: int
    first: frozenset[int]


class Pattern:
    """A compiled pattern that knows what it can cost."""

    __slots__ = ("_anchored", "_bounds", "_prefix", "_trees", "compiled")

    def __init__(self, source: str, flags: int) -> None:
        self.compiled = re.compile(source, flags)
        tree = list(_parser.parse(source, flags))
        if _nested_repeats(tree) > MAX_NESTED_REPEATS:
            raise ExpressionError(LIMIT, f"a pattern may nest repeats {MAX_NESTED_REPEATS} levels deep")
        once = not self.compiled.flags & re.MULTILINE
        self._anchored = (
            bool(tree) and once and tree[0] in ((sre.AT, sre.AT_BEGINNING), (sre.AT, sre.AT_BEGINNING_STRING))
        )
        self._trees = (tree, _without_tail(tree))
        self._prefix = "" if self._ignores_case else _literal_prefix(tree)
        self._bounds: dict[tuple[int, bool], int] = {}

    @property
    def _ignores_case(self) -> bool:
        return bool(self.compiled.flags & re.IGNORECASE)

    def steps(self, chars: int, *, failing: bool = False) -> int:
        """Return the most steps that one match from one place can take on a text of this length.

        A place where the match fails costs less: a run at the pattern's end cannot make it fail, so it is not tried.
        """
        size = 1 << max(4, chars.bit_length())
        bound = self._bounds.get((size, failing))
        if bound is None:
            bound = _sequence(self._trees[failing], size, self._ignores_case, None).steps
            self._bounds[size, failing] = bound
        return bound

    def search_steps(self, text: str) -> int:
        """Return the most steps that a search through the whole text, or through all its matches, can take."""
        if self._anchored:
            starts = 1
        elif self._prefix:
            overlaps = self._prefix[0] in self._prefix[1:]
            starts = text.count(self._prefix[0] if overlaps else self._prefix)
        else:
            starts = len(text) + 1
        return starts * self.steps(len(text), failing=True) + self.steps(len(text)) + len(text)


@lru_cache(maxsize=CACHED_PATTERNS)
def compile_pattern(source: str, flags: int = 0) -> Pattern:
    """Return the pattern, checked. Raises ExpressionError when it is no pattern, too long, or explodes on any text."""
    if len(source) > MAX_PATTERN_CHARS:
        raise ExpressionError(
            LIMIT, f"a pattern may have {MAX_PATTERN_CHARS} characters, this one has {len(source)}"
        )
    if source.count("(") > MAX_GROUPS:
        raise ExpressionError(LIMIT, f"a pattern may have {MAX_GROUPS} groups")
    try:
        pattern = Pattern(source, flags)
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        reason = error.msg if isinstance(error, re.error) else "too complex"
        raise ExpressionError(SYNTAX, f"not a regular expression: {reason}") from None
    if pattern.steps(64) > MAX_STEPS:
        raise ExpressionError(
            LIMIT,
            "this pattern can take exponential time: a repeated part can match the same text in several ways",
        )
    return pattern


def guard(pattern: Pattern, text: str, *, search: bool) -> int:
    """Return the steps to charge for a match; raises ExpressionError when it could take too many."""
    if len(text) > MAX_TEXT_CHARS:
        raise ExpressionError(LIMIT, f"a pattern is applied to {MAX_TEXT_CHARS} characters at most")
    steps = pattern.search_steps(text) if search else pattern.steps(len(text))
    if steps > MAX_STEPS:
        raise ExpressionError(
            LIMIT,
            f"this pattern could need too many steps on {len(text)} characters; "
            "anchor it, bound its repeats, or separate them by characters that they do not contain",
        )
    return steps


def _without_tail(tree: Sequence[Any]) -> list[Any]:
    """Return the parts of a pattern with a last run cut to its least length: what can make a match fail."""
    items = list(tree)
    if not items:
        return items
    op, argument = items[-1]
    if op is sre.SUBPATTERN:
        group, add_flags, del_flags, body = argument
        items[-1] = (op, (group, add_flags, del_flags, _without_tail(body)))
    elif (
        op in (sre.MAX_REPEAT, sre.MIN_REPEAT)
        and len(argument[2]) == 1
        and _characters(argument[2][0][0], argument[2][0][1], False)
    ):
        items[-1] = (op, (argument[0], argument[0], argument[2]))
    return items


def _nested_repeats(parts: Any) -> int:
    """Return how deep repeats are nested in a parsed pattern."""
    if not isinstance(parts, list | tuple | _parser.SubPattern):
        return 0
    deepest = max((_nested_repeats(part) for part in parts), default=0)
    repeats = (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)
    return deepest + (isinstance(parts, tuple) and bool(parts) and parts[0] in repeats)


def _literal_prefix(tree: Sequence[Any]) -> str:
    """Return the text that every match begins with."""
    prefix = ""
    for op, argument in tree:
        if op is not sre.LITERAL:
            break
        prefix += chr(argument)
    return prefix


def _sequence(items: Sequence[Any], size: int, ignore_case: bool, follow: frozenset[int] | None) -> _Cost:
    """Return the bound of parts in a row, computed from the last to the first.

    `follow` are the characters of which one must come next, None when nothing need come.
    """
    ways, steps, width = 1, 1, 0
    first, must = (_ANYTHING, False) if follow is None else (follow, True)
    for op, argument in reversed(items):
        if op is sre.AT:
            if argument in _ENDS:
                first, must = frozenset({_NEWLINE}), True
            continue
        part = _part(op, argument, size, ignore_case, first if must else None)
        steps = _cap(part.steps + part.ways * steps)
        ways = _cap(ways * part.ways)
        width += part.width
        first = part.first if part.width else part.first | first
        must = must or part.width > 0
    return _Cost(ways, steps, width, first)


def _part(op: Any, argument: Any, size: int, ignore_case: bool, follow: frozenset[int] | None) -> _Cost:
    """Return the bound of one part before something that begins with `follow`."""
    characters = _characters(op, argument, ignore_case)
    if characters is not None:
        return _Cost(1, 1, 1, characters)
    if op is sre.SUBPATTERN:
        _, add_flags, _, body = argument
        return _sequence(body, size, ignore_case or bool(add_flags & re.IGNORECASE), follow)
    if op is sre.BRANCH:
        return _branch([_sequence(body, size, ignore_case, follow) for body in argument[1]])
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        return _repeat(argument, size, ignore_case, follow)
    if op is sre.GROUPREF:
        return _Cost(1, size, 0, _ANYTHING)
    if op in (sre.ASSERT, sre.ASSERT_NOT):
        return _Cost(1, _sequence(argument[1], size, ignore_case, None).steps, 0, _ANYTHING)
    if op is sre.ATOMIC_GROUP:
        return replace(_sequence(argument, size, ignore_case, None), ways=1)
    if op is sre.POSSESSIVE_REPEAT:
        return replace(_repeat(argument, size, ignore_case, None), ways=1)
    # Conditional groups, and whatever a later release of `re` adds, are taken for the worst.
    return _Cost(HUGE, HUGE, 0, _ANYTHING)


def _branch(bodies: list[_Cost]) -> _Cost:
    """Return the bound of alternatives: those that begin differently exclude each other."""
    first: frozenset[int] = frozenset()
    exclusive = all(body.width for body in bodies)
    for body in bodies:
        exclusive = exclusive and not (first & body.first)
        first |= body.first
    ways = max(body.ways for body in bodies) if exclusive else sum(body.ways for body in bodies)
    return _Cost(
        _cap(ways), _cap(sum(body.steps for body in bodies)), min(body.width for body in bodies), first
    )


def _repeat(argument: Any, size: int, ignore_case: bool, follow: frozenset[int] | None) -> _Cost:
    """Return the bound of a repeat.

    Each repetition but the last is followed by another, so a body that ends in a run ends at one place there when
    the run excludes the body's beginning: `(-[a-z]+)*` is polynomial where `([a-z]+)*` is exponential.
    """
    low, high, items = int(argument[0]), int(argument[1]), argument[2]
    last = _sequence(items, size, ignore_case, follow)
    if last.width:
        inner = _sequence(items, size, ignore_case, last.first)
        most = min(high, max(low, size // last.width))
    else:
        # An iteration may match nothing, so what follows one may be anything that follows the whole.
        inner, most = _sequence(items, size, ignore_case, None), min(high, size)
    if inner.ways == 1:
        ways, steps = (most - low + 1) * last.ways, most * last.steps
    else:
        ways, steps = _multiplied(low, most, inner.ways, last)
    steps = _cap(steps + ways)
    run = _characters(items[0][0], items[0][1], ignore_case) if len(items) == 1 else None
    if run is not None and follow is not None and not (run & follow):
        # It can only go on where the run ends; the other ends were looked at, and are counted in the steps.
        ways = 1
    return _Cost(max(1, _cap(ways)), steps, low * last.width, last.first)


def _multiplied(low: int, most: int, inner_ways: int, last: _Cost) -> tuple[int, int]:
    """Return ways and steps of a repeat whose body can match in several ways: they multiply with each repetition."""
    ways = steps = 0
    paths = 1
    for count in range(most + 1):
        if count >= low:
            ways = _cap(ways + (paths * last.ways if count else 1))
        steps = _cap(steps + paths * last.steps)
        if count:
            paths = _cap(paths * inner_ways)
        if steps >= HUGE:
            break
    return ways, steps


def _characters(op: Any, argument: Any, ignore_case: bool) -> frozenset[int] | None:
    """Return the characters that a one-character part matches; None when it is not one."""
    if op is sre.LITERAL:
        return _fold({_code(argument)}, ignore_case)
    if op is sre.NOT_LITERAL:
        return _ANYTHING if ignore_case else _ANYTHING - ({argument} if argument < 256 else set())
    if op is sre.ANY:
        return _ANYTHING
    if op is sre.IN:
        return _set(argument, ignore_case)
    return None


def _set(items: Sequence[Any], ignore_case: bool) -> frozenset[int]:
    found: set[int] = set()
    negated = False
    for op, argument in items:
        if op is sre.NEGATE:
            negated = True
        elif op is sre.LITERAL:
            found.add(_code(argument))
        elif op is sre.RANGE:
            low, high = argument
            found.update(range(low, min(high, 255) + 1))
            if high > 255:
                found.add(_OTHER)
        elif op is sre.CATEGORY:
            found.update(_category(str(argument), surely=negated))
        else:
            return _ANYTHING
    if negated:
        # Letters that differ in case only may still match a negated set, so nothing is taken away for them.
        excluded = set() if ignore_case else found
        return frozenset(_ANYTHING - (excluded - {_OTHER}))
    return _fold(found, ignore_case)


@lru_cache(maxsize=32)
def _category(name: str, *, surely: bool) -> frozenset[int]:
    """Return the characters that a class such as \\d may hold, or those that it `surely` holds whatever the flags."""
    kind = name.rpartition("_")[2]
    escape = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}.get(kind)
    if escape is None:
        return frozenset() if surely else _ANYTHING
    test = re.compile(escape.upper() if "_NOT_" in name else escape)
    ascii_part = frozenset(code for code in range(128) if test.match(chr(code)))
    return ascii_part if surely else ascii_part | frozenset(range(128, 256)) | {_OTHER}


def _fold(codes: set[int], ignore_case: bool) -> frozenset[int]:
    if not ignore_case:
        return frozenset(codes)
    if _OTHER in codes:
        return _ANYTHING
    folded = set(codes)
    for code in codes:
        if chr(code).isalpha():
            folded.update(_code(ord(other)) for other in chr(code).swapcase())
            folded.add(_OTHER)
    return frozenset(folded)


def _code(character: int) -> int:
    return character if character < 256 else _OTHER


def _cap(number: int) -> int:
    return min(number, HUGE)
