"""The interpreter: simpleeval's walk over a syntax tree, with every operation replaced by a bounded one.

simpleeval alone evaluates what it should refuse and takes gigabytes on short inputs, so it is given only trees that
`grammar` accepted, every step is counted, and every operation checks sizes before it makes something. Values
are never changed, objects have only the attributes and methods in the tables, and nothing callable is ever a value.
"""

import ast
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from simpleeval import EvalWithCompoundTypes

from orchestration.expressions.budget import COMPARED_CHARS_PER_STEP, SCALARS, Budget
from orchestration.expressions.errors import (
    FAILED,
    LIMIT,
    NAME,
    NOT_ALLOWED,
    ExpressionError,
    did_you_mean,
    shown,
)
from orchestration.expressions.functions import (
    ATTRIBUTES,
    FUNCTIONS,
    NAMESPACE_CONSTANTS,
    NAMESPACES,
    TYPES,
    iterate,
    make_date,
    plain,
)
from orchestration.expressions.grammar import LITERAL_NAMES, Expression, namespace_of, parse
from orchestration.expressions.limits import DEFAULT_LIMITS, Limits
from orchestration.expressions.methods import METHODS, OBJECT_METHODS
from orchestration.expressions.values import INSIDE, MISSING, admit, kind, to_json

MAX_EXPONENT = 1000

_PYTHON_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, RecursionError, re.error)
_BINARY: Mapping[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Sub: ("-", operator.sub),
    ast.Div: ("/", operator.truediv),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
}
_ORDER: Mapping[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}


