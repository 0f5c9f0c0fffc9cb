"""From text to a checked expression: only what is listed here can be said.

Parsing never evaluates. What is accepted is a subset of Python's expressions; the names an expression needs are known
afterwards, so that the engine can send a task just those.
"""

import ast
import re
import warnings
from dataclasses import dataclass
from typing import Any

from orchestration.expressions.errors import (
    LIMIT,
    NAME,
    NOT_ALLOWED,
    SYNTAX,
    ExpressionError,
    did_you_mean,
    shown,
)
from orchestration.expressions.functions import FUNCTIONS, NAMESPACE_CONSTANTS, NAMESPACES, TYPES
from orchestration.expressions.limits import DEFAULT_LIMITS, Limits
from orchestration.expressions.methods import METHOD_NAMES
from orchestration.expressions.regex import compile_pattern

CACHED_EXPRESSIONS = 4096
CACHED_SOURCE_CHARS = 512 * 1024
"""Bounds of the parse cache. A tree takes about a hundred bytes for each character of its source."""
TOKENS_PER_NODE = 4

LITERAL_NAMES = {"true": True, "false": False, "null": None}
"""JSON's spellings, understood where the context has no such name."""

_PATH = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)*")
_KEYWORDS = frozenset({"True", "False", "None", "and", "or", "not", "if", "else", "for", "in", "is", "lambda",
                       "await", "async", "yield", "import", "def", "class", "return", "from", "as", "pass", "del",
                       "while", "with", "try", "except", "finally", "raise", "global", "nonlocal", "assert", "break",
                       "continue", "elif"})  # fmt: skip
_TOKEN = re.compile(r"\w+|\"[^\"]*\"|'[^']*'|\S")

_OPERATORS: tuple[type[ast.AST], ...] = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.Not, ast.USub, ast.UAdd, ast.And, ast.Or,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.Load, ast.Store,
)  # fmt: skip
_PLAIN_NODES: tuple[type[ast.AST], ...] = (
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.IfExp, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.Set,
    ast.JoinedStr,
)  # fmt: skip
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_ALLOWED: frozenset[type[ast.AST]] = frozenset(
    (*_OPERATORS, *_PLAIN_NODES, *_COMPREHENSIONS, ast.comprehension, ast.Constant, ast.Name, ast.Attribute, ast.Call,
     ast.keyword, ast.Compare, ast.FormattedValue, ast.Dict, ast.Starred)
)  # fmt: skip

