"""Expressions give what Python would give, within their subset."""

from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

import pytest

from orchestration.expressions import ExpressionError, Limits, evaluate, parse

NOW = datetime(2024, 1, 15, 10, 0, tzinfo=UTC)


class Colour(StrEnum):
    RED = "red"


CONTEXT = {
    "a": 7,
    "b": 2.5,
    "s": "Hello, World",
    "flag": True,
    "nothing": None,
    "xs": [3, 1, 2],
    "names": ["Ada", "Bob"],
    "user": {"name": "Ada", "verified": True, "items": [1, 2], "address": {"city": "London"}},
    "orders": [{"id": 1, "total": 10.0, "tags": ["x"]}, {"id": 2, "total": 32.5, "tags": []}],
    "empty": [],
    "re_name": "x",
}

CASES = [
    # literals and names
    ("1", 1),
    ("'x'", "x"),
    ("[1, 'a', None, True]", [1, "a", None, True]),
    ("{'k': a}", {"k": 7}),
    ("(1, 2)", [1, 2]),
    ("{2, 1, 2}", [1, 2]),
    ("true", True),
    ("false or null is None", True),
    ("  a  ", 7),
    ("a\n + 1", 8),
    ("nothing", None),
    # arithmetic
    ("a + 1", 8),
    ("a - b", 4.5),
    ("a * 2", 14),
    ("a / 2", 3.5),
    ("a // 2", 3),
    ("a % 4", 3),
    ("2 ** 10", 1024),
    ("2 ** -1", 0.5),
    ("-a", -7),
    ("+a", 7),
    ("not a", False),
    ("'ab' * 2", "abab"),
    ("2 * [0]", [0, 0]),
    ("'a' + 'b'", "ab"),
    ("[1] + [2]", [1, 2]),
    ("(1,) + (2,)", [1, 2]),
    ("'x' * -5", ""),
    # comparison
    ("1 < a < 10", True),
    ("1 < a < 5", False),
    ("a == 7 and b != 7", True),
    ("a == '7'", False),
    ("xs == [3, 1, 2]", True),
    ("user == {'name': 'x'}", False),
    ("{1, 2} == {2, 1}", True),
    ("nothing is None", True),
    ("a is not None", True),
    ("flag is True", True),
    ("3 in xs", True),
    ("9 not in xs", True),
    ("'Hell' in s", True),
    ("'name' in user", True),
    ("1 in nothing", False),
    ("1 not in nothing", True),
    ("[1] in [[1]]", True),
    ("'a' < 'b'", True),
    ("[1, 2] < [1, 3]", True),
    ("a or b", 7),
    ("nothing or 'default'", "default"),
    ("'yes' if flag else 'no'", "yes"),
    # attributes and subscripts
    ("user.name", "Ada"),
    ("user.address.city", "London"),
    ("user['name']", "Ada"),
    ("user.items", [1, 2]),
    ("user.keys()", ["name", "verified", "items", "address"]),
    ("user.get('missing', 3)", 3),
    ("user.get('missing')", None),
    ("{'x': 1}.items()", [["x", 1]]),
    ("{'x': 1}.values()", [1]),
    ("xs[0]", 3),
    ("xs[-1]", 2),
    ("xs[1:]", [1, 2]),
    ("xs[::-1]", [2, 1, 3]),
    ("s[:5]", "Hello"),
    ("s[0]", "H"),
    ("orders[1].total", 32.5),
    ("orders[0]['tags'][0]", "x"),
    # comprehensions and generators
    ("[x * 2 for x in xs if x > 1]", [6, 4]),
    ("[o.id for o in orders for t in o.tags]", [1]),
    ("{o.id: o.total for o in orders}", {"1": 10.0, "2": 32.5}),
    ("{x % 2 for x in xs}", [0, 1]),
    ("sum(o.total for o in orders)", 42.5),
    ("any(x > 2 for x in xs)", True),
    ("all(x > 2 for x in xs)", False),
    ("[k for k in user]", ["name", "verified", "items", "address"]),
    ("[f'{k}={v}' for k, v in {'a': 1}.items()]", ["a=1"]),
    ("[i for i, [p, q] in enumerate([[1, 2]])]", [0]),
    ("[x for x in [[y for y in xs] for z in [1]]]", [[3, 1, 2]]),
    ("any(any(y == 1 for y in xs) for x in xs) and a == 7", True),
    ("[a for a in xs] + [a]", [3, 1, 2, 7]),
    ("', '.join(n for n in names)", "Ada, Bob"),
    ("dict((n, len(n)) for n in names)", {"Ada": 3, "Bob": 3}),
    ("[c for c in 'abc']", ["a", "b", "c"]),
    ("[x for x in {3, 1}]", [1, 3]),
    # f-strings
    ("f'{user.name} has {len(xs)} at {b}'", "Ada has 3 at 2.5"),
    ("f'{nothing}{flag}{xs}'", "NoneTrue[3, 1, 2]"),
    ("f'{a!s}'", "7"),
    # functions
    ("abs(-3)", 3),
    ("bool([])", False),
    ("dict(a=1, b=2)", {"a": 1, "b": 2}),
    ("dict(user, name='Eve').name", "Eve"),
    ("float('2.5') + float()", 2.5),
    ("int('12') + int(3.9) + int()", 15),
    ("len(s)", 12),
    ("list('ab') + list()", ["a", "b"]),
    ("tuple(xs)", [3, 1, 2]),
    ("set([1, 1, 2])", [1, 2]),
    ("len(set(names)) == len(names)", True),
    ("max(xs) + max(1, 2)", 5),
    ("min(xs)", 1),
    ("max(empty, default=0)", 0),
    ("range(3)", [0, 1, 2]),
    ("range(1, 10, 4)", [1, 5, 9]),
    ("list(reversed(xs))", [2, 1, 3]),
    ("round(2.567, 2)", 2.57),
    ("round(2.5)", 2),
    ("str(1) + str(True) + str(None) + str('x')", "1TrueNonex"),
    ("str([1, 'a'])", "[1, 'a']"),
    ("str({'a': 1})", "{'a': 1}"),
    ("str({2, 1})", "[1, 2]"),
    ("sum(xs)", 6),
    ("sum(xs, 10)", 16),
    ("sorted(xs)", [1, 2, 3]),
    ("sorted(xs, reverse=True)", [3, 2, 1]),
    ("zip(xs, names)", [[3, "Ada"], [1, "Bob"]]),
    ("enumerate(names, 1)", [[1, "Ada"], [2, "Bob"]]),
    ("isinstance(a, int)", True),
    ("isinstance(a, (str, list))", False),
    ("isinstance(user, dict) and isinstance(xs, list)", True),
    ("hasattr(user, 'name')", True),
    ("hasattr(user, 'nope') or hasattr(a, 'real')", False),
    # text methods
    ("s.upper()", "HELLO, WORLD"),
    ("s.lower().title().swapcase().casefold().capitalize()", "Hello, world"),
    ("' x '.strip() + 'xxa'.lstrip('x') + 'a '.rstrip()", "xaa"),
    ("s.startswith('Hello') and s.endswith('World')", True),
    ("s.split(', ')", ["Hello", "World"]),
    ("s.rsplit(',', 1)", ["Hello", " World"]),
    ("s.partition(', ')", ["Hello", ", ", "World"]),
    ("'a\\nb'.splitlines()", ["a", "b"]),
    ("s.replace('l', 'L', 1)", "HeLlo, World"),
    ("s.replace('l', '')", "Heo, Word"),
    ("s.find('World') + s.index('H') + s.count('l')", 10),
    ("'7'.zfill(3) + 'x'.ljust(2) + 'x'.rjust(2) + 'x'.center(3, '-')", "007x  x-x-"),
    ("'abc'.removeprefix('a').removesuffix('c')", "b"),
    ("'12'.isdigit() and 'ab'.isalpha()", True),
    # lists, sets and others
    ("xs.index(1) + xs.count(2)", 2),
    ("{1, 2}.union([3])", [1, 2, 3]),
    ("{1, 2}.issubset([1, 2, 3])", True),
    ("{1, 2, 3} - {2}", [1, 3]),
    ("(2.0).is_integer()", True),
    ("[*xs, 4]", [3, 1, 2, 4]),
    ("{**user, 'name': 'Eve'}['name']", "Eve"),
    # regular expressions
    ("re.match('H', s)", True),
    ("re.match('W', s)", None),
    ("re.search('(W)(o)', s).group(2)", "o"),
    ("re.search('(?P<x>W)', s).groupdict()", {"x": "W"}),
    ("re.search('W(o)', s).groups()", ["o"]),
    ("re.search('W', s).start()", 7),
    ("re.fullmatch('[A-Za-z, ]+', s) is not None", True),
    ("re.findall('[A-Z]', s)", ["H", "W"]),
    ("re.findall('([A-Z])([a-z])', s)", [["H", "e"], ["W", "o"]]),
    ("re.sub('o', '0', s)", "Hell0, W0rld"),
    ("re.sub('(l+)', '<\\\\1>', s, 1)", "He<ll>o, World"),
    ("re.search('world', s, re.IGNORECASE) is not None", True),
    ("re.match('\\d+', '12').group()", "12"),
    # dates
    ("datetime.now()", "2024-01-15T10:00:00+00:00"),
    ("datetime.utcnow().isoformat()", "2024-01-15T10:00:00+00:00"),
    ("datetime.datetime.now().year", 2024),
    ("datetime.fromisoformat('2024-01-01') < datetime.now()", True),
    ("(datetime.now() - datetime.fromisoformat('2024-01-10T10:00:00')).days", 5),
    ("datetime.now() - timedelta(days=1, hours=2)", "2024-01-14T08:00:00+00:00"),
    ("datetime(2024, 2, 3).strftime('%Y/%m/%d')", "2024/02/03"),
    ("timedelta(minutes=1)", 60.0),
    ("-timedelta(minutes=1)", -60.0),
    ("sum([timedelta(days=1)], timedelta()).total_seconds()", 86400.0),
    ("str(datetime(2024, 2, 3))", "2024-02-03T00:00:00+00:00"),
    ("datetime.now().date()", "2024-01-15"),
    ("datetime.now().weekday()", 0),
    ("isinstance(datetime.now(), datetime)", True),
    # functions of custom conditions
    ("is_empty(empty) and is_empty(nothing) and is_not_empty(xs)", True),
    ("between(a, 1, 7) and not_between(a, 8, 9)", True),
    ("is_numeric(a) and is_numeric('1.5') and not is_numeric('x') and not is_numeric(flag)", True),
    ("is_string(s) and is_list(xs) and is_dict(user)", True),
    ("contains_any(xs, [9, 3]) and contains_all(xs, 1, 2)", True),
    ("contains_any(nothing, [1])", False),
    ("date_after('2024-01-02', '2024-01-01') and date_before('2024-01-01', datetime.now())", True),
    ("date_after(nothing, '2024-01-01') or date_before(nothing, '2024-01-01')", False),
    ("days_ago('2024-01-01', 7)", True),
    ("days_ago(2)", "2024-01-13T10:00:00+00:00"),
    ("regex_match(s, 'Hello') and regex_search(s, 'World') and not regex_search(nothing, 'x')", True),
]


