"""Properties of the whole engine: nothing runs out of bounds, nothing changes what it is given."""

import contextlib
import copy
import json
import time

import hypothesis.strategies as st
from hypothesis import given, settings

from orchestration.expressions import ExpressionError, Limits, evaluate, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "items", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
CONTEXTS = st.dictionaries(st.sampled_from(["a", "b", "x", "xs", "s", "d"]), JSON, max_size=6)

ATOMS = st.sampled_from(
    ["a", "b", "x", "xs", "s", "d", "1", "0", "-7", "2.5", "10**20", "'ab'", "''", "None", "True", "[]", "[1, 'b']",
     "{'a': 1}", "{1, 2}", "(1, 2)", "range(50)", "a.b", "d.items", "xs[0]", "d['a']", "s[1:]", "datetime.now",
     "re.match('a*', s)"]
)  # fmt: skip
SHAPES = st.sampled_from(
    ["({} + {})", "({} * {})", "({} - {})", "({} / {})", "({} // {})", "({} % {})", "({} ** {})", "({} == {})",
     "({} < {})", "({} in {})", "({} and {})", "({} or {})", "(not {})", "[{}, {}]", "{{'k': {}, 'm': {}}}",
     "[v for v in {} if {}]",
     "[[v, w] for v in {} for w in {}]", "any(v for v in {})", "sum(v for v in {})", "len({})", "str({})",
     "sorted({})",
     "max({}, {})", "({} if {} else {})", "f'{{{}}}{{{}}}'", "list({})", "set({})", "dict({})", "int({})",
     "float({})",
     "({}).upper()", "({}).get({})", "({}).split({})", "({}).replace({}, {})", "({}).join({})", "({}).count({})",
     "({})[{}]", "({})[{}:]", "zip({}, {})", "enumerate({})", "round({}, {})", "abs({})", "isinstance({}, int)",
     "contains_any({}, {})", "between({}, {}, {})", "{{**{}}}", "[*{}, {}]", "re.findall({}, {})",
     "re.sub({}, {}, {})",
     "date_after({}, {})", "{{v: {} for v in {}}}", "tuple({})", "bool({})", "sum({})", "-({})"]
)  # fmt: skip


@st.composite
def sources(draw, depth=4):
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return draw(ATOMS)
    shape = draw(SHAPES)
    slots = shape.replace("{{", "").replace("}}", "").count("{}")
    if "f'" in shape:
        slots, parts = 2, [draw(st.sampled_from(["a", "b", "x", "xs", "s", "d"])) for _ in range(2)]
    else:
        parts = [draw(sources(depth=depth - 1)) for _ in range(slots)]
    return shape.format(*parts)


@settings(max_examples=500, deadline=None)
@given(sources(), CONTEXTS)
def test_any_expression_ends_soon_as_json_or_as_an_error_and_changes_nothing(source, context):
    before = copy.deepcopy(context)
    started = time.perf_counter()
    try:
        value = evaluate(source, context, declared={"a", "b", "x"})
    except ExpressionError:
        value = None
    else:
        json.dumps(value, allow_nan=False)
        assert evaluate(source, context, declared={"a", "b", "x"}) == value
    assert time.perf_counter() - started < 3
    assert context == before


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_an_error(source):
    try:
        evaluate(source, {"a": 1})
    except ExpressionError as error:
        place = error.position or 0
    else:
        place = 0
    assert 0 <= place <= len(source) + 1


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abx.[]()'\"{}:,+-*/%<>=! 01fi\\\n", max_size=40))
def test_text_that_looks_like_code_is_an_expression_or_an_error(source):
    with contextlib.suppress(ExpressionError):
        evaluate(source, {"a": 1, "b": [1], "x": {"a": "b"}}, limits=Limits(max_steps=20_000))


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_arithmetic_is_pythons(left, right):
    for operator in ("+", "-", "*", "<", "<=", "==", "!=", ">", ">="):
        assert evaluate(f"a {operator} b", {"a": left, "b": right}) == eval(f"{left} {operator} {right}")
    if right:
        for operator in ("/", "//", "%"):
            assert evaluate(f"a {operator} b", {"a": left, "b": right}) == eval(
                f"({left}) {operator} ({right})"
            )


@given(CONTEXTS, st.sampled_from(["a", "xs", "d.a", "d.items", "x.b.a"]))
def test_fast_path_gives_what_the_interpreter_gives(context, path):
    def outcome(source):
        try:
            return evaluate(source, context, declared={"a"})
        except ExpressionError as error:
            return error.code

    assert parse(path).path is not None
    assert parse(f"({path})").path is None
    assert outcome(path) == outcome(f"({path})")
