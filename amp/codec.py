"""Frames to values and back, with every bound checked. Pure: it refuses by value, it never raises at bad input.

Source: AMP/1.0; the two top-level frames `handshake` and `heartbeat` come from its reference client.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from amp.envelope import (
    MAX_ID_CHARACTERS,
    MESSAGE_TYPES,
    PROTOCOL,
    SUPPORTED_PROTOCOLS,
    Envelope,
    Message,
    OutgoingEnvelope,
)
from amp.errors import AmpError, InvalidSchema, UnsupportedMessageType

MAX_JSON_DEPTH = 50
MAX_BATCH_MESSAGES = 1024
MAX_REASON_CHARACTERS = 300
CONTROL_TYPES = frozenset({"handshake", "heartbeat"})

_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_BRACKET = re.compile(r"[^\[\]{}]+")
_OPEN_BRACE = ord("{")
_VERSION = re.compile(r"(?:AMP|AIP)/1\.\d{1,4}\Z")


class Control(msgspec.Struct, frozen=True):
    """A handshake or a heartbeat. It names no agent and wants no answer."""

    type: str


class Refusal(msgspec.Struct, frozen=True):
    """A message that cannot be used, and what can be said to its sender."""

    error: AmpError
    message_id: str | None = None
    agent_id: str | None = None


class _Frame(msgspec.Struct, frozen=True):
    protocol: str | msgspec.UnsetType = msgspec.UNSET
    message: Message | msgspec.UnsetType = msgspec.UNSET
    type: str | msgspec.UnsetType = msgspec.UNSET


Item = Envelope | Control | Refusal

_FRAME = msgspec.json.Decoder(_Frame | list[_Frame])
_ANY_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODER = msgspec.json.Encoder()


def encode(envelope: Envelope | OutgoingEnvelope) -> bytes:
    """Return the frame of one envelope. Raises TypeError when a payload holds a value that JSON cannot."""
    return _ENCODER.encode(envelope)


def join_frames(frames: Sequence[bytes]) -> bytes:
    """Return one frame that carries several, as a JSON array; a single one stays as it is."""
    return frames[0] if len(frames) == 1 else b"[" + b",".join(frames) + b"]"


def decode(data: str | bytes, *, max_depth: int | None = MAX_JSON_DEPTH) -> tuple[list[Item], bool]:
    """Return what a frame carries, in order, and whether it was a batch. Bad parts become a `Refusal` each."""
    if max_depth is not None and _is_too_deep(data, max_depth):
        return [Refusal(InvalidSchema(f"the frame is nested deeper than {max_depth} levels"))], False
    try:
        frame = _FRAME.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return _decode_loosely(data)
    if isinstance(frame, list):
        if not 0 < len(frame) <= MAX_BATCH_MESSAGES:
            return [Refusal(InvalidSchema(f"a batch carries 1 to {MAX_BATCH_MESSAGES} messages"))], True
        return [_item(each) for each in frame], True
    return [_item(frame)], False


def _is_too_deep(data: str | bytes, max_depth: int) -> bool:
    """Return whether an envelope nests too deep, or one of a batch does. A batch is measured part by part."""
    if data[:1] not in ("[", b"["):
        return exceeds_depth(data, max_depth)
    try:
        parts = _ANY_LIST.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return exceeds_depth(data, max_depth)
    return any(exceeds_depth(bytes(part), max_depth) for part in parts)


def exceeds_depth(data: str | bytes, max_depth: int) -> bool:
    """Return whether JSON text nests deeper than `max_depth`. It runs in linear time for each level."""
    if isinstance(data, bytes):
        if data.count(b"{") + data.count(b"[") <= max_depth:
            return False
        data = data.decode("utf-8", "replace")
    elif data.count("{") + data.count("[") <= max_depth:
        return False
    brackets = _NOT_BRACKET.sub("", _STRING.sub("", data)).replace("{", "[").replace("}", "]")
    for _ in range(max_depth):
        shorter = brackets.replace("[]", "")
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    return bool(brackets)


def _item(frame: _Frame) -> Item:
    message = frame.message
    if message is msgspec.UNSET:
        if isinstance(frame.type, str) and frame.type in CONTROL_TYPES:
            return Control(frame.type)
        return Refusal(InvalidSchema("a frame needs a 'message', or the type 'handshake' or 'heartbeat'"))
    protocol = frame.protocol
    if protocol != PROTOCOL and not (isinstance(protocol, str) and _VERSION.match(protocol)):
        said = repr(protocol[:40]) if isinstance(protocol, str) else "missing"
        error = InvalidSchema(
            f"the protocol is {said}; this mesh speaks {PROTOCOL}", {"supported": list(SUPPORTED_PROTOCOLS)}
        )
        return Refusal(error, message.id, message.source.agent_id)
    if message.type not in MESSAGE_TYPES:
        error_type = UnsupportedMessageType(
            f"the message type {message.type[:40]!r} is none of {', '.join(sorted(MESSAGE_TYPES))}",
            {"supported": sorted(MESSAGE_TYPES)},
        )
        return Refusal(error_type, message.id, message.source.agent_id)
    if memoryview(message.payload)[0] != _OPEN_BRACE:
        return Refusal(InvalidSchema("the payload must be an object"), message.id, message.source.agent_id)
    return Envelope(PROTOCOL, message)


def _decode_loosely(data: str | bytes) -> tuple[list[Item], bool]:
    """Return a refusal that says what is wrong with a frame, or one for each bad message of a batch."""
    try:
        loose = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        return [Refusal(InvalidSchema(f"the frame is not JSON: {_reason(error)}"))], False
    if isinstance(loose, list):
        raws = _ANY_LIST.decode(data)
        if len(raws) > MAX_BATCH_MESSAGES:
            return [Refusal(InvalidSchema(f"a batch carries 1 to {MAX_BATCH_MESSAGES} messages"))], True
        return [_decode_one(bytes(raw), each) for raw, each in zip(raws, loose, strict=True)], True
    return [_decode_one(data, loose)], False


def _decode_one(data: str | bytes, loose: Any) -> Item:
    try:
        frame = _FRAME.decode(data)
    except msgspec.DecodeError as error:
        message_id, agent_id = _sender(loose)
        return Refusal(InvalidSchema(f"not an AMP message: {_reason(error)}"), message_id, agent_id)
    if isinstance(frame, list):
        return Refusal(InvalidSchema("a batch cannot carry a batch"))
    return _item(frame)


def _sender(loose: Any) -> tuple[str | None, str | None]:
    """Return message id and agent id of a broken envelope, as far as they can be found."""
    message = loose.get("message") if isinstance(loose, dict) else None
    if not isinstance(message, dict):
        return None, None
    source = message.get("source")
    agent_id = source.get("agent_id") if isinstance(source, dict) else None
    return _short_text(message.get("id")), _short_text(agent_id)


def _short_text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARACTERS else None


def _reason(error: Exception) -> str:
    return str(error)[:MAX_REASON_CHARACTERS]
