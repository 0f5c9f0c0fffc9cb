import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp.codec import MAX_BATCH_MESSAGES, Control, Refusal, decode, encode, exceeds_depth, join_frames
from amp.envelope import PROTOCOL, Envelope


def make_frame(**changes: object) -> dict[str, object]:
    message = {
        "id": "m1",
        "type": "request",
        "timestamp": "2026-01-01T00:00:00Z",
        "source": {"agent_id": "a"},
        "destination": {"agent_id": None, "capability": "x"},
        "headers": {},
        "payload": {"capability": "x", "parameters": {}},
    }
    message.update(changes)
    return {
        "protocol": PROTOCOL,
        "message": {key: value for key, value in message.items() if value != "absent"},
    }


def decode_one(value: object) -> object:
    items, _ = decode(json.dumps(value))
    (item,) = items
    return item


@pytest.mark.parametrize(
    ("value", "code", "sender"),
    [
        (make_frame(source="absent"), "INVALID_SCHEMA", None),
        (make_frame(id=5), "INVALID_SCHEMA", "a"),
        (make_frame(payload="absent"), "INVALID_SCHEMA", "a"),
        (make_frame(payload=[1]), "INVALID_SCHEMA", "a"),
        (make_frame(headers={"priority": 11}), "INVALID_SCHEMA", "a"),
        (make_frame(headers={"timeout_ms": -1}), "INVALID_SCHEMA", "a"),
        (make_frame(type="question"), "UNSUPPORTED_MESSAGE_TYPE", "a"),
        ({**make_frame(), "protocol": "AMP/2.0"}, "INVALID_SCHEMA", "a"),
        ({"message": make_frame()["message"]}, "INVALID_SCHEMA", "a"),
        ({"type": "welcome"}, "INVALID_SCHEMA", None),
        (17, "INVALID_SCHEMA", None),
        ("text", "INVALID_SCHEMA", None),
        ([], "INVALID_SCHEMA", None),
    ],
)
def test_bad_frame_becomes_a_refusal_with_its_code_and_sender(
    value: object, code: str, sender: str | None
) -> None:
    item = decode_one(value)
    assert isinstance(item, Refusal)
    assert (item.error.code, item.agent_id) == (code, sender)


@pytest.mark.parametrize("protocol", ["AMP/1.0", "AIP/1.0", "AMP/1.7"])
def test_versions_of_major_one_are_taken_and_answered_as_ours(protocol: str) -> None:
    item = decode_one({**make_frame(), "protocol": protocol})
    assert isinstance(item, Envelope)
    assert item.protocol == PROTOCOL


@pytest.mark.parametrize("kind", ["handshake", "heartbeat"])
def test_control_frames_need_no_message(kind: str) -> None:
    assert decode_one({"type": kind, "timestamp": 1}) == Control(kind)


def test_unknown_head_keys_are_dropped_when_forwarded() -> None:
    frame = make_frame(headers={"priority": 7, "execution_time_ms": 3}, extra=1)
    item = decode_one(frame)
    assert isinstance(item, Envelope)
    message = json.loads(encode(item))["message"]
    assert message["headers"] == {"priority": 7}
    assert "extra" not in message


def test_batch_keeps_good_messages_beside_bad_ones() -> None:
    items, batched = decode(
        json.dumps([make_frame(), make_frame(id=1), [make_frame()], {"type": "heartbeat"}])
    )
    assert batched
    assert [type(item) for item in items] == [Envelope, Refusal, Refusal, Control]


def test_batch_is_bounded() -> None:
    for part in ("{}", json.dumps(make_frame())):
        items, _ = decode("[" + ",".join([part] * (MAX_BATCH_MESSAGES + 1)) + "]")
        assert len(items) == 1
        assert isinstance(items[0], Refusal)


@pytest.mark.parametrize("text", ["", "{", "nul", "{} {}", '{"message": NaN}', "\ud800", b"\xff\xfe"])
def test_text_that_is_not_json_is_refused(text: str | bytes) -> None:
    items, _ = decode(text)
    assert isinstance(items[0], Refusal)


@given(
    st.recursive(st.none() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=40)
)
def test_depth_is_measured_exactly(value: object) -> None:
    def depth(part: object) -> int:
        return 1 + max(map(depth, part), default=0) if isinstance(part, list) else 0

    text, real = json.dumps(value), depth(value)
    assert not exceeds_depth(text, real)
    assert real == 0 or exceeds_depth(text, real - 1)
    assert exceeds_depth(text.encode(), real) is False


def test_brackets_inside_strings_are_no_depth() -> None:
    assert not exceeds_depth(json.dumps({"a": "[" * 1000 + '"\\'}), 2)


def test_long_batch_of_flat_messages_is_not_deep_but_one_deep_message_is() -> None:
    flat = [make_frame()] * 60
    items, batched = decode(json.dumps(flat))
    assert batched
    assert len(items) == 60
    deep = make_frame(payload={"a": json.loads("[" * 60 + "]" * 60)})
    items, _ = decode(json.dumps([*flat, deep]))
    assert isinstance(items[0], Refusal)


def test_hostile_depth_is_refused_in_linear_time() -> None:
    items, _ = decode("[" * 1_000_000)
    assert isinstance(items[0], Refusal)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
identifiers = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)


@given(identifiers, identifiers, st.integers(1, 10), st.dictionaries(st.text(), json_values, max_size=5))
def test_envelope_survives_decode_and_encode(
    message_id: str, agent_id: str, priority: int, payload: object
) -> None:
    frame = make_frame(
        id=message_id, source={"agent_id": agent_id}, headers={"priority": priority}, payload=payload
    )
    (item,), _ = decode(msgspec.json.encode(frame))
    assert isinstance(item, Envelope)
    (again,), batched = decode(join_frames([encode(item)]))
    assert not batched
    assert isinstance(again, Envelope)
    assert (again.message.id, again.message.source.agent_id) == (message_id, agent_id)
    assert json.loads(bytes(again.message.payload)) == json.loads(json.dumps(payload))


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_no_input_raises(data: bytes | str) -> None:
    items, _ = decode(data)
    assert items