@pytest.mark.parametrize(("source", "expected"), CASES, ids=[case[0] for case in CASES])
def test_expression_gives(source, expected):
    value = evaluate(source, CONTEXT, now=NOW)
    assert value == expected
    assert type(value) is type(expected)


FAILURES = [
    ("", "EXPRESSION_SYNTAX"),
    ("   ", "EXPRESSION_SYNTAX"),
    ("1 +", "EXPRESSION_SYNTAX"),
    ("a = 1", "EXPRESSION_SYNTAX"),
    ("import os", "EXPRESSION_SYNTAX"),
    ("a\x00", "EXPRESSION_SYNTAX"),
    ("usr.name", "EXPRESSION_NAME"),
    ("user.nmae", "EXPRESSION_NAME"),
    ("unknown(1)", "EXPRESSION_NAME"),
    ("len", "EXPRESSION_NAME"),
    ("user['nope']", "EXPRESSION_ERROR"),
    ("xs[10]", "EXPRESSION_ERROR"),
    ("xs['a']", "EXPRESSION_ERROR"),
    ("xs[True]", "EXPRESSION_ERROR"),
    ("a[0]", "EXPRESSION_ERROR"),
    ("a[0:1]", "EXPRESSION_ERROR"),
    ("xs[::0]", "EXPRESSION_ERROR"),
    ("nothing.x", "EXPRESSION_ERROR"),
    ("a.real", "EXPRESSION_ERROR"),
    ("a.upper()", "EXPRESSION_ERROR"),
    ("nothing > 1", "EXPRESSION_ERROR"),
    ("'a' > 1", "EXPRESSION_ERROR"),
    ("1 in a", "EXPRESSION_ERROR"),
    ("1 in s", "EXPRESSION_ERROR"),
    ("a + s", "EXPRESSION_ERROR"),
    ("-s", "EXPRESSION_ERROR"),
    ("1 / 0", "EXPRESSION_ERROR"),
    ("a % 0", "EXPRESSION_ERROR"),
    ("(-8) ** 0.5", "EXPRESSION_ERROR"),
    ("int('x')", "EXPRESSION_ERROR"),
    ("len(a)", "EXPRESSION_ERROR"),
    ("len()", "EXPRESSION_ERROR"),
    ("len(xs, xs)", "EXPRESSION_ERROR"),
    ("max([])", "EXPRESSION_ERROR"),
    ("max([1, 'a'])", "EXPRESSION_ERROR"),
    ("sorted([1, None])", "EXPRESSION_ERROR"),
    ("sum(names)", "EXPRESSION_ERROR"),
    ("[x for x in a]", "EXPRESSION_ERROR"),
    ("[x for x, y in xs]", "EXPRESSION_ERROR"),
    ("{**xs}", "EXPRESSION_ERROR"),
    ("{[1]: 2}", "EXPRESSION_NOT_ALLOWED"),
    ("{[1]}", "EXPRESSION_NOT_ALLOWED"),
    ("user[[1]]", "EXPRESSION_NOT_ALLOWED"),
    ("', '.join(xs)", "EXPRESSION_ERROR"),
    ("xs.index(99)", "EXPRESSION_ERROR"),
    ("s.index('zzz')", "EXPRESSION_ERROR"),
    ("re.search(1, s)", "EXPRESSION_ERROR"),
    ("re.search('x', nothing)", "EXPRESSION_ERROR"),
    ("re.search('x', s, 99)", "EXPRESSION_ERROR"),
    ("re.sub('x', 1, s)", "EXPRESSION_ERROR"),
    ("re.match('(', s)", "EXPRESSION_SYNTAX"),
    ("hasattr(user, 1)", "EXPRESSION_ERROR"),
    ("datetime.fromisoformat('yesterday')", "EXPRESSION_ERROR"),
    ("datetime.fromisoformat(a)", "EXPRESSION_ERROR"),
    ("datetime(2024, 13, 1)", "EXPRESSION_ERROR"),
    ("datetime.now().strftime('%100d')", "EXPRESSION_ERROR"),
    ("timedelta(days=10 ** 20)", "EXPRESSION_ERROR"),
    ("isinstance(a, foo)", "EXPRESSION_NOT_ALLOWED"),
    ("isinstance(a)", "EXPRESSION_NOT_ALLOWED"),
    ("a is 7", "EXPRESSION_NOT_ALLOWED"),
    ("a & 1", "EXPRESSION_NOT_ALLOWED"),
    ("~a", "EXPRESSION_NOT_ALLOWED"),
    ("a << 1", "EXPRESSION_NOT_ALLOWED"),
    ("a @ a", "EXPRESSION_NOT_ALLOWED"),
    ("(y := 1)", "EXPRESSION_NOT_ALLOWED"),
    ("1j", "EXPRESSION_NOT_ALLOWED"),
    ("b'x'", "EXPRESSION_NOT_ALLOWED"),
    ("...", "EXPRESSION_NOT_ALLOWED"),
    ("f'{a:>10}'", "EXPRESSION_NOT_ALLOWED"),
    ("f'{a!r}'", "EXPRESSION_NOT_ALLOWED"),
    ("'%s' % a", "EXPRESSION_NOT_ALLOWED"),
    ("s % a", "EXPRESSION_NOT_ALLOWED"),
    ("(x for x in xs)", "EXPRESSION_NOT_ALLOWED"),
    ("max(*xs)", "EXPRESSION_NOT_ALLOWED"),
    ("dict(**user)", "EXPRESSION_NOT_ALLOWED"),
    ("xs()", "EXPRESSION_NAME"),
    ("xs[0]()", "EXPRESSION_NOT_ALLOWED"),
    ("[x async for x in xs]", "EXPRESSION_NOT_ALLOWED"),
    ("[1 for user.name in xs]", "EXPRESSION_NOT_ALLOWED"),
    ("float('inf')", "EXPRESSION_LIMIT"),
    ("1e999", "EXPRESSION_LIMIT"),
    ("str(x for x in xs)", "EXPRESSION_NOT_ALLOWED"),
    ("user.get('q', (x for x in xs))", "EXPRESSION_NOT_ALLOWED"),
]


