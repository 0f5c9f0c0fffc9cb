"""Placeholders: what is filled, what stays, what fails, and what a task needs for them."""

import copy
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.expressions import TemplateError
from orchestration.templates import (
    MAX_PARAMETER_NODES,
    MAX_TEXT_CHARS,
    Scope,
    has_templates,
    references,
    render,
)

SCOPE = Scope(
    variables={
        "name": "Ada",
        "n": 3,
        "price": 2.5,
        "flag": True,
        "nothing": None,
        "xs": [1, "a", None],
        "user": {"name": "Ada", "address": {"city": "London"}},
        "evil": "{name} {{n}} {secrets.token}",
        "crlf": "a\r\nX-Evil: 1",
        "uni": "Zoë",
    },
    declared=frozenset({"later"}),
    secrets={"token": "s3"}.get,
    now=datetime(2024, 1, 15, tzinfo=UTC),
)

CASES = [
    ("plain", "plain"),
    ("", ""),
    ("{name}", "Ada"),
    ("{n}", 3),
    ("{price}", 2.5),
    ("{flag}", True),
    ("{nothing}", None),
    ("{later}", None),
    ("{xs}", [1, "a", None]),
    ("{user}", {"name": "Ada", "address": {"city": "London"}}),
    ("{user.address.city}", "London"),
    ("{xs[1]}", "a"),
    ("{xs[-1]}", None),
    ("{n + 1}", 4),
    ("{name.upper()}", "ADA"),
    ("{dict(k=n)}", {"k": 3}),
    ("{f'{name}!'}", "Ada!"),
    ("{user['name']}", "Ada"),
    ('{user["name"]}', "Ada"),
    ("{name if flag else 'x}'}", "Ada"),
    ("{datetime.now().year}", 2024),
    ("{name }", "Ada"),
    ("{ name}", "{ name}"),
    ("Hello, {name}!", "Hello, Ada!"),
    ("{name}{n}", "Ada3"),
    ("{n} ", "3 "),
    ("a {nothing} b {later} c", "a  b  c"),
    ("{flag} {price} {xs} {user}", 'true 2.5 [1, "a", null] {"name": "Ada", "address": {"city": "London"}}'),
    ("{uni} {[uni]}", "Zoë {[uni]}"),
    ("list: {list(uni)}", 'list: ["Z", "o", "ë"]'),
    # literal braces
    ("{{name}}", "{name}"),
    ("{{{name}}}", "{Ada}"),
    ("a {{ b }} c", "a { b } c"),
    ("a }} b", "a } b"),
    ("{{", "{"),
    ("}}", "}"),
    ("{", "{"),
    ("}", "}"),
    ("{}", "{}"),
    ("{{}}", "{}"),
    # what is no expression stays as written
    (r"^\d{3}-\d{2,4}$", r"^\d{3}-\d{2,4}$"),
    ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
    ('{"a": {"b": "{name}"}}', '{"a": {"b": "Ada"}}'),
    ("body { color: red; }", "body { color: red; }"),
    ("{color: red}", "{color: red}"),
    ("{name!r} {n:>3}", "{name!r} {n:>3}"),
    ("{not an expression {name}", "{not an expression Ada"),
    ("it's {name}'s", "it's Ada's"),
    ("{it's} {name}", "{it's} Ada"),
    ("{1 + 1}", "{1 + 1}"),
    ("{'name'}", "{'name'}"),
    ("{name", "{name"),
    ("name}", "name}"),
    ("function() { return x }", "function() { return x }"),
    ("${name}", "$Ada"),
    ("{a b}", "{a b}"),
    ("{import os}", "{import os}"),
    # secrets
    ("{secrets.token}", "s3"),
    ("Bearer {secrets.token}", "Bearer s3"),
    ("{secrets['token']}", "s3"),
    # one pass only
    ("{evil}", "{name} {{n}} {secrets.token}"),
    ("<{evil}>", "<{name} {{n}} {secrets.token}>"),
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[case[0] for case in CASES])
def test_text_becomes(text, expected):
    value = render(text, SCOPE)
    assert value == expected
    assert type(value) is type(expected)
    # The second time it comes out of the cache.
    assert render(text, SCOPE) == expected


