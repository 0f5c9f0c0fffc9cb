"""What an agent can do, as a value, and the check of a request against it. Pure: handlers are only held, not run.

Input is checked before a handler sees it: decoded straight into a struct, or checked against the capability's JSON
Schema.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from amp.envelope import Message
from amp.errors import InvalidParameters

if TYPE_CHECKING:
    from amp.parameter_schema import ParameterSchema

MAX_REASON_CHARACTERS = 300

_CONTEXT = msgspec.json.Decoder(dict[str, Any])

Status = Literal["success", "partial", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """A capability as it is announced.

    `constraints` may hold `{"credit": 0}`: a request for it does not count against the agent's `max_in_flight`.
    """

    id: str
    version: str = "1.0"
    description: str = ""
    category: str = ""
    input_schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    output_schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    constraints: Mapping[str, Any] = field(default_factory=dict)


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """A request as its handler receives it.

    `parameters` is the offer's struct, or a dict. `context_raw` is the request payload's context as JSON bytes, when it
    is an object. `timeout_seconds` is how long the requester waits.
    """

    parameters: Any
    context_raw: bytes | None
    message: Message
    timeout_seconds: float

    @property
    def context(self) -> dict[str, Any] | None:
        """The request payload's context, decoded anew each time, or None when there is none."""
        return None if self.context_raw is None else _CONTEXT.decode(self.context_raw)


class Reply(msgspec.Struct, frozen=True):
    """A result with a status of its own or metadata. Handlers may return any other encodable object as the result."""

    result: object
    status: Status = "success"
    metadata: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A capability with code behind it.

    Args:
        parameters_type: A struct that the parameters are decoded into. Without it they are a dict, checked against
            the capability's input schema unless `check_input` is off.
    """

    capability: Capability
    handler: Callable[[Incoming], Awaitable[object]]
    parameters_type: type | None = None
    check_input: bool = True

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(self.parameters_type or dict[str, Any])

    @cached_property
    def _schema(self) -> "ParameterSchema | None":
        if self.parameters_type is not None or not self.check_input:
            return None
        # Our own agents decode into structs and never need the library behind this: 3 MB in each process.
        from amp.parameter_schema import ParameterSchema

        return ParameterSchema(self.capability.input_schema, self.capability.id)

    def parse(self, raw: bytes | msgspec.Raw) -> Any:
        """Return the parameters as the handler wants them. Raises InvalidParameters naming the place."""
        try:
            parameters = self._decoder.decode(raw)
        except msgspec.ValidationError as error:
            reason, _, place = str(error).partition(" - at `")
            raise InvalidParameters(
                f"{self.capability.id}: {str(error)[:MAX_REASON_CHARACTERS]}",
                {"path": place.rstrip("`") or "$", "reason": reason[:MAX_REASON_CHARACTERS]},
            ) from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidParameters(
                f"{self.capability.id}: {str(error)[:MAX_REASON_CHARACTERS]}", {"path": "$"}
            ) from None
        if self._schema is not None:
            self._schema.check(parameters)
        return parameters