@pytest.mark.parametrize(("source", "code"), FAILURES, ids=[case[0] for case in FAILURES])
def test_expression_fails_with(source, code):
    with pytest.raises(ExpressionError) as failure:
        evaluate(source, CONTEXT, now=NOW)
    assert failure.value.code == code
    assert not failure.value.retryable


def test_error_names_the_place_and_the_nearest_name():
    with pytest.raises(ExpressionError) as failure:
        evaluate("1 + usr.name", CONTEXT)
    assert failure.value.position == 4
    assert "did you mean 'user'" in failure.value.message
    assert "(at character 5)" in failure.value.message
    assert failure.value.name == "usr"


def test_place_counts_characters_of_the_source_also_behind_wide_ones():
    with pytest.raises(ExpressionError) as failure:
        evaluate("  'é€' + x", {})
    assert failure.value.position == 9


def test_declared_name_without_value_is_null():
    assert evaluate("later", {}, declared={"later"}) is None
    assert evaluate("later is None", {}, declared={"later"}) is True


def test_key_that_is_named_like_a_method_says_how_to_call():
    with pytest.raises(ExpressionError, match="parentheses"):
        evaluate("user.keys", CONTEXT)


def test_context_name_wins_over_the_spelling_of_json():
    assert evaluate("true", {"true": 5}) == 5