FAILURES = [
    ("{nme}", "TEMPLATE_UNRESOLVED", "did you mean 'name'"),
    ("x {unknown_thing} y", "TEMPLATE_UNRESOLVED", "unknown_thing"),
    ("{user.nme}", "TEMPLATE_UNRESOLVED", "did you mean 'name'"),
    ("{secrets.other}", "TEMPLATE_UNRESOLVED", "other"),
    ("{secrets}", "EXPRESSION_ERROR", "one by one"),
    ("{len(secrets)}", "EXPRESSION_ERROR", "one by one"),
    ("{secrets.keys()}", "EXPRESSION_ERROR", "one by one"),
    ("{nothing.x}", "EXPRESSION_ERROR", "null"),
    ("{n / 0}", "EXPRESSION_ERROR", "zero"),
    ("{name.__class__}", "EXPRESSION_ERROR", "underscore"),
    ("{__import__('os')}", "EXPRESSION_ERROR", "underscore"),
    ("{_private}", "EXPRESSION_ERROR", "underscore"),
    ("{name.format(1)}", "EXPRESSION_ERROR", "no method"),
    ("{'a' * 10 ** 9} {x}", "TEMPLATE_UNRESOLVED", "x"),
    ("{n * 'a' * 10 ** 9}", "EXPRESSION_ERROR", "more than"),
]


@pytest.mark.parametrize(("text", "code", "words"), FAILURES, ids=[case[0] for case in FAILURES])
def test_text_fails(text, code, words):
    with pytest.raises(TemplateError) as failure:
        render({"deep": [text]}, SCOPE)
    assert failure.value.code == code
    assert words in failure.value.message
    assert failure.value.path == "/deep/0"
    assert not failure.value.retryable
    assert "s3" not in failure.value.message


def test_strings_are_filled_at_any_depth_and_keys_stay():
    parameters = {"a": ["{n}", {"{name}": "{xs[0]}", "b": ("{name}", 5, None)}], "c/d~": "{flag}"}
    before = copy.deepcopy(parameters)
    assert render(parameters, SCOPE) == {"a": [3, {"{name}": 1, "b": ["Ada", 5, None]}], "c/d~": True}
    assert parameters == before


def test_path_of_a_failure_is_a_json_pointer():
    with pytest.raises(TemplateError) as failure:
        render({"c/d~": "{nope}"}, SCOPE)
    assert failure.value.path == "/c~1d~0"


def test_code_is_never_filled():
    parameters = {
        "expression": "{'id': name}",
        "transformations": [
            {"type": "map", "config": {"expression": "{n: name}"}},
            {"type": "sort", "config": {"key": "{name}"}},
            {"type": "filter", "config": {"condition": "{name} == 1"}},
        ],
        "until": "{name}",
        "tree": {"condition": "{name}", "true_branch": "{name}"},
        "conditions": [{"expression": "{name}"}],
        "data": {"key": "{name}", "until": "{n}", "expression": "{name}"},
    }
    rendered = render(parameters, SCOPE)
    assert rendered == {
        **parameters,
        "tree": {"condition": "{name}", "true_branch": "Ada"},
        "data": {"key": "Ada", "until": 3, "expression": "{name}"},
    }


@pytest.mark.parametrize("field", ["url", "file_path", "path", "command"])
def test_null_inside_a_place_fails_instead_of_naming_another(field):
    with pytest.raises(TemplateError) as failure:
        render({field: "/a/{nothing}/b"}, SCOPE)
    assert failure.value.code == "TEMPLATE_UNRESOLVED"
    with pytest.raises(TemplateError) as failure:
        render({field: "/a/{crlf}/b"}, SCOPE)
    assert failure.value.code == "EXPRESSION_ERROR"
    assert "X-Evil" not in failure.value.message
    assert render({field: "/a/{name}/b"}, SCOPE) == {field: "/a/Ada/b"}


def test_variable_named_secrets_wins_over_the_store():
    scope = Scope(variables={"secrets": {"mine": 1}}, secrets={"token": "s3"}.get)
    assert render("{secrets.mine}", scope) == 1
    assert render("{secrets}", scope) == {"mine": 1}


def test_without_a_store_secrets_are_an_unknown_name():
    with pytest.raises(TemplateError, match="secrets"):
        render("{secrets.token}", Scope(variables={}))


