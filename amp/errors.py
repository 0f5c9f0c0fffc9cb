"""Every way the mesh can fail, as types. Pure: it never logs and never reads anything.

AmpError
├── LocalProtocolError          our own code broke the protocol
├── RemoteProtocolError         the peer broke the protocol
│   ├── InvalidSchema
│   └── UnsupportedMessageType
├── AgentNotFound, CapabilityNotFound, ContextNotFound
├── AuthenticationFailed ── AgentIdInUse
├── AuthorizationFailed, RateLimitExceeded, InsufficientResources
├── RequestTimeout
├── InvalidParameters, ValidationFailed, ExecutionError
├── NetworkError ── AgentLost, Disconnected
└── InternalError

A class carries the code that goes over the wire, its severity and whether trying again can help. Any other code
may be raised as `AmpError(code, message, details)`; it reaches the caller unchanged.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

AGENT_LOST = "agent_lost"
AGENT_ID_IN_USE = "agent_id_in_use"
CONNECTION_LOST = "connection_lost"
MAX_CODE_CHARACTERS = 128


class AmpError(Exception):
    """An error that can cross the wire: a code, a sentence, details.

    Args:
        code: One of the protocol's codes or an application's own.
        details: JSON values that help a program; never secrets.
        severity: low, medium, high or critical.
        retryable: Whether the same request can succeed later. When given, it travels in `details.retryable`.
    """

    default_code: ClassVar[str] = "INTERNAL_ERROR"
    default_severity: ClassVar[str] = "medium"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        code: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        *,
        severity: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(code, message)
        self.from_agent_id: str | None = None
        """Who sent the error, when it came over the wire."""
        self.code = code
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.severity = severity or self.default_severity
        self.retryable = self.default_retryable if retryable is None else retryable
        if retryable is not None:
            self.details["retryable"] = retryable

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class _CodedError(AmpError):
    """An error whose class fixes its code."""

    def __init__(
        self,
        message: str,
        details: Mapping[str, Any] | None = None,
        *,
        severity: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(self.default_code, message, details, severity=severity, retryable=retryable)


class LocalProtocolError(_CodedError):
    """Our own code asked the protocol for something it does not allow."""

    default_severity = "high"


class RemoteProtocolError(_CodedError):
    """The peer sent something the protocol does not allow."""

    default_code = "INVALID_SCHEMA"


class InvalidSchema(RemoteProtocolError):
    """A frame, envelope or payload has the wrong shape."""


class UnsupportedMessageType(RemoteProtocolError):
    """The message's type is none of request, response, event, error."""

    default_code = "UNSUPPORTED_MESSAGE_TYPE"


class AgentNotFound(_CodedError):
    """The addressed agent is not on the mesh."""

    default_code = "AGENT_NOT_FOUND"
    default_retryable = True


class CapabilityNotFound(_CodedError):
    """No agent offers the capability, or the addressed one does not."""

    default_code = "CAPABILITY_NOT_FOUND"
    default_retryable = True


class ContextNotFound(_CodedError):
    """The context is unknown or has expired."""

    default_code = "CONTEXT_NOT_FOUND"


class AuthenticationFailed(_CodedError):
    """Who the sender says it is cannot be believed."""

    default_code = "AUTHENTICATION_FAILED"
    default_severity = "high"


class AgentIdInUse(AuthenticationFailed):
    """A live agent already holds this id and does not share it."""


class AuthorizationFailed(_CodedError):
    """The sender is known and may not do this."""

    default_code = "AUTHORIZATION_FAILED"
    default_severity = "high"


class RateLimitExceeded(_CodedError):
    """The sender has too much under way."""

    default_code = "RATE_LIMIT_EXCEEDED"
    default_severity = "low"
    default_retryable = True


class InsufficientResources(_CodedError):
    """A bound is reached. `details.retry_after_ms` says when to come back, where that helps."""

    default_code = "INSUFFICIENT_RESOURCES"
    default_retryable = True


class RequestTimeout(_CodedError):
    """No answer arrived in time."""

    default_code = "TIMEOUT"
    default_severity = "high"
    default_retryable = True


class InvalidParameters(_CodedError):
    """The parameters do not fit the capability's input schema. `details.path` names the place."""

    default_code = "INVALID_PARAMETERS"


class ValidationFailed(_CodedError):
    """The values are well formed but not acceptable."""

    default_code = "VALIDATION_ERROR"


class ExecutionError(_CodedError):
    """The handler of the capability failed."""

    default_code = "EXECUTION_ERROR"


class NetworkError(_CodedError):
    """The mesh or a connection broke."""

    default_code = "NETWORK_ERROR"
    default_severity = "high"
    default_retryable = True


class AgentLost(NetworkError):
    """The agent that had the request disappeared; whether it did the work is unknown."""


class Disconnected(NetworkError):
    """Our own connection to the router broke or is not there. `details.sent` says whether the request had left."""


class InternalError(_CodedError):
    """A bug on the other side. It says nothing about its internals."""

    default_severity = "high"


_BY_CODE: Mapping[str, type[_CodedError]] = {
    kind.default_code: kind
    for kind in (
        InvalidSchema, UnsupportedMessageType, AgentNotFound, CapabilityNotFound, ContextNotFound,
        AuthenticationFailed, AuthorizationFailed, RateLimitExceeded, InsufficientResources, RequestTimeout,
        InvalidParameters, ValidationFailed, ExecutionError, NetworkError, InternalError,
    )
}  # fmt: skip

_BY_REASON: Mapping[tuple[str, str], type[_CodedError]] = {
    (NetworkError.default_code, AGENT_LOST): AgentLost,
    (AuthenticationFailed.default_code, AGENT_ID_IN_USE): AgentIdInUse,
}


def error_from_wire(code: str, message: str, details: Mapping[str, Any] | None) -> AmpError:
    """Return the error that a peer's `{code, message, details}` stands for, of the matching class when there is one."""
    facts = dict(details or {})
    said = facts.get("retryable")
    retryable = said if isinstance(said, bool) else None
    reason = facts.get("reason")
    kind = _BY_REASON.get((code, reason)) if isinstance(reason, str) else None
    kind = kind or _BY_CODE.get(code)
    if kind is None:
        return AmpError(code[:MAX_CODE_CHARACTERS], message, facts, retryable=retryable)
    return kind(message, facts, retryable=retryable)
