import time

import msgspec
import pytest

from amp.capability import Capability, Incoming, Offer
from amp.errors import (
    AgentIdInUse,
    AgentLost,
    AmpError,
    ExecutionError,
    InvalidParameters,
    LocalProtocolError,
    NetworkError,
    RequestTimeout,
    error_from_wire,
)
from amp.parameter_schema import ParameterSchema


async def nothing(incoming: Incoming) -> object:
    return None


class Point(msgspec.Struct, forbid_unknown_fields=True):
    x: int


def make_offer(schema: object = None, **options: object) -> Offer:
    capability = Capability(id="c", input_schema=schema or {"type": "object"})  # type: ignore[arg-type]
    return Offer(capability=capability, handler=nothing, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b'{"x": "one"}', "$.x"),
        (b'{"x": 1, "y": 2}', "$"),
        (b"{}", "$"),
        (b"[", "$"),
        (b"[" * 100_000, "$"),
    ],
)
def test_struct_parameters_are_checked_with_their_place(raw: bytes, path: str) -> None:
    with pytest.raises(InvalidParameters) as wrong:
        make_offer(parameters_type=Point).parse(raw)
    assert wrong.value.details["path"] == path


def test_schema_lists_every_problem_with_its_place() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"maxLength": 1}},
        "required": ["c"],
    }
    with pytest.raises(InvalidParameters) as wrong:
        make_offer(schema).parse(b'{"a": "x", "b": "long"}')
    assert sorted(each["path"] for each in wrong.value.details["problems"]) == ["$", "$.a", "$.b"]
    assert make_offer(schema, check_input=False).parse(b'{"a": "x"}') == {"a": "x"}
    assert make_offer(parameters_type=Point).parse(b'{"x": 1}') == Point(1)


def test_number_of_listed_problems_is_bounded() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    raw = msgspec.json.encode({f"k{number}": "x" for number in range(500)})
    with pytest.raises(InvalidParameters) as wrong:
        make_offer(schema).parse(raw)
    assert len(wrong.value.details["problems"]) == 20


def test_schema_never_fetches_anything() -> None:
    began = time.monotonic()
    with pytest.raises(Exception, match=r"192\.0\.2\.1"):
        make_offer({"$ref": "http://192.0.2.1/schema.json"}).parse(b"{}")
    assert time.monotonic() - began < 1


def test_schema_that_is_none_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        ParameterSchema({"type": "nonsense"}, "c")


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("TIMEOUT", None, RequestTimeout),
        ("NETWORK_ERROR", {"reason": "agent_lost"}, AgentLost),
        ("NETWORK_ERROR", {"reason": ["agent_lost"]}, NetworkError),
        ("AUTHENTICATION_FAILED", {"reason": "agent_id_in_use"}, AgentIdInUse),
        ("OUR_OWN", {}, AmpError),
    ],
)
def test_errors_come_back_as_their_class(code: str, details: dict[str, object] | None, kind: type) -> None:
    error = error_from_wire(code, "text", details)
    assert type(error) is kind
    assert (error.code, error.message, str(error)) == (code, "text", f"{code}: text")


@pytest.mark.parametrize(("said", "expected"), [(True, True), (False, False), ("yes", True)])
def test_retryable_travels_in_the_details(said: object, expected: bool) -> None:
    assert error_from_wire("TIMEOUT", "t", {"retryable": said}).retryable is expected


def test_retryable_is_only_written_when_it_was_said() -> None:
    assert "retryable" not in ExecutionError("x").details
    assert ExecutionError("x", retryable=True).details == {"retryable": True}
    assert ExecutionError("x", severity="critical").severity == "critical"
