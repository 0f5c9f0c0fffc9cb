"""The message of AMP/1.0 as types. Pure values: nothing here reads, sends or decides.

The head is decoded, the payload stays raw bytes until somebody who needs it looks inside. Fields that the protocol
does not know are dropped when a head is decoded, so a forwarded message never carries a key that makes a strict
receiver throw it away.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec

PROTOCOL = "AMP/1.0"
SUPPORTED_PROTOCOLS = ("AMP/1.0", "AIP/1.0")
PROTOCOL_VERSION = "1.0"
DEFAULT_PRIORITY = 5
DEFAULT_TIMEOUT_MS = 30_000
MAX_TIMEOUT_MS = 7 * 24 * 3600 * 1000
MAX_ID_CHARACTERS = 256

REGISTRY_ID = "registry"
ROUTER_ID = "router"
RESERVED_AGENT_IDS = frozenset({REGISTRY_ID, ROUTER_ID, "registration"})

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARACTERS)]
OptionalIdentifier = Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARACTERS)] | None


class MessageType(StrEnum):
    """What a message is."""

    REQUEST = "request"
    RESPONSE = "response"
    EVENT = "event"
    ERROR = "error"


MESSAGE_TYPES = frozenset(str(kind) for kind in MessageType)


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who speaks."""

    agent_id: Identifier
    session_id: OptionalIdentifier = None
    user_id: OptionalIdentifier = None


class Destination(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Who is meant: an agent, whoever has a capability, or everybody when empty."""

    agent_id: OptionalIdentifier = None
    capability: OptionalIdentifier = None
    routing_hints: dict[str, Any] | None = None


class Headers(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How the message is to be treated. Priority 10 is the most urgent; `timeout_ms` is a duration."""

    correlation_id: OptionalIdentifier = None
    priority: Annotated[int, msgspec.Meta(ge=1, le=10)] | None = DEFAULT_PRIORITY
    timeout_ms: Annotated[int, msgspec.Meta(ge=0)] | Annotated[float, msgspec.Meta(ge=0)] | None = None
    routing_hints: dict[str, Any] | None = None
    authentication: Any = None
    signature: Any = None
    tracing: Any = None

    @property
    def effective_timeout_ms(self) -> float:
        """The time the sender waits, in milliseconds, at most `MAX_TIMEOUT_MS`."""
        said = self.timeout_ms
        return DEFAULT_TIMEOUT_MS if said is None or said == 0 else min(float(said), MAX_TIMEOUT_MS)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message: head decoded, payload raw."""

    id: Identifier
    type: str
    timestamp: str | int | float
    source: Source
    destination: Destination
    headers: Headers
    payload: msgspec.Raw


class Envelope(msgspec.Struct, frozen=True):
    """What a frame carries."""

    protocol: str
    message: Message


class RequestPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The payload of a request, its values still raw."""

    capability: str | None = None
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    context: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class ResponsePayload(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a response, its result still raw."""

    status: Literal["success", "partial", "failed"] = "success"
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | None = None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    code: str = "INTERNAL_ERROR"
    message: str = ""
    details: dict[str, Any] | None = None


class ErrorPayload(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of an error."""

    error: ErrorBody


class EventHead(msgspec.Struct, frozen=True, kw_only=True):
    """The one field of an event's payload that routing needs."""

    event_type: str = ""


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """A message of our own making: like `Message`, but the payload is any object that can be encoded."""

    id: str
    type: str
    timestamp: datetime
    source: Source
    destination: Destination
    headers: Headers
    payload: Any


class OutgoingEnvelope(msgspec.Struct, frozen=True):
    """A frame of our own making."""

    protocol: str
    message: Outgoing


def error_payload(code: str, message: str, details: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """Return the payload of an error message."""
    return {"error": {"code": code, "message": message, "details": details, "timestamp": at}}
