"""What an attacker tries: every classic way out of a sandbox, and every short text that takes a machine down."""

import ast
import copy
import time

import pytest

from orchestration.expressions import CONDITION_LIMITS, ExpressionError, Limits, evaluate, parse
from orchestration.expressions.evaluator import HANDLERS, Evaluator
from orchestration.expressions.functions import FUNCTIONS, NAMESPACES
from orchestration.expressions.grammar import SourceCache
from orchestration.expressions.methods import METHODS

CONTEXT = {"x": 1, "s": "text", "xs": [1, 2, 3], "d": {"k": "v"}, "n": None, "big": "a" * 60_000}

ESCAPES = [
    "().__class__.__bases__[0].__subclasses__()",
    "''.__class__.__mro__[1].__subclasses__()",
    "[].__class__.__base__",
    "x.__class__",
    "x.__init__.__globals__",
    "d.__class__.__init__.__globals__['os']",
    "__import__('os').system('id')",
    "__builtins__",
    "__builtins__['eval']('1')",
    "__name__",
    "_x",
    "eval('1+1')",
    "exec('x=1')",
    "compile('1', '', 'eval')",
    "open('/etc/passwd').read()",
    "input()",
    "globals()",
    "locals()",
    "vars()",
    "dir()",
    "getattr(x, '__class__')",
    "getattr(s, 'upper')()",
    "setattr(d, 'k', 1)",
    "delattr(d, 'k')",
    "type(x)",
    "type('X', (), {})",
    "type(x).mro()",
    "object()",
    "super()",
    "memoryview(b'x')",
    "bytes(5)",
    "bytearray(5)",
    "print(1)",
    "help()",
    "breakpoint()",
    "exit()",
    "id(x)",
    "hash(x)",
    "repr(x)",
    "callable(len)",
    "iter(xs)",
    "next(xs)",
    "map(len, xs)",
    "filter(None, xs)",
    "len.__self__",
    "(lambda: 1)()",
    "(lambda f: f(f))(lambda f: f(f))",
    "[f for f in [len]][0]([1])",
    "[len, max]",
    "{'f': open}",
    "str.upper('x')",
    "dict.fromkeys(xs)",
    "int.from_bytes(b'a')",
    "s.format(x)",
    "'{0.__class__}'.format(x)",
    "'{x.__class__}'.format_map(d)",
    "s.encode('utf-8')",
    "s.translate({1: 2})",
    "s.maketrans('a', 'b')",
    "'%s' % x",
    "'%(x)s' % d",
    "f'{x.__class__}'",
    "f'{x!r:>{10**9}}'",
    "f'{s:>1000000000}'",
    "x.to_bytes(10**9, 'big')",
    "xs.append(1)",
    "xs.extend(xs)",
    "xs.sort()",
    "xs.clear()",
    "xs.pop()",
    "xs.insert(0, 1)",
    "xs.__setitem__(0, 1)",
    "d.update({'a': 1})",
    "d.pop('k')",
    "d.clear()",
    "d.setdefault('a', 1)",
    "d.popitem()",
    "{1}.add(2)",
    "re.compile('x')",
    "re.sub('x', len, s)",
    "re.purge()",
    "re.sre_parse",
    "re._parser",
    "re",
    "datetime",
    "datetime.datetime",
    "datetime.sys",
    "datetime.datetime.__class__",
    "datetime.now().__class__",
    "datetime.now().tzinfo",
    "datetime.strptime('1', '%Y')",
    "re.search('t', s).re",
    "re.search('t', s).string",
    "re.search('t', s).__class__",
    "re.search('t', s).expand('x')",
    "(x for x in xs).gi_frame",
    "(x for x in xs).gi_frame.f_back.f_builtins",
    "[x for x in xs].__iter__",
    "[(y := 1) for x in xs]",
    "(await x)",
    "(yield x)",
    "(yield from xs)",
    "[x async for x in xs]",
    "x if (exec := 1) else 2",
    "isinstance(x, type)",
    "isinstance(x, object)",
    "isinstance(x, d.__class__)",
    "hasattr(x, '__class__') and x.__class__",
    "{**__builtins__}",
    "[*__builtins__]",
    "dict(__class__=1)",
    "max(xs, key=len)",
    "max(xs, key=d.get)",
    "sorted(xs, key=lambda v: -v)",
    "sum(xs, start=[])",
    "x.real.imag",
    "().count.__self__",
    "s.join",
    "d.get",
    "d['__class__']",
    "\u005f\u005fimport\u005f\u005f('os')",
    "ｅｖａｌ('1')",
    "𝐞𝐯𝐚𝐥('1')",
    "x.ﬁeld",
    "assert x",
    "x; x",
    "x\nimport os",
    "#",
    "x = 1",
    "del x",
    "@x",
    "*xs",
    "**d",
    "Ellipsis",
    "NotImplemented",
    "...",
    "1j",
    "b''",
    "x.x.x.x",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_escape_is_refused(source):
    before = copy.deepcopy(CONTEXT)
    with pytest.raises(ExpressionError) as failure:
        evaluate(source, CONTEXT)
    assert before == CONTEXT
    assert "Traceback" not in failure.value.message


BOMBS = [
    "9 ** 9 ** 9",
    "10 ** 31",
    "10 ** 30 * 10",
    "-10 ** 31 + 1",
    "2 ** 100000000",
    "(2 ** 99) ** 99",
    "2.0 ** 100000",
    "1e300 * 1e300",
    "9" * 3000,
    "int('9' * 4000)",
    "int('1' + '0' * 31)",
    "float('1' * 100)",
    "'a' * 10 ** 9",
    "10 ** 9 * 'a'",
    "[0] * 10 ** 9",
    "(0,) * 10 ** 9",
    "[[0] * 1000] * 10 ** 6",
    "'a' * 60000 + 'a' * 60000",
    "big + big",
    "[0] * 99999 + [0] * 99999",
    "s.replace('', big)",
    "big.replace('a', big)",
    "s.join([big, big])",
    "', '.join('a' * 60000 for i in range(10000))",
    "'a'.ljust(10 ** 9)",
    "'a'.zfill(10 ** 9)",
    "'a'.center(10 ** 9)",
    "'\\t'.expandtabs(10 ** 9)",
    "range(10 ** 9)",
    "list(range(10 ** 9))",
    "sum(range(10 ** 5)) + sum(range(10 ** 5)) + sum(range(10 ** 5))",
    "[a for a in range(1000) for b in range(1000) for c in range(1000)]",
    "any(a for a in range(1000) for b in range(1000) for c in range(1000) if a > b > c > a)",
    "[[[0] * 1000 for a in range(1000)] for b in range(1000)]",
    "[x for x in range(100000)][0] + len([x for x in range(100000)])",
    "['a' * 60000 for i in range(10000)]",
    "f'{big}{big}'",
    "f'{[big] * 1000}'",
    "str([[[[[big] * 100] * 100] * 100] * 100])",
    "str([[[[[0] * 100] * 100] * 100] * 100])",
    "[[[[[0] * 100] * 100] * 100] * 100]",
    "[[[[0] * 100] * 100] * 100] == [[[[0] * 100] * 100] * 100]",
    "[[[[0] * 100] * 100] * 100] < [[[[0] * 100] * 100] * 100]",
    "sorted([[[[0] * 100] * 100] * 100] * 100)",
    "max([[[0] * 1000] * 100] * 100)",
    "[[[0] * 1000] * 1000] in [[[[0] * 1000] * 1000]]",
    "xs.index([[[0] * 1000] * 1000]) or [[[[0] * 1000] * 1000]].index([[[0] * 1000] * 1000])",
    "[[[[0] * 1000] * 1000]].count([[[0] * 1000] * 1000])",
    "[big] * 1000",
    "{str(i): big for i in range(1000)}",
    "re.match('(a+)+$', big)",
    "re.match('(a|a)*b', 'a')",
    "re.match('(a|aa)+$', big)",
    "re.match('([a-zA-Z]+)*$', big)",
    "re.match('(.*a){20}', big)",
    "re.search('a*a*a*a*b', big)",
    "re.search('(x+x+)+y', s)",
    "re.search('^(([a-z])+.)+[A-Z]([a-z])+$', big)",
    "re.findall('a*?a*?a*?b', big)",
    "re.sub('(a*)*b', 'x', big)",
    "re.sub('a', 'xxxxxxxxxx', big)",
    "re.sub('(a+)', '\\\\1\\\\1\\\\1', big)",
    "re.search('(' * 60 + ')' * 60, s)",
    "re.search('a{1000}{1000}{1000}', big)",
    "re.search('x' * 2000, s)",
    "re.search('(?:' * 40 + 'a*' + ')*' * 40, s)",
    "re.search('(a)(?(1)b|c)' * 5, s)",
    "(" * 300 + ")" * 300,
    "[" * 150 + "]" * 150,
    "-" * 4000 + "1",
    "not " * 1000 + "1",
    "1" + "+1" * 1900,
    "x" + ".a" * 1500,
    "x" + "[0]" * 1200,
    " and ".join(["x"] * 800),
    "[" + "1," * 1500 + "]",
    "f'" + "{x}" * 1000 + "'",
    "f'{f\"{f'{1}'}\"}'" * 200,
    "a" * 5000,
    "'" + "a" * 11000 + "'",
    "round(1, 10 ** 20)",
    "datetime.fromisoformat('1' * 60000)",
    "timedelta(days=1e300)",
    "zip(range(99999), range(99999), range(99999))",
    "enumerate(range(100001))",
    "list(reversed(range(100000))) + list(range(100000))",
    "dict((i, big) for i in range(100000))",
    "set(range(200000))",
    "{k * (2 ** 61 - 1): 1 for k in range(30000)}",
    "{k * (2 ** 61 - 1) for k in range(30000)}",
    "set([k * (2 ** 61 - 1) for k in range(30000)])",
    "[m.group(1) for m in [re.search('x(.*)y', 'x' + big + 'y')] for i in range(20000)]",
    "[m.groups() for m in [re.search('x(.*)y', 'x' + big + 'y')] for i in range(20000)]",
    "[m.groupdict() for m in [re.search('x(?P<g>.*)y', 'x' + big + 'y')] for i in range(20000)]",
    "re.findall('" + "(" * 40 + "a.*b" + ")" * 40 + "', ('a' + 'x' * 1000 + 'b') * 60)",
    "[1 for i in range(100000) if big + 'x' == big + 'y']",
    "[1 for a in [big + 'x'] for b in [big + 'y'] for i in range(99000) if [b] * 9 == [a] * 9]",
    "'a,' * 30000 == ('a,' * 30000).split(',') or ('a,' * 32000).split(',') * 100",
]


@pytest.mark.parametrize("source", BOMBS, ids=[source[:50] for source in BOMBS])
def test_bomb_ends_at_once_with_an_error(source):
    started = time.perf_counter()
    with pytest.raises(ExpressionError):
        evaluate(source, CONTEXT, limits=CONDITION_LIMITS)
    # A bound on the work, generous because other tests may use the machine.
    assert time.perf_counter() - started < 2


def test_work_within_the_limits_is_short():
    started = time.perf_counter()
    assert evaluate("len([x for x in range(30000)])", {}) == 30_000
    assert evaluate("sum(x * x for x in range(20000))", {}) == 2_666_466_670_000
    assert time.perf_counter() - started < 2


def test_steps_are_shared_by_all_evaluations_of_one_evaluator():
    evaluator = Evaluator({}, steps=100)
    expression = parse("1 + 1")
    values = (evaluator.run(expression) for _ in range(100))
    with pytest.raises(ExpressionError, match="steps"):
        list(values)


def test_steps_bound_name_lookups_too():
    evaluator = Evaluator({"a": 1}, steps=10)
    values = (evaluator.run("a") for _ in range(20))
    with pytest.raises(ExpressionError, match="steps"):
        list(values)


def test_depth_nodes_and_items_have_their_own_limits():
    with pytest.raises(ExpressionError, match="deep"):
        evaluate("((1 + (1 + (1 + 1))))", {}, limits=Limits(max_depth=2))
    with pytest.raises(ExpressionError, match="parts"):
        evaluate("[1, 2, 3, 4, 5]", {}, limits=Limits(max_nodes=4))
    with pytest.raises(ExpressionError, match="elements"):
        evaluate("[x for x in range(9)]", {}, limits=Limits(max_items=8, max_steps=10_000))
    with pytest.raises(ExpressionError, match="elements"):
        evaluate("list(xs)", {"xs": [0] * 9}, limits=Limits(max_items=8))
    with pytest.raises(ExpressionError, match="elements"):
        evaluate("re.findall('a', s)", {"s": "a" * 9}, limits=Limits(max_items=8))
    with pytest.raises(ExpressionError, match="characters"):
        evaluate("s.upper()", {"s": "x" * 9}, limits=Limits(max_string_chars=8))
    with pytest.raises(ExpressionError, match="parts"):
        evaluate("[xs, xs]", {"xs": [0] * 9}, limits=Limits(max_result_nodes=15))
    with pytest.raises(ExpressionError, match="characters"):
        evaluate("[s, s]", {"s": "x" * 9}, limits=Limits(max_result_chars=15))


def test_deep_data_is_an_error_not_a_crash():
    deep: object = 0
    for _ in range(5000):
        deep = [deep]
    for source in (
        "[deep]",
        "str(deep)",
        "deep == [deep]",
        "deep < [deep]",
        "f'{deep}'",
        "[deep] in [[[deep]]]",
    ):
        with pytest.raises(ExpressionError):
            evaluate(source, {"deep": deep})
    assert evaluate("deep < deep", {"deep": deep}) is False


def test_nothing_but_the_tables_can_be_called():
    assert not {"eval", "exec", "getattr", "setattr", "type", "open", "vars", "map", "filter"} & set(
        FUNCTIONS
    )
    for methods in METHODS.values():
        assert not any(name.startswith("_") for name in methods)
        assert not {"format", "format_map", "encode", "append", "update", "pop", "sort"} & set(methods)
    assert set(NAMESPACES) == {"re", "datetime"}
    assert ast.Lambda not in HANDLERS
    assert ast.NamedExpr not in HANDLERS


def test_cache_stays_within_its_bounds():
    cache = SourceCache(3, 10)
    for source in ("aa", "bb", "cc", "dd", "eeeeeee"):
        cache.put(source, source.upper())
    assert cache.get("aa") is None
    assert cache.get("eeeeeee") == "EEEEEEE"
    cache.put("x" * 11, 1)
    assert cache.get("x" * 11) is None
    assert cache.get("eeeeeee") is None
