"""What can go wrong with a user's data logic. Messages name the construct and its place, never a value.

DataError
├── ExpressionError   an expression cannot be parsed, is not allowed, exceeds a limit or fails
├── TemplateError     a string's placeholder cannot be filled
├── TransformError    a transformation is misdescribed or does not fit its data
├── RuleError         a validation rule or schema is misdescribed
└── ConditionError    a condition, tree or rule set is misdescribed
"""

import difflib
from collections.abc import Iterable

MAX_SUGGESTION_CANDIDATES = 1000
"""How many known names are looked at for a did-you-mean."""
MAX_SHOWN_NAME_CHARS = 60

SYNTAX = "EXPRESSION_SYNTAX"
NOT_ALLOWED = "EXPRESSION_NOT_ALLOWED"
LIMIT = "EXPRESSION_LIMIT"
NAME = "EXPRESSION_NAME"
FAILED = "EXPRESSION_ERROR"

TEMPLATE_UNRESOLVED = "TEMPLATE_UNRESOLVED"
INVALID_INPUT = "INVALID_INPUT"
CONDITION_FAILED = "CONDITION_EVALUATION_FAILED"


class DataError(Exception):
    """A user's data logic failed. Trying again cannot help."""

    severity = "medium"
    retryable = False

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ExpressionError(DataError):
    """An expression failed. `position` is the 0-based character where, or None when no place is to blame."""

    def __init__(self, code: str, message: str, position: int | None = None, *, name: str = "") -> None:
        super().__init__(code, message if position is None else f"{message} (at character {position + 1})")
        self.reason = message
        self.position = position
        self.name = name


class TemplateError(DataError):
    """A placeholder cannot be filled. `path` is the JSON pointer of the string in the parameters."""

    def __init__(self, code: str, message: str, path: str = "", *, name: str = "") -> None:
        super().__init__(code, f"{path or '/'}: {message}")
        self.reason = message
        self.path = path
        self.name = name


class TransformError(DataError):
    """A transformation is misdescribed or does not fit its data. `index` counts the transformations from 0."""

    def __init__(self, code: str, message: str, index: int | None = None) -> None:
        super().__init__(code, message if index is None else f"transformation {index + 1}: {message}")
        self.index = index


class RuleError(DataError):
    """A validation rule or a JSON Schema is misdescribed or too large."""


class ConditionError(DataError):
    """A condition set, decision tree or rule set is misdescribed or too large."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known name, or an empty text."""
    candidates = []
    for candidate in known:
        if isinstance(candidate, str) and candidate.isidentifier() and len(candidate) <= MAX_SHOWN_NAME_CHARS:
            candidates.append(candidate)
        if len(candidates) >= MAX_SUGGESTION_CANDIDATES:
            break
    close = difflib.get_close_matches(name[:MAX_SHOWN_NAME_CHARS], candidates, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def shown(name: str) -> str:
    """Return a name the author wrote, quoted and cut to a readable length."""
    cut = name if len(name) <= MAX_SHOWN_NAME_CHARS else name[:MAX_SHOWN_NAME_CHARS] + "..."
    return f"'{cut}'"
