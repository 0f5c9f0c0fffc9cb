"""The regular expression functions of expressions: bounded before they run, see `regex`."""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from orchestration.expressions.errors import FAILED, LIMIT, ExpressionError
from orchestration.expressions.regex import Pattern, compile_pattern, guard
from orchestration.expressions.values import kind

if TYPE_CHECKING:
    from orchestration.expressions.functions import Meter

STEPS_PER_CHARGE = 128
"""Steps of the backtracking matcher that take as long as one step of the evaluator."""
MAX_GROUP_USES = 16
"""References to groups in a replacement text."""

FLAGS: Mapping[str, int] = {
    "I": re.IGNORECASE, "IGNORECASE": re.IGNORECASE, "M": re.MULTILINE, "MULTILINE": re.MULTILINE,
    "S": re.DOTALL, "DOTALL": re.DOTALL,
}  # fmt: skip


def _prepare(meter: "Meter", pattern: Any, text: Any, flags: Any, *, search: bool) -> Pattern:
    """Return the checked pattern with the cost of using it charged."""
    if not isinstance(pattern, str) or not isinstance(text, str):
        wrong = pattern if not isinstance(pattern, str) else text
        raise ExpressionError(FAILED, f"a regular expression works on text, not on {kind(wrong)}")
    if flags not in (0, *FLAGS.values()):
        raise ExpressionError(FAILED, "the flags are one of re.IGNORECASE, re.MULTILINE, re.DOTALL")
    prepared = compile_pattern(pattern, int(flags))
    meter.charge(guard(prepared, text, search=search) // STEPS_PER_CHARGE)
    return prepared


def _match(meter: "Meter", pattern: Any, string: Any, flags: int = 0) -> re.Match[str] | None:
    return _prepare(meter, pattern, string, flags, search=False).compiled.match(string)


def _fullmatch(meter: "Meter", pattern: Any, string: Any, flags: int = 0) -> re.Match[str] | None:
    return _prepare(meter, pattern, string, flags, search=True).compiled.fullmatch(string)


def _search(meter: "Meter", pattern: Any, string: Any, flags: int = 0) -> re.Match[str] | None:
    return _prepare(meter, pattern, string, flags, search=True).compiled.search(string)


def _findall(meter: "Meter", pattern: Any, string: Any, flags: int = 0) -> list[Any]:
    prepared = _prepare(meter, pattern, string, flags, search=True)
    found: list[Any] = []
    for match in prepared.compiled.finditer(string):
        meter.charge(1 + prepared.compiled.groups)
        for text in (match.group(), *match.groups("")):
            meter.text(text)
        if len(found) >= meter.limits.max_items:
            raise ExpressionError(LIMIT, f"a list may have {meter.limits.max_items} elements")
        groups = match.groups("")
        found.append(match.group() if not groups else groups[0] if len(groups) == 1 else groups)
    return found


def _sub(meter: "Meter", pattern: Any, repl: Any, string: Any, count: int = 0, flags: int = 0) -> str:
    prepared = _prepare(meter, pattern, string, flags, search=True)
    if not isinstance(repl, str) or repl.count("\\") > MAX_GROUP_USES:
        raise ExpressionError(FAILED, f"a replacement is text with {MAX_GROUP_USES} backslashes at most")
    parts: list[str] = []
    end = made = 0
    for number, match in enumerate(prepared.compiled.finditer(string)):
        if count and number >= count:
            break
        parts += (string[end : match.start()], match.expand(repl))
        made += len(parts[-1]) + len(parts[-2])
        if made > meter.limits.max_string_chars:
            raise ExpressionError(LIMIT, f"a text may have {meter.limits.max_string_chars} characters")
        meter.charge(1)
        end = match.end()
    return meter.text("".join([*parts, string[end:]]))


def regex_match(meter: "Meter", value: Any, pattern: Any) -> bool:
    """Return whether the text matches the pattern at its start. Null never does."""
    return value is not None and _match(meter, pattern, value) is not None


def regex_search(meter: "Meter", value: Any, pattern: Any) -> bool:
    """Return whether the pattern is somewhere in the text. It never is in null."""
    return value is not None and _search(meter, pattern, value) is not None


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "match": _match, "fullmatch": _fullmatch, "search": _search, "findall": _findall, "sub": _sub,
}  # fmt: skip
