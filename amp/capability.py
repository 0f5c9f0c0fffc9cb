"""What an agent can do, as a value, and the check of a request against it. Pure: handlers are only held, not run.

Input is checked before a handler sees it: decoded straight into a struct, or checked against the capability's JSON
Schema. A schema never fetches anything: references outside itself are errors.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry

from amp.envelope import Message
from amp.errors import InvalidParameters, LocalProtocolError

MAX_REASON_CHARACTERS = 300
MAX_PROBLEMS = 20

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
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


@dataclass(frozen=True, slots=True)
class Reply:
    """A result with a status of its own or metadata. Handlers may return any other encodable object as the result."""

    result: object
    status: Status = "success"
    metadata: Mapping[str, Any] = field(default_factory=dict)


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
    def _validator(self) -> Draft202012Validator | None:
        if self.parameters_type is not None or not self.check_input:
            return None
        return compile_schema(self.capability.input_schema, self.capability.id)

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
        if self._validator is not None:
            check(parameters, self._validator, self.capability.id)
        return parameters


def compile_schema(schema: Mapping[str, Any], owner: str) -> Draft202012Validator:
    """Return a validator for a schema. Raises LocalProtocolError when the schema itself is wrong."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise LocalProtocolError(
            f"the input schema of {owner!r} is not a JSON Schema: {error.message}"
        ) from None
    return Draft202012Validator(schema, registry=Registry())


def check(value: Any, validator: Draft202012Validator, owner: str) -> None:
    """Raise InvalidParameters listing what in `value` the schema does not allow."""
    problems = []
    for problem in validator.iter_errors(value):
        problems.append({"path": problem.json_path, "reason": _reason(problem)})
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        first = problems[0]
        raise InvalidParameters(
            f"{owner}: {first['reason']} at {first['path']}", {**first, "problems": problems}
        )


def _reason(problem: ValidationError) -> str:
    return problem.message[:MAX_REASON_CHARACTERS]
