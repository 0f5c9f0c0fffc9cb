"""What evaluating and rendering cost a call, in microseconds and as a ratio against plain Python doing the same.

Run: python -m bench.expressions
"""

import statistics
import timeit
from collections.abc import Callable
from typing import Any

from orchestration.conditions import evaluate as condition
from orchestration.expressions import Evaluator, evaluate, parse
from orchestration.rules import validate
from orchestration.templates import Scope, references, render
from orchestration.transforms import apply

ROUNDS = 7
SECONDS_A_ROUND = 0.05

CONTEXT: dict[str, Any] = {
    "name": "Ada",
    "amount": 1500,
    "user": {"name": "Ada", "verified": True, "address": {"city": "London"}},
    "orders": [
        {"id": index, "total": index * 1.5, "status": "active" if index % 2 else "done"}
        for index in range(100)
    ],
}
SCOPE = Scope(variables=CONTEXT, declared=frozenset({"later"}))
PARAMETERS = {
    "method": "POST",
    "url": "https://api.example.org/users/{name}/orders",
    "headers": {"Accept": "application/json"},
    "data": {"user": "{user}", "amount": "{amount}", "city": "{user.address.city}"},
}
PLAIN_PARAMETERS = {
    "method": "POST",
    "url": "https://api.example.org/users",
    "data": {"a": [1, 2, 3], "b": "text"},
}
ORDERS = CONTEXT["orders"]
FILTER_MAP_SORT = [
    {"type": "filter", "config": {"condition": "item['status'] == 'active'"}},
    {"type": "map", "config": {"expression": "{'id': item['id'], 'total': item['total'] * 2}"}},
    {"type": "sort", "config": {"key": "total"}},
]
RULES = [
    {"type": "required", "field": "name"},
    {"type": "range", "field": "amount", "config": {"min": 0, "max": 10_000}},
    {"type": "regex", "field": "name", "config": {"pattern": "^[A-Z]"}},
]

CASES: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
    ("name", lambda: evaluate("name", CONTEXT), lambda: CONTEXT["name"]),
    (
        "dotted name",
        lambda: evaluate("user.address.city", CONTEXT),
        lambda: CONTEXT["user"]["address"]["city"],
    ),
    (
        "comparison",
        lambda: evaluate("amount > 1000 and user.verified == True", CONTEXT),
        lambda: CONTEXT["amount"] > 1000 and CONTEXT["user"]["verified"] is True,
    ),
    (
        "comprehension over 100",
        lambda: evaluate("sum(o.total for o in orders if o.status == 'active')", CONTEXT),
        lambda: sum(order["total"] for order in ORDERS if order["status"] == "active"),
    ),
    ("render without braces", lambda: render(PLAIN_PARAMETERS, SCOPE), lambda: copy_plain(PLAIN_PARAMETERS)),
    ("render one name", lambda: render("{name}", SCOPE), lambda: CONTEXT["name"]),
    ("render an api_call", lambda: render(PARAMETERS, SCOPE), lambda: render_plainly(CONTEXT)),
    ("references of an api_call", lambda: references(PARAMETERS), lambda: copy_plain(PARAMETERS)),
    (
        "simple condition",
        lambda: condition("simple", "user.name == 'Ada'", CONTEXT),
        lambda: CONTEXT["user"]["name"] == "Ada",
    ),
    (
        "filter, map, sort of 100",
        lambda: apply(ORDERS, FILTER_MAP_SORT, CONTEXT),
        lambda: sorted(
            ({"id": o["id"], "total": o["total"] * 2} for o in ORDERS if o["status"] == "active"),
            key=lambda o: o["total"],
        ),
    ),
    ("three validation rules", lambda: validate(CONTEXT, RULES, {}), lambda: validate_plainly(CONTEXT)),
    ("parse, not cached", lambda: parse(next(SOURCES)), lambda: compile("amount > 1000", "", "eval")),
    ("evaluator of its own", lambda: Evaluator(CONTEXT), dict),
]


def fresh_sources():
    """Yield expressions that were never parsed before."""
    number = 0
    while True:
        number += 1
        yield f"amount > {number}"


SOURCES = fresh_sources()


def copy_plain(value: Any) -> Any:
    """Return a copy of the parameters, which is the least that any rendering does."""
    if isinstance(value, dict):
        return {key: copy_plain(part) for key, part in value.items()}
    return [copy_plain(part) for part in value] if isinstance(value, list) else value


def render_plainly(context: dict[str, Any]) -> dict[str, Any]:
    """Return the api_call's parameters as hand-written code would make them."""
    return {
        "method": "POST",
        "url": f"https://api.example.org/users/{context['name']}/orders",
        "headers": {"Accept": "application/json"},
        "data": {
            "user": context["user"],
            "amount": context["amount"],
            "city": context["user"]["address"]["city"],
        },
    }


def validate_plainly(context: dict[str, Any]) -> bool:
    """Return what the three rules say, by hand."""
    return (
        context.get("name") is not None and 0 <= context["amount"] <= 10_000 and context["name"][:1].isupper()
    )


def microseconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the median and the spread of a call's time over the rounds."""
    timer = timeit.Timer(work)
    once = max(timer.timeit(10) / 10, 1e-8)
    number = max(1, int(SECONDS_A_ROUND / once))
    times = [timer.timeit(number) / number * 1e6 for _ in range(ROUNDS)]
    return statistics.median(times), max(times) - min(times)


def main() -> None:
    """Print one line a case."""
    print(f"{'case':28} {'µs':>9} {'± µs':>8} {'plain µs':>9} {'ratio':>8}")
    for name, ours, plain in CASES:
        median, spread = microseconds(ours)
        reference, _ = microseconds(plain)
        print(f"{name:28} {median:9.2f} {spread:8.2f} {reference:9.3f} {median / reference:8.1f}")


if __name__ == "__main__":
    main()
