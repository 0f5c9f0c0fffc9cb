"""What the router is told to do, as values. `Routing` returns them, the router's shell performs them in order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from amp.envelope import ROUTER_ID, Envelope, MessageType
from amp.errors import AmpError
from amp.session import Session


@dataclass(slots=True)
class Forward:
    """Send an envelope on to one session."""

    session: Session
    envelope: Envelope


@dataclass(slots=True)
class Fanout:
    """Send an event on to many sessions; it may be dropped for those that cannot keep up."""

    sessions: Iterable[Session]
    envelope: Envelope


@dataclass(slots=True, kw_only=True)
class Tell:
    """Send a message of the router's own: an error, a response or an event."""

    session: Session
    type: MessageType
    payload: Mapping[str, Any] | AmpError
    correlation_id: str | None = None
    source_id: str = ROUTER_ID


@dataclass(slots=True)
class Announce:
    """Send an event of the router's own to the sessions that subscribed to it."""

    sessions: tuple[Session, ...]
    payload: Mapping[str, Any]


@dataclass(slots=True)
class Close:
    """End a session's connection."""

    session: Session
    code: int
    reason: str


Action = Forward | Fanout | Tell | Announce | Close