def test_sizes_are_bounded():
    with pytest.raises(TemplateError, match="characters"):
        render("x{name}" + " " * MAX_TEXT_CHARS, SCOPE)
    long = Scope(variables={"long": "x" * (MAX_TEXT_CHARS - 10)})
    with pytest.raises(TemplateError, match="characters"):
        render("{long} and {long}", long)
    with pytest.raises(TemplateError, match="characters"):
        render(["<{long}>"] * 20, long)
    with pytest.raises(TemplateError, match="parts"):
        render([0] * (MAX_PARAMETER_NODES + 1), SCOPE)
    deep: object = "{name}"
    for _ in range(200):
        deep = [deep]
    for work in (lambda: render(deep, SCOPE), lambda: references(deep), lambda: render({"a": deep}, SCOPE)):
        with pytest.raises(TemplateError, match="deep"):
            work()


def test_all_placeholders_share_their_steps():
    heavy = "{max(sum(y for y in range(30000)) for x in [n])}"
    assert render(heavy, SCOPE) == 449_985_000
    with pytest.raises(TemplateError, match="steps"):
        render([heavy] * 100, SCOPE)


def test_value_that_is_no_json_is_an_error():
    scope = Scope(variables={"odd": {"when": datetime(2024, 1, 1, tzinfo=UTC)}, "nan": [float("nan")]})
    for text in ("x {odd}", "x {nan}"):
        with pytest.raises(TemplateError, match="JSON"):
            render(text, scope)


def test_text_full_of_braces_ends_soon():
    with pytest.raises(TemplateError, match="braces"):
        render("{a " * 100_000, SCOPE)
    assert render("{" * 5000, SCOPE) == "{" * 2500
    assert render("}" * 5000, SCOPE) == "}" * 2500


def test_references_tell_what_a_task_needs():
    found = references(
        {
            "url": "{base_url}/users/{user.id}",
            "data": {"a": [f"{{tasks.first.outputs.{x}}}" for x in "ab"], "plain": "text {{no}}"},
            "transformations": [{"type": "map", "config": {"expression": "item.price * rate"}}],
            "headers": {"Authorization": "Bearer {secrets.token}"},
        }
    )
    assert found.template_names == {"base_url", "user", "tasks", "secrets"}
    assert found.names == found.template_names | {"item", "rate"}
    assert not found.whole_context
    assert found.problems == ()


@pytest.mark.parametrize("name", ["workflow_context", "inputs", "user_input", "request_data"])
def test_some_names_need_the_whole_context(name):
    assert references({"context": f"{{{name}}}"}).whole_context
    assert references({"expression": f"{name}.x > 1"}).whole_context


def test_code_of_other_condition_types_is_read_as_such():
    found = references(
        {
            "conditions": [
                {"expression": "status == active", "type": "simple"},
                {"expression": "email ~ ^a", "type": "regex"},
                {"expression": "is_empty(box)", "type": "custom"},
                {"expression": "$.order.total", "type": "json_path"},
            ],
            "expression": "a.b ~ x",
            "condition_type": "regex",
        }
    )
    assert found.names == {"status", "active", "email", "box", "order", "a"}
    assert found.problems == ()
    assert references({"expression": "$..x", "condition_type": "json_path"}).whole_context


def test_problems_are_told_with_their_place():
    found = references({"a": ["{name.__class__}"], "expression": "1 +", "data": {"condition": "as new!"}})
    assert [(problem.path, problem.code) for problem in found.problems] == [
        ("/a/0", "EXPRESSION_NOT_ALLOWED"),
        ("/expression", "EXPRESSION_SYNTAX"),
    ]


def test_has_templates_looks_outside_of_code():
    assert has_templates({"a": ["x {y}"]})
    assert has_templates({"a": "}}"})
    assert not has_templates({"expression": "{'a': 1}", "b": ["plain", 5, None]})


@given(st.text().filter(lambda text: "{" not in text and "}" not in text))
def test_text_without_braces_is_left_alone(text):
    assert render(text, SCOPE) == text


@given(st.text(alphabet="{}ab'\" .n\\", max_size=40))
def test_any_text_is_filled_or_fails_by_name(text):
    try:
        value = render(text, Scope(variables={"a": 1, "b": "x", "n": None}))
    except TemplateError:
        return
    assert value is None or isinstance(value, str | int | bool | float | list | dict)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(alphabet="xyz"), st.lists, max_leaves=20)
)
def test_value_comes_back_as_it_is(value):
    assert render("{value}", Scope(variables={"value": value})) == value
    assert render([value], Scope(variables={})) == [value]