_WORDS = {
    "Lambda": "a lambda", "NamedExpr": "an assignment", "Await": "await", "Yield": "yield", "YieldFrom": "yield",
    "BitOr": "the operator |", "BitAnd": "the operator &", "BitXor": "the operator ^",
    "LShift": "the operator <<", "RShift": "the operator >>", "MatMult": "the operator @", "Invert": "the operator ~",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A checked expression. `names` are the context names it needs, `functions` what it calls.

    `path` is set when it is nothing but a name or dotted names, which can be looked up without interpreting.
    """

    source: str
    body: ast.expr
    names: frozenset[str]
    functions: frozenset[str]
    path: tuple[str, ...] | None


class SourceCache:
    """Parsed things by their source, bounded in number and in characters. The oldest leave first.

    Lookups are single dictionary operations, so threads may share it.
    """

    __slots__ = ("_chars", "_entries", "_most_chars", "_most_entries")

    def __init__(self, most_entries: int, most_chars: int) -> None:
        self._entries: dict[tuple[str, object], Any] = {}
        self._chars = 0
        self._most_entries = most_entries
        self._most_chars = most_chars

    def get(self, source: str, variant: object = None) -> Any:
        """Return what was stored for the source, or None."""
        return self._entries.get((source, variant))

    def put(self, source: str, parsed: Any, variant: object = None) -> None:
        """Remember it, and forget the oldest when there is too much."""
        self._entries[source, variant] = parsed
        self._chars += len(source)
        while self._entries and (len(self._entries) > self._most_entries or self._chars > self._most_chars):
            oldest = next(iter(self._entries), None)
            if oldest is None or self._entries.pop(oldest, None) is None:
                break
            self._chars -= len(oldest[0])


_CACHE = SourceCache(CACHED_EXPRESSIONS, CACHED_SOURCE_CHARS)


def parse(source: str, limits: Limits = DEFAULT_LIMITS) -> Expression:
    """Return the checked expression. Raises ExpressionError with the place of what is wrong."""
    if not isinstance(source, str):
        raise ExpressionError(SYNTAX, "an expression is a text")
    found: Expression | None = _CACHE.get(source, limits)
    if found is None:
        found = _parse(source, limits)
        _CACHE.put(source, found, limits)
    return found


def _parse(source: str, limits: Limits) -> Expression:
    if len(source) > limits.max_source_chars:
        raise ExpressionError(
            LIMIT, f"an expression may have {limits.max_source_chars} characters, this one has {len(source)}"
        )
    text = source.strip()
    if not text:
        raise ExpressionError(SYNTAX, "the expression is empty")
    shift = len(source) - len(source.lstrip())
    if _PATH.fullmatch(text):
        parts = tuple(text.split("."))
        if not _KEYWORDS.intersection(parts) and parts[0] not in LITERAL_NAMES:
            return Expression(source, _tree(text, shift), frozenset((parts[0],)), frozenset(), parts)
    tokens = sum(1 for _ in _TOKEN.finditer(text))
    if tokens > limits.max_nodes * TOKENS_PER_NODE:
        raise ExpressionError(LIMIT, f"an expression may have {limits.max_nodes} parts")
    body = _tree(text, shift)
    check = _Check(limits)
    check.visit(body, 0, frozenset())
    return Expression(source, body, frozenset(check.names), frozenset(check.functions), None)


def _tree(text: str, shift: int) -> ast.expr:
    try:
        with warnings.catch_warnings():
            # A backslash in a pattern such as '\d' is what the author means.
            warnings.simplefilter("ignore")
            # Line ends inside an expression are blanks, as they are inside parentheses.
            body = ast.parse(text.replace("\r", " ").replace("\n", " "), "<expression>", mode="eval").body
    except SyntaxError as error:
        place = error.offset + shift - 1 if error.offset and error.offset > 0 else None
        raise ExpressionError(SYNTAX, "this is not an expression", place) from None
    except (ValueError, RecursionError, MemoryError):
        raise ExpressionError(SYNTAX, "this is not an expression") from None
    if shift or not text.isascii():
        _count_characters(body, text, shift)
    return body


def _count_characters(body: ast.expr, text: str, shift: int) -> None:
    """Make the places in a tree count characters of the source; Python counts UTF-8 bytes of what it was given."""
    encoded = text.encode()
    for node in ast.walk(body):
        if isinstance(node, ast.expr):
            node.col_offset = len(encoded[: node.col_offset].decode(errors="ignore")) + shift


class _Check:
    """One walk over a syntax tree: refuses what is not allowed, collects names."""

    def __init__(self, limits: Limits) -> None:
        self.names: set[str] = set()
        self.functions: set[str] = set()
        self._limits = limits
        self._left = limits.max_nodes

    def visit(self, node: ast.AST, depth: int, bound: frozenset[str]) -> None:
        """Check a node and everything below it. `bound` are the names that comprehensions around it define."""
        self._left -= 1
        if self._left < 0:
            raise ExpressionError(LIMIT, f"an expression may have {self._limits.max_nodes} parts")
        if depth > self._limits.max_depth:
            raise ExpressionError(
                LIMIT, f"an expression may be nested {self._limits.max_depth} levels deep", _place(node)
            )
        if type(node) not in _ALLOWED:
            name = type(node).__name__
            raise self._refuse(f"{_WORDS.get(name, name.lower())} is not allowed here", node)
        match node:
            case ast.Name():
                self._name(node, bound)
            case ast.Constant():
                self._constant(node)
            case ast.Attribute():
                self._attribute(node, depth, bound)
            case ast.Call():
                self._call(node, depth, bound)
            case ast.Compare():
                self._compare(node, depth, bound)
            case ast.ListComp() | ast.SetComp() | ast.DictComp():
                self._comprehension(node, depth, bound)
            case ast.GeneratorExp():
                raise self._refuse(
                    "a generator can only be the argument of a function; use [...] for a list", node
                )
            case ast.FormattedValue() if node.format_spec is not None or node.conversion not in (
                -1,
                ord("s"),
            ):
                raise self._refuse("formats and conversions are not allowed in f-strings", node)
            case ast.BinOp(op=ast.Mod(), left=ast.Constant(value=str()) | ast.JoinedStr()):
                raise self._refuse("the operator % formats no text; use an f-string", node)
            case ast.Tuple() | ast.List() | ast.Set():
                self._children(node, depth, bound, starred=True)
            case _:
                self._children(node, depth, bound)

    def _children(self, node: ast.AST, depth: int, bound: frozenset[str], *, starred: bool = False) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, _OPERATORS):
                if type(child) not in _ALLOWED:
                    raise self._refuse("this operator is not allowed", node)
                continue
            if isinstance(child, ast.Starred) and not starred:
                raise self._refuse("* is allowed in lists only", child)
            if isinstance(child, ast.operator | ast.unaryop):
                name = type(child).__name__
                raise self._refuse(f"{_WORDS.get(name, name)} is not allowed", node)
            self.visit(child, depth + 1, bound)

    def _name(self, node: ast.Name, bound: frozenset[str]) -> None:
        self._identifier(node.id, node)
        if node.id not in bound and node.id not in LITERAL_NAMES:
            self.names.add(node.id)

    def _identifier(self, name: str, node: ast.AST) -> None:
        if name.startswith("_"):
            raise self._refuse(f"{shown(name)} begins with an underscore, which is not allowed", node)

    def _constant(self, node: ast.Constant) -> None:
        value = node.value
        if value is not None and type(value) not in (bool, int, float, str):
            raise self._refuse("only texts, numbers, True, False and None can be written", node)
        if type(value) is int and abs(value) > self._limits.max_integer:
            raise ExpressionError(LIMIT, "this number is too large", _place(node))
        if type(value) is float and value in (float("inf"), float("-inf")):
            raise ExpressionError(LIMIT, "this number is too large", _place(node))

    def _attribute(self, node: ast.Attribute, depth: int, bound: frozenset[str]) -> None:
        self._identifier(node.attr, node)
        if (
            isinstance(node.value, ast.Name)
            and node.value.id not in bound
            and node.attr in NAMESPACE_CONSTANTS.get(node.value.id, ())
        ):
            return
        self.visit(node.value, depth + 1, bound)

    def _call(self, node: ast.Call, depth: int, bound: frozenset[str]) -> None:
        function = node.func
        if isinstance(function, ast.Name):
            self._function(function, node, depth, bound)
        elif isinstance(function, ast.Attribute):
            self._method(function, node, depth, bound)
        else:
            raise self._refuse("only functions and methods can be called", node)
        if isinstance(function, ast.Name) and function.id == "isinstance":
            return
        for argument in node.args:
            if isinstance(argument, ast.GeneratorExp):
                self._comprehension(argument, depth + 1, bound)
            elif isinstance(argument, ast.Starred):
                raise self._refuse("* is not allowed in a call", argument)
            else:
                self.visit(argument, depth + 1, bound)
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self._refuse("** is not allowed in a call", node)
            self._identifier(keyword.arg, node)
            self.visit(keyword.value, depth + 1, bound)

    def _function(self, function: ast.Name, node: ast.Call, depth: int, bound: frozenset[str]) -> None:
        name = function.id
        self.functions.add(name)
        if name == "isinstance":
            if len(node.args) != 2 or node.keywords:
                raise self._refuse("isinstance() takes a value and a type's name", node)
            self.visit(node.args[0], depth + 1, bound)
            kinds = node.args[1].elts if isinstance(node.args[1], ast.Tuple) else [node.args[1]]
            for one in kinds:
                if not isinstance(one, ast.Name) or one.id not in TYPES:
                    raise self._refuse(f"isinstance() knows the types {', '.join(sorted(TYPES))}", one)
        elif name not in FUNCTIONS and name != "datetime":
            self._identifier(name, node)
            message = f"there is no function {shown(name)}{did_you_mean(name, FUNCTIONS)}"
            raise ExpressionError(NAME, message, _place(node), name=name)

    def _method(self, function: ast.Attribute, node: ast.Call, depth: int, bound: frozenset[str]) -> None:
        self._identifier(function.attr, function)
        namespace = namespace_of(function.value)
        if namespace is not None and namespace not in bound and function.attr in NAMESPACES[namespace]:
            self.functions.add(f"{namespace}.{function.attr}")
            if namespace == "re" and node.args and isinstance(node.args[0], ast.Constant):
                self._pattern(node.args[0])
            return
        if function.attr not in METHOD_NAMES:
            message = f"there is no method {shown(function.attr)}{did_you_mean(function.attr, METHOD_NAMES)}"
            raise ExpressionError(NOT_ALLOWED, message, _place(function))
        self.functions.add(f".{function.attr}")
        self.visit(function.value, depth + 1, bound)

    def _pattern(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            try:
                compile_pattern(node.value)
            except ExpressionError as error:
                raise ExpressionError(error.code, error.reason, _place(node)) from None

    def _compare(self, node: ast.Compare, depth: int, bound: frozenset[str]) -> None:
        for operator, operand in zip(node.ops, node.comparators, strict=True):
            single = isinstance(operand, ast.Constant) and (
                operand.value is None or type(operand.value) is bool
            )
            named = isinstance(operand, ast.Name) and operand.id in LITERAL_NAMES
            if isinstance(operator, ast.Is | ast.IsNot) and not (single or named):
                raise self._refuse("'is' compares with None, True and False only; use ==", operand)
        self._children(node, depth, bound)

    def _comprehension(self, node: ast.AST, depth: int, bound: frozenset[str]) -> None:
        assert isinstance(node, _COMPREHENSIONS)
        self._left -= 1
        inner = bound
        for generator in node.generators:
            if generator.is_async:
                raise self._refuse("async is not allowed", node)
            self.visit(generator.iter, depth + 1, inner)
            inner = inner | self._targets(generator.target)
            for condition in generator.ifs:
                self.visit(condition, depth + 1, inner)
        if isinstance(node, ast.DictComp):
            self.visit(node.key, depth + 1, inner)
            self.visit(node.value, depth + 1, inner)
        else:
            self.visit(node.elt, depth + 1, inner)

    def _targets(self, target: ast.expr) -> frozenset[str]:
        if isinstance(target, ast.Name):
            self._identifier(target.id, target)
            return frozenset((target.id,))
        if isinstance(target, ast.Tuple | ast.List):
            return frozenset().union(*(self._targets(element) for element in target.elts))
        raise self._refuse("a loop in an expression assigns to names only", target)

    def _refuse(self, message: str, node: ast.AST) -> ExpressionError:
        return ExpressionError(NOT_ALLOWED, message, _place(node))


def _place(node: ast.AST) -> int | None:
    return getattr(node, "col_offset", None)


def namespace_of(node: ast.expr) -> str | None:
    """Return the namespace a call is made on: `re`, `datetime`, also as `datetime.datetime`."""
    if isinstance(node, ast.Name) and node.id in NAMESPACES:
        return node.id
    if isinstance(node, ast.Attribute) and node.attr == "datetime" and isinstance(node.value, ast.Name):
        return "datetime" if node.value.id == "datetime" else None
    return None
