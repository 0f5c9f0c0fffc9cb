"""The bound on backtracking: ordinary patterns pass, exploding ones do not, and what passes is fast."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.expressions import ExpressionError
from orchestration.expressions.regex import MAX_STEPS, compile_pattern, guard

ORDINARY = [
    (r"^[a-z0-9]+(?:-[a-z0-9]+)*$", "a-long-slug-with-many-parts-" * 10),
    (r"^[^@\s]+@[^@\s]+\.[^@\s]+$", "somebody@example.org"),
    (r"^[\w.+-]+@[\w-]+\.[\w.-]+$", "some.body+tag@mail.example.org"),
    (r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}", "write to a.b@c.de now"),
    (r"\d+", "x" * 60_000),
    (r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?)?$", "2024-01-15T10:00:00"),
    (r"^(?:[a-z0-9]+\.)+[a-z]{2,}$", "www.example.org"),
    (r"error.*timeout", "an error, then a timeout"),
    (r"(?i)hello", "x" * 60_000),
    (r"^\w+(,\w+)*$", ",".join(["word"] * 100)),
    (r"^https?://[\w.-]+(:\d+)?(/[\w./-]*)?$", "https://example.org:8080/a/b.c"),
    (r"^[A-Z]{3}-\d{4,}$", "ABC-12345"),
    (r"^(\+\d{1,3}[- ]?)?\d{3}[- ]?\d{4}$", "+44 555 1234"),
    (r"^(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?:25[0-5]|2[0-4]\d|1?\d?\d)){3}$", "192.168.0.1"),
    (r"^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$", "123e4567-e89b-12d3-a456-426614174000"),
    (r"(?<=id=)\d+(?!x)", "id=42"),
    (r"(['\"]).*?\1", "say 'hello'"),
    (r"^\s*#.*$", "   # a comment"),
    (r"\bcat\b|\bdog\b", "the dog"),
    (r"^(?:red|green|blue)$", "green"),
    (r"a++b", "aaab"),
    (r"(?>a+)b", "aaab"),
    (r"(?i:ſ|K)x", "kx"),
    (r"(?m)^x$", "a\nx"),
    (r"", "anything"),
    (r"\A\w+\Z", "word"),
]


@pytest.mark.parametrize(("pattern", "text"), ORDINARY, ids=[case[0] for case in ORDINARY])
def test_ordinary_pattern_is_allowed(pattern, text):
    prepared = compile_pattern(pattern)
    assert 0 < guard(prepared, text, search=True) <= MAX_STEPS
    assert 0 < guard(prepared, text, search=False) <= MAX_STEPS


EXPLODING = [
    r"(a+)+$", r"(a*)*b", r"(a|a)*b", r"(a|aa)+$", r"([a-zA-Z]+)*$", r"(.*)*x", r"(\w+\s?)+$", r"(x+x+)+y",
    r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(a?){30}a{30}", r"a*a*a*a*a*a*b", r"((ab)*)*c", r"(\d+|\w+)*!", r"(?i)(s|ſ)*x",
    r"(.|\s)*q", r"([^x]|[^y])*z", r"(?a)([^\d]|é)*k", r"(a)(?(1)b|c)",
    r"(?:a*?b?){0,20}\d+?", r"(?:a*?b?){2,}$", r"(?:a*?b?)*?\s", r"(?:a*b?)+\s{1,3}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", EXPLODING)
def test_exploding_pattern_is_refused(pattern):
    with pytest.raises(ExpressionError):
        guard(compile_pattern(pattern), "a" * 5000, search=True)


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "a{2,1}", "(?P<1>a)", "(?z)", "\\"])
def test_what_is_no_pattern_is_a_syntax_error(pattern):
    with pytest.raises(ExpressionError) as failure:
        compile_pattern(pattern)
    assert failure.value.code == "EXPRESSION_SYNTAX"


def test_patterns_texts_and_groups_are_bounded():
    for pattern in ("x" * 1001, "(a)" * 51):
        with pytest.raises(ExpressionError) as failure:
            compile_pattern(pattern)
        assert failure.value.code == "EXPRESSION_LIMIT"
    with pytest.raises(ExpressionError, match="characters"):
        guard(compile_pattern("x"), "x" * (1024 * 1024 + 1), search=True)


def test_literal_beginning_makes_a_search_cheap():
    text = "nothing here " * 4000
    assert guard(compile_pattern("error.*timeout"), text, search=True) < 20 * len(text)
    with pytest.raises(ExpressionError):
        guard(compile_pattern("n.*t.*x"), text, search=True)


ATOMS = st.sampled_from(
    [
        "a",
        "b",
        ".",
        r"\w",
        r"\d",
        "[ab]",
        "[^a]",
        "(?:ab)",
        "ab",
        r"\s",
        "[a-c]",
        "(a|b)",
        "(a|ab)",
        "$",
        r"\b",
    ]
)
QUANTIFIERS = st.sampled_from(["", "", "*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{2,}"])


@st.composite
def patterns(draw, depth=2):
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        atom = draw(ATOMS) if depth == 0 or draw(st.booleans()) else f"({draw(patterns(depth=depth - 1))})"
        parts.append(atom + draw(QUANTIFIERS))
    return "|".join("".join(parts[i::2]) for i in range(draw(st.integers(1, 2))) if parts[i::2])


@settings(max_examples=300, deadline=None)
@given(
    patterns(),
    st.sampled_from(["a", "ab", "abc", "aab1 "]),
    st.integers(1, 400),
    st.sampled_from(["", "!", "\n"]),
)
def test_what_the_bound_lets_pass_is_fast(pattern, unit, times, tail):
    text = unit * times + tail
    try:
        prepared = compile_pattern(pattern)
        guard(prepared, text, search=True)
    except ExpressionError:
        return
    started = time.perf_counter()
    prepared.compiled.search(text)
    prepared.compiled.findall(text)
    assert time.perf_counter() - started < 2


def test_bound_is_of_the_pattern_that_runs():
    assert compile_pattern("a+b").compiled is not None
    assert isinstance(compile_pattern("a+b").compiled, re.Pattern)
    assert compile_pattern("a+b") is compile_pattern("a+b")
