"""Which instance an idempotency key names, and when two starts ask for the same."""

import pytest

from orchestration.starts import MAX_KEY_CHARACTERS, instance_id_of, is_key, request_hash


def test_a_key_always_names_the_same_instance_and_another_key_another() -> None:
    assert instance_id_of("order-7") == instance_id_of("order-7")
    assert len({instance_id_of(f"order-{number}") for number in range(1000)}) == 1000


def test_a_derived_id_looks_like_every_other_instance_id() -> None:
    prefix, _, digits = instance_id_of("order-7").partition("_")
    assert prefix == "ins"
    assert len(digits) == 26
    assert set(digits) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


def test_the_id_of_a_key_never_changes_between_releases() -> None:
    assert instance_id_of("order-7") == "ins_W38W0261ZAD8F6AEZ6S5R228HN"


def test_the_order_of_inputs_makes_no_other_request() -> None:
    assert request_hash("flow", {"a": 1, "b": {"c": 2, "d": 3}}) == request_hash(
        "flow", {"b": {"d": 3, "c": 2}, "a": 1}
    )


@pytest.mark.parametrize(
    ("workflow_id", "inputs"), [("flow", {"a": 2}), ("other", {"a": 1}), ("flow", {}), ("flow", {"a": "1"})]
)
def test_another_workflow_or_other_inputs_make_another_request(
    workflow_id: str, inputs: dict[str, object]
) -> None:
    assert request_hash(workflow_id, inputs) != request_hash("flow", {"a": 1})


@pytest.mark.parametrize("text", ["x", "order-7", "~" * MAX_KEY_CHARACTERS, "a,b;c=d"])
def test_visible_ascii_is_a_key(text: str) -> None:
    assert is_key(text)


@pytest.mark.parametrize("text", ["", " ", "a b", "ä", "a\n", "\x7f", "x" * (MAX_KEY_CHARACTERS + 1)])
def test_anything_else_is_none(text: str) -> None:
    assert not is_key(text)