def test_namespaces_can_be_hidden_by_loop_names():
    assert evaluate("[re.upper() for re in ['a']]", {}) == ["A"]
    assert evaluate("datetime.upper()", {"datetime": "x"}) == "X"


def test_time_is_refused_when_the_caller_gives_none():
    with pytest.raises(ExpressionError, match="time"):
        evaluate("datetime.now()", {})


def test_errors_never_hold_a_value_of_the_context():
    canary = "s3cr3t-canary"
    context = {"v": canary, "d": {"k": canary}, "l": [canary]}
    for source in ("v + 1", "v > 1", "d[v]", "l[v]", "int(v)", "v.nope", "len(1, v)", "v in 1", "l < d",
                   "re.search('x', d)", "datetime.fromisoformat(v)", "{l: 1}", "v.index('q')", "d.zzz"):  # fmt: skip
        with pytest.raises(ExpressionError) as failure:
            evaluate(source, context)
        assert canary not in failure.value.message


def test_values_of_other_types_are_taken_as_what_they_are():
    context = {
        "colour": Colour.RED,
        "frozen": MappingProxyType({"k": 1}),
        "ordered": OrderedDict(a=1),
        "when": datetime(2024, 1, 2, tzinfo=UTC),
        "day": date(2024, 1, 2),
        "span": timedelta(seconds=5),
        "pair": (1, 2),
        "bag": {2, 1},
    }
    assert evaluate("colour", context) == "red"
    assert evaluate("colour + '!'", context) == "red!"
    assert evaluate("frozen.k + ordered.a", context) == 2
    assert evaluate("frozen", context) == {"k": 1}
    assert evaluate("frozen.keys()", context) == ["k"]
    assert evaluate("when", context) == "2024-01-02T00:00:00+00:00"
    assert evaluate("day.year + day.month", context) == 2025
    assert evaluate("day", context) == "2024-01-02"
    assert evaluate("span", context) == 5.0
    assert evaluate("pair", context) == [1, 2]
    assert evaluate("bag", context) == [1, 2]
    assert evaluate("date_after(day, '2024-01-01')", context) is True
    assert evaluate("{when: 1, 2: 3, True: 4, None: 5}", context) == {
        "2024-01-02T00:00:00+00:00": 1, "2": 3, "true": 4, "null": 5,
    }  # fmt: skip