class Evaluator(Budget, EvalWithCompoundTypes):  # type: ignore[misc]
    """Evaluates expressions over layers of names, the first layer that has a name wins.

    All evaluations of one evaluator share its steps, so a loop over items is bounded as a whole. It belongs to one
    thread. `now` is the moment of `datetime.now()`; without it an expression may not ask for the time.
    """

    def __init__(
        self,
        names: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        declared: Collection[str] = (),
        now: datetime | None = None,
        limits: Limits = DEFAULT_LIMITS,
        steps: int | None = None,
    ) -> None:
        # simpleeval's class would build its own tables of functions and operators; none of them is ever used.
        Budget.__init__(self, limits, limits.max_steps if steps is None else steps, now)
        self.layers: Sequence[Mapping[str, Any]] = (names,) if isinstance(names, Mapping) else names
        self.nodes = None
        self._declared = declared
        self._locals: dict[str, Any] = {}

    def __del__(self) -> None:
        """Do nothing: there are no tables to take apart."""

    def run(self, expression: Expression | str) -> Any:
        """Return the value as JSON. Raises ExpressionError."""
        if isinstance(expression, str):
            expression = parse(expression, self.limits)
        if expression.path is not None:
            value = self._look_up(expression.path)
            if value is not MISSING:
                return value
        return to_json(self._run(expression.body), self.limits)

    def truth(self, expression: Expression) -> bool:
        """Return whether the value counts as true, without copying it."""
        return bool(self._run(expression.body))

    def find(self, path: Sequence[str]) -> Any:
        """Return the value that dotted names lead to, or MISSING. Numbers lead into lists, null leads nowhere."""
        value = MISSING
        for layer in self.layers:
            value = layer.get(path[0], MISSING)
            if value is not MISSING:
                break
        for key in path[1:]:
            if isinstance(value, Mapping):
                value = value.get(key, MISSING)
            elif isinstance(value, list) and key.isascii() and key.isdigit() and int(key) < len(value):
                value = value[int(key)]
            else:
                return MISSING
        return value if value is MISSING or type(value) in INSIDE else admit(value)

    def _run(self, body: ast.expr) -> Any:
        self._locals = {}
        try:
            return self._eval(body)
        except _PYTHON_ERRORS:
            # Every operation words its own errors; what is left came out of a loop over a lazy argument.
            raise ExpressionError(FAILED, "the expression cannot be evaluated with these values") from None

    def _look_up(self, path: tuple[str, ...]) -> Any:
        """Return the value of dotted names from the context, or MISSING when only the interpreter can tell."""
        name = path[0]
        value = MISSING
        for layer in self.layers:
            value = layer.get(name, MISSING)
            if value is not MISSING:
                break
        for key in path[1:]:
            if type(value) is not dict:
                return MISSING
            value = value.get(key, MISSING)
        of = type(value)
        if of is dict or of is list or (of in SCALARS and (of is not float or value - value == 0)):
            self._steps -= len(path)
            return value if self._steps >= 0 else MISSING
        return MISSING

    # --- nodes --------------------------------------------------------------------------------------------

    def _eval(self, node: ast.AST) -> Any:
        self._steps -= 1
        if self._steps < 0:
            raise ExpressionError(LIMIT, "the expression takes too many steps")
        try:
            return HANDLERS[type(node)](self, node)
        except ExpressionError as error:
            if error.position is None and error.code != LIMIT:
                raise ExpressionError(error.code, error.reason, _place(node), name=error.name) from None
            raise

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        name = node.id
        if name in self._locals:
            return self._locals[name]
        for layer in self.layers:
            value = layer.get(name, MISSING)
            if value is not MISSING:
                return value if type(value) in INSIDE else admit(value)
        if name in self._declared:
            return None
        if name in LITERAL_NAMES:
            return LITERAL_NAMES[name]
        raise ExpressionError(NAME, self._unknown(name), _place(node), name=name)

    def _unknown(self, name: str) -> str:
        if name in FUNCTIONS or name in TYPES:
            return f"{shown(name)} is a function, not a value"
        known = [*self._declared, *self._locals]
        for layer in self.layers:
            known += layer
        return f"there is no name {shown(name)}{did_you_mean(name, known)}"

    def _attribute(self, node: ast.Attribute) -> Any:
        base = node.value
        if isinstance(base, ast.Name) and node.attr in NAMESPACE_CONSTANTS.get(base.id, ()):
            return NAMESPACE_CONSTANTS[base.id][node.attr]
        value = self._eval(base)
        if type(value) is dict or isinstance(value, Mapping):
            found = value.get(node.attr, MISSING)
            if found is not MISSING:
                return found if type(found) in INSIDE else admit(found)
            raise ExpressionError(NAME, self._no_key(node.attr, value), _place(node), name=node.attr)
        if node.attr in ATTRIBUTES.get(type(value), ()):
            return getattr(value, node.attr)
        raise ExpressionError(FAILED, f"{kind(value)} has no {shown(node.attr)}", _place(node))

    def _no_key(self, key: str, value: Mapping[str, Any]) -> str:
        method = " (a method is called with parentheses)" if key in OBJECT_METHODS else ""
        # Only a plain object's keys may be listed; secrets must not be.
        known = value if type(value) is dict else ()
        return f"the object has no key {shown(key)}{method}{did_you_mean(key, known)}"

    def _subscript(self, node: ast.Subscript) -> Any:
        value = self._eval(node.value)
        if isinstance(node.slice, ast.Slice):
            return self._sliced(node, value)
        key = self._eval(node.slice)
        if type(value) is dict or isinstance(value, Mapping):
            found = value.get(plain(key), MISSING)
            if found is not MISSING:
                return found if type(found) in INSIDE else admit(found)
            raise ExpressionError(FAILED, "the object has no such key", _place(node))
        if not isinstance(value, list | tuple | str):
            raise ExpressionError(FAILED, f"{kind(value)} has no elements", _place(node))
        if type(key) is not int:
            raise ExpressionError(FAILED, f"a position is a whole number, not {kind(key)}", _place(node))
        try:
            found = value[key]
        except IndexError:
            raise ExpressionError(FAILED, "the list has no such position", _place(node)) from None
        return found if type(found) in INSIDE else admit(found)

    def _sliced(self, node: ast.Subscript, value: Any) -> Any:
        if not isinstance(value, list | tuple | str):
            raise ExpressionError(FAILED, f"{kind(value)} cannot be sliced", _place(node))
        bounds = self._guarded(node, "these bounds cannot be used", self._slice_of, node.slice)
        part = self._guarded(node, "these bounds cannot be used", operator.getitem, value, bounds)
        if isinstance(part, str):
            return self.text(part)
        self.charge(len(part))
        return part

    def _slice_of(self, node: ast.Slice) -> slice:
        return slice(
            *(None if bound is None else self._eval(bound) for bound in (node.lower, node.upper, node.step))
        )

    def _binary(self, node: ast.BinOp) -> Any:
        left = self._eval(node.left)
        right = self._eval(node.right)
        made = type(node.op)
        if made is ast.Add:
            return self._add(node, left, right)
        if made is ast.Mult:
            return self._multiply(node, left, right)
        if made is ast.Pow:
            return self._power(node, left, right)
        if made is ast.Mod and isinstance(left, str):
            raise ExpressionError(
                NOT_ALLOWED, "the operator % formats no text; use an f-string", _place(node)
            )
        symbol, compute = _BINARY[made]
        if isinstance(left, frozenset):
            self.charge(len(left))
        return self.number(self._calculate(node, symbol, compute, left, right))

    def _add(self, node: ast.BinOp, left: Any, right: Any) -> Any:
        if isinstance(left, str) and isinstance(right, str):
            self.room(len(left) + len(right), self.limits.max_string_chars, "characters")
            return self.text(left + right)
        if isinstance(left, list | tuple) and type(left) is type(right):
            self.room(len(left) + len(right), self.limits.max_items, "elements")
            self.charge(len(left) + len(right))
        return self.number(self._calculate(node, "+", operator.add, left, right))

    def _multiply(self, node: ast.BinOp, left: Any, right: Any) -> Any:
        sequence, times = (right, left) if isinstance(right, str | list | tuple) else (left, right)
        if isinstance(sequence, str | list | tuple) and type(times) is int:
            if isinstance(sequence, str):
                self.room(len(sequence) * times, self.limits.max_string_chars, "characters")
            else:
                self.room(len(sequence) * times, self.limits.max_items, "elements")
            self.charge(max(0, len(sequence) * times))
        return self.number(self._calculate(node, "*", operator.mul, left, right))

    def _power(self, node: ast.BinOp, base: Any, exponent: Any) -> Any:
        if type(base) is int and type(exponent) is int:
            bits = self.limits.max_integer.bit_length()
            if abs(exponent) > MAX_EXPONENT or (exponent > 0 and (base.bit_length() - 1) * exponent > bits):
                raise ExpressionError(LIMIT, "an integer is larger than 10 to the power of 30", _place(node))
        return self.number(self._calculate(node, "**", operator.pow, base, exponent))

    def _calculate(
        self, node: ast.expr, symbol: str, compute: Callable[[Any, Any], Any], left: Any, right: Any
    ) -> Any:
        try:
            return compute(left, right)
        except ZeroDivisionError:
            raise ExpressionError(FAILED, "division by zero", _place(node)) from None
        except OverflowError:
            raise ExpressionError(LIMIT, "the number is too large", _place(node)) from None
        except (TypeError, ValueError):
            message = f"{symbol} does not go with {kind(left)} and {kind(right)}"
            raise ExpressionError(FAILED, message, _place(node)) from None

    def _unary(self, node: ast.UnaryOp) -> Any:
        value = self._eval(node.operand)
        if isinstance(node.op, ast.Not):
            return not value
        if not isinstance(value, int | float | timedelta):
            raise ExpressionError(FAILED, f"a sign does not go with {kind(value)}", _place(node))
        return -value if isinstance(node.op, ast.USub) else +value

    def _compare(self, node: ast.Compare) -> bool:
        left = self._eval(node.left)
        if len(node.ops) == 1:
            return self._holds(node, type(node.ops[0]), left, self._eval(node.comparators[0]))
        for made, operand in zip(node.ops, node.comparators, strict=True):
            right = self._eval(operand)
            if not self._holds(node, type(made), left, right):
                return False
            left = right
        return True

    def _holds(self, node: ast.Compare, made: type[ast.cmpop], left: Any, right: Any) -> bool:
        if made is ast.Eq:
            return self.equal(left, right)
        if made is ast.NotEq:
            return not self.equal(left, right)
        if made is ast.Is:
            return left is right
        if made is ast.IsNot:
            return left is not right
        if made is ast.In or made is ast.NotIn:
            found = self._guarded(node, f"'in' does not go with {kind(left)} and {kind(right)}",
                                  self.contains, right, left)  # fmt: skip
            return found if made is ast.In else not found
        symbol, compare = _ORDER[made]
        if type(left) is str:
            self.charge(len(left) // COMPARED_CHARS_PER_STEP)
        elif type(left) not in SCALARS:
            self.measure(left)
        return bool(self._calculate(node, symbol, compare, left, right))

    def _call(self, node: ast.Call) -> Any:
        function = node.func
        outer = self._locals
        try:
            if isinstance(function, ast.Name):
                return self._call_function(node, function.id)
            assert isinstance(function, ast.Attribute)
            namespace = namespace_of(function.value)
            if namespace is not None and namespace not in outer and function.attr in NAMESPACES[namespace]:
                return self._apply(node, f"{namespace}.{function.attr}", NAMESPACES[namespace][function.attr])
            value = self._eval(function.value)
            methods = METHODS.get(type(value), OBJECT_METHODS if isinstance(value, Mapping) else {})
            if function.attr not in methods:
                raise ExpressionError(
                    FAILED, f"{kind(value)} has no method {shown(function.attr)}", _place(function)
                )
            return self._apply(node, function.attr, methods[function.attr], value)
        finally:
            # A generator that was not consumed to its end leaves its loop names behind.
            self._locals = outer

    def _call_function(self, node: ast.Call, name: str) -> Any:
        if name == "isinstance":
            value = self._eval(node.args[0])
            kinds = node.args[1].elts if isinstance(node.args[1], ast.Tuple) else [node.args[1]]
            return isinstance(
                value, tuple(TYPES[kind_name.id] for kind_name in kinds if isinstance(kind_name, ast.Name))
            )
        return self._apply(node, name, make_date if name == "datetime" else FUNCTIONS[name])

    def _apply(self, node: ast.Call, name: str, function: Callable[..., Any], *before: Any) -> Any:
        arguments = [self._eval(argument) for argument in node.args]
        options = {
            keyword.arg: self._eval(keyword.value) for keyword in node.keywords if keyword.arg is not None
        }
        try:
            return function(self, *before, *arguments, **options)
        except _PYTHON_ERRORS:
            given = ", ".join(kind(argument) for argument in (*before, *arguments)) or "nothing"
            raise ExpressionError(FAILED, f"{name}() cannot be used with {given}", _place(node)) from None

    def _guarded(self, node: ast.expr, message: str, compute: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return compute(*arguments)
        except _PYTHON_ERRORS:
            raise ExpressionError(FAILED, message, _place(node)) from None

    # --- collections --------------------------------------------------------------------------------------

    def _elements(self, node: ast.List | ast.Tuple | ast.Set) -> list[Any]:
        made: list[Any] = []
        for element in node.elts:
            if isinstance(element, ast.Starred):
                made.extend(iterate(self, self._eval(element.value)))
            else:
                made.append(self._eval(element))
            self.room(len(made), self.limits.max_items, "elements")
        return made

    def _list(self, node: ast.List) -> list[Any]:
        return self._elements(node)

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._elements(node))

    def _set(self, node: ast.Set) -> frozenset[Any]:
        return frozenset(plain(element) for element in self._elements(node))

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None:
                made[plain(self._eval(key))] = self._eval(value)
                continue
            spread = self._eval(value)
            if not isinstance(spread, Mapping):
                raise ExpressionError(FAILED, f"** needs an object, not {kind(spread)}", _place(value))
            self.charge(len(spread))
            made.update(spread)
            self.room(len(made), self.limits.max_items, "entries")
        return made

    def _joined(self, node: ast.JoinedStr) -> str:
        parts: list[str] = []
        size = 0
        for part in node.values:
            text = str(self._eval(part)) if isinstance(part, ast.Constant) else self._formatted(part)
            size += len(text)
            self.room(size, self.limits.max_string_chars, "characters")
            parts.append(text)
        return self.text("".join(parts))

    def _formatted(self, node: ast.expr) -> str:
        assert isinstance(node, ast.FormattedValue)
        return str(FUNCTIONS["str"](self, self._eval(node.value)))

    def _list_comprehension(self, node: ast.ListComp) -> list[Any]:
        return self._gathered(node, self._each(node.generators, lambda: self._eval(node.elt)))

    def _set_comprehension(self, node: ast.SetComp) -> frozenset[Any]:
        return frozenset(
            self._gathered(node, self._each(node.generators, lambda: plain(self._eval(node.elt))))
        )

    def _dict_comprehension(self, node: ast.DictComp) -> dict[Any, Any]:
        def entry() -> tuple[Any, Any]:
            return plain(self._eval(node.key)), self._eval(node.value)

        return dict(self._gathered(node, self._each(node.generators, entry)))

    def _generator(self, node: ast.GeneratorExp) -> Iterator[Any]:
        return self._each(node.generators, lambda: self._eval(node.elt))

    def _gathered(self, node: ast.expr, values: Iterator[Any]) -> list[Any]:
        outer = self._locals
        made: list[Any] = []
        try:
            for value in values:
                made.append(value)
                self.room(len(made), self.limits.max_items, "elements")
        finally:
            self._locals = outer
        return made

    def _each(self, generators: list[ast.comprehension], produce: Callable[[], Any]) -> Iterator[Any]:
        """Yield what the body of a comprehension produces, with its loop names set on each visit."""
        outer = self._locals
        mine = dict(outer)
        values = self._eval(generators[0].iter)
        for _ in self._loops(generators, 0, values, mine):
            yield produce()
        self._locals = outer

    def _loops(
        self, generators: list[ast.comprehension], level: int, values: Any, names: dict[str, Any]
    ) -> Iterator[None]:
        generator = generators[level]
        for value in iterate(self, values):
            self._locals = names
            self.charge(1)
            self._assign(generator.target, value, names)
            if not all(self._eval(condition) for condition in generator.ifs):
                continue
            if level + 1 == len(generators):
                yield None
            else:
                yield from self._loops(generators, level + 1, self._eval(generators[level + 1].iter), names)

    def _assign(self, target: ast.expr, value: Any, names: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            names[target.id] = value if type(value) in INSIDE else admit(value)
            return
        assert isinstance(target, ast.Tuple | ast.List)
        parts = list(value) if isinstance(value, list | tuple) else []
        if len(parts) != len(target.elts):
            message = f"{len(target.elts)} names need a list of as many elements"
            raise ExpressionError(FAILED, message, _place(target))
        for element, part in zip(target.elts, parts, strict=True):
            self._assign(element, part, names)


def _place(node: ast.AST) -> int | None:
    return getattr(node, "col_offset", None)


HANDLERS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Constant: Evaluator._constant,
    ast.Name: Evaluator._name,
    ast.Attribute: Evaluator._attribute,
    ast.Subscript: Evaluator._subscript,
    ast.BinOp: Evaluator._binary,
    ast.UnaryOp: Evaluator._unary,
    ast.BoolOp: EvalWithCompoundTypes._eval_boolop,
    ast.IfExp: EvalWithCompoundTypes._eval_ifexp,
    ast.Compare: Evaluator._compare,
    ast.Call: Evaluator._call,
    ast.List: Evaluator._list,
    ast.Tuple: Evaluator._tuple,
    ast.Set: Evaluator._set,
    ast.Dict: Evaluator._dict,
    ast.JoinedStr: Evaluator._joined,
    ast.ListComp: Evaluator._list_comprehension,
    ast.SetComp: Evaluator._set_comprehension,
    ast.DictComp: Evaluator._dict_comprehension,
    ast.GeneratorExp: Evaluator._generator,
}
"""What evaluates which node. A node that is not here cannot be evaluated."""


def evaluate(
    expression: Expression | str,
    names: Mapping[str, Any],
    *,
    declared: Collection[str] = (),
    now: datetime | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Any:
    """Return the value of an expression as JSON: never anything callable, never a value that JSON does not know.

    Args:
        names: The context; JSON values, dates allowed. Never changed. A bare name or dotted path returns the
            context's own list or object, everything else is a copy.
        declared: Names that are null when the context lacks them. Any other unknown name is an error.
        now: The moment of `datetime.now()`, which is refused without it.

    Raises: ExpressionError with one of the EXPRESSION_ codes and the position.
    """
    return Evaluator(names, declared=declared, now=now, limits=limits).run(expression)
