"""What a reply says: its result, decoded, or its error as an exception. Pure."""

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic

import msgspec

from amp.capability import Status
from amp.envelope import ROUTER_ID, ErrorPayload, Message, MessageType, ResponsePayload
from amp.errors import AgentLost, AmpError, Disconnected, InvalidSchema, error_from_wire

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # 3.13 has defaults of its own
else:
    from typing import TypeVar

if TYPE_CHECKING:
    T = TypeVar("T", default=Any)
else:
    T = TypeVar("T")

_RESPONSE = msgspec.json.Decoder(ResponsePayload)
_ERROR = msgspec.json.Decoder(ErrorPayload)


class Answer(msgspec.Struct, Generic[T], frozen=True):
    """A response with its circumstances. `agent_id` is the agent that answered."""

    result: T
    status: Status
    metadata: Mapping[str, Any]
    agent_id: str


@lru_cache(maxsize=1024)
def _decoder_for(reply_type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(Any if reply_type is object else reply_type)


def answer_of(message: Message, reply_type: Any) -> Answer[Any]:
    """Return what a reply says. Raises its error, or InvalidSchema when it does not fit."""
    if message.type == MessageType.ERROR:
        raise error_of(message)
    try:
        payload = _RESPONSE.decode(message.payload)
        raw = b"null" if isinstance(payload.result, msgspec.UnsetType) else payload.result
        result = _decoder_for(reply_type).decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidSchema(
            f"{message.source.agent_id} answered something unexpected: {str(error)[:300]}"
        ) from None
    return Answer(result, payload.status, payload.metadata or {}, message.source.agent_id)


def error_of(message: Message) -> AmpError:
    """Return the error that a message carries, and who sent it."""
    try:
        body = _ERROR.decode(message.payload).error
    except (msgspec.DecodeError, RecursionError):
        return InvalidSchema(f"{message.source.agent_id} answered an error that cannot be read")
    error = error_from_wire(body.code, body.message, body.details)
    error.from_agent_id = message.source.agent_id
    return error


def may_retry(error: AmpError, *, resend: bool) -> bool:
    """Return whether a request that failed so may be sent again without doing its work twice."""
    if isinstance(error, Disconnected):
        return resend or error.details.get("sent") is False
    if isinstance(error, AgentLost):
        return resend
    return error.from_agent_id == ROUTER_ID