@pytest.mark.parametrize("thing", [open, object(), len, int, lambda: 1, b"bytes", 1j])
def test_values_that_are_no_data_are_refused(thing):
    for source in ("x", "x.y", "[x]", "d.x", "d['x']", "l[0]", "[y for y in l]", "x == 1", "str(x)"):
        with pytest.raises(ExpressionError) as failure:
            evaluate(source, {"x": thing, "d": {"x": thing}, "l": [thing]})
        assert failure.value.code == "EXPRESSION_NOT_ALLOWED"


def test_result_is_a_copy_that_shares_nothing_with_the_context():
    context = {"xs": [[1], [2]]}
    result = evaluate("[x for x in xs]", context)
    result[0].append(9)
    assert context == {"xs": [[1], [2]]}


def test_names_are_the_free_ones():
    expression = parse("[x + offset for x in orders if x.id in wanted and len(x) > limit] + [x]")
    assert expression.names == {"orders", "wanted", "limit", "offset", "x"}
    assert expression.functions == {"len"}
    assert parse("[y for x in xs for y in x]").names == {"xs"}
    assert parse("isinstance(v, (int, str)) and re.match('a', w)").names == {"v", "w"}
    assert parse("{k: v for k, v in d.items()}").names == {"d"}
    assert parse("f'{a} {b.c}'").names == {"a", "b"}
    assert parse("datetime.now() > start").names == {"start"}
    assert parse("user.name").path == ("user", "name")
    assert parse("None").path is None
    assert parse("a if b else c").path is None


def test_parsed_expression_is_remembered():
    assert parse("a + 41") is parse("a + 41")


def test_source_may_be_longer_only_with_wider_limits():
    source = "a + " + " " * 5000 + "1"
    with pytest.raises(ExpressionError, match="4096"):
        evaluate(source, CONTEXT)
    assert evaluate(source, CONTEXT, limits=Limits(max_source_chars=10_000)) == 8


def test_something_other_than_text_is_no_expression():
    with pytest.raises(ExpressionError):
        parse(5)  # type: ignore[arg-type]


def test_missing_keys_are_not_made_by_default_dictionaries():
    from collections import defaultdict

    box: defaultdict[str, int] = defaultdict(int)
    with pytest.raises(ExpressionError):
        evaluate("box.x", {"box": box})
    with pytest.raises(ExpressionError):
        evaluate("box['x']", {"box": box})
    assert not box
