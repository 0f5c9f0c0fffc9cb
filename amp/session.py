"""What the router knows about one connection and the agent behind it, and how a registration is read. Pure."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from amp.envelope import PROTOCOL_VERSION, RESERVED_AGENT_IDS, Identifier
from amp.errors import InvalidParameters

STRANGER_FRAME_BYTES = 1024 * 1024 - 1
"""What a client reads by default; a frame for an agent that declared nothing stays below 1 MiB."""
MAX_CAPABILITIES = 512
MAX_REGISTRATION_BYTES = 512 * 1024
INVOKE = "invoke"
"""The kind of a session that lives for one synchronous HTTP call and carries no agent."""
MAX_SUBSCRIPTIONS = 256
MAX_REASON_CHARACTERS = 300
MAX_KNOWN_CHANGES = 64
"""How many of its last registrations and subscriptions a connection knows again."""

Text = Annotated[str, msgspec.Meta(max_length=4096)]


class AgentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who an agent says it is."""

    id: Identifier
    name: Text = ""
    version: Text = ""
    framework: Text = ""
    protocol_version: Text = PROTOCOL_VERSION
    session_id: Text | None = None
    tags: Annotated[list[Text], msgspec.Meta(max_length=64)] = []


class CapabilityRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A capability as an agent announced it."""

    id: Identifier
    version: Text = "1.0"
    description: Text = ""
    category: Text = ""
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] = {}
    constraints: dict[str, Any] = {}

    @property
    def free(self) -> bool:
        """Whether a request for it costs its agent no credit."""
        return self.constraints.get("credit") == 0


class SessionTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a client that knows our extensions declares about its connection, in the registration's `session`."""

    batching: bool = False
    repeats: bool = False
    """It recognises a request that is asked again, and asks again itself when no answer comes."""
    exclusive: bool = False
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    max_frame_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 30)] = STRANGER_FRAME_BYTES
    subscriptions: (
        Annotated[
            list[Annotated[str, msgspec.Meta(min_length=1, max_length=256)]],
            msgspec.Meta(max_length=MAX_SUBSCRIPTIONS),
        ]
        | None
    ) = None
    resume_token: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """A registration. The spec says `agent`, the REST registry `identity`; capabilities are objects or bare ids."""

    agent: AgentRecord | None = None
    identity: AgentRecord | None = None
    capabilities: Annotated[
        list[CapabilityRecord | Identifier], msgspec.Meta(max_length=MAX_CAPABILITIES)
    ] = []
    endpoints: dict[str, Text | None] | None = None
    authentication: Any = None
    session: SessionTerms = SessionTerms()

    @property
    def record(self) -> AgentRecord:
        """The agent's record. Raises InvalidParameters when there is none or its id is reserved."""
        record = self.agent or self.identity
        if record is None:
            raise InvalidParameters("a registration needs 'agent' with an 'id'", {"path": "$.agent"})
        if record.id in RESERVED_AGENT_IDS:
            raise InvalidParameters(f"the agent id {record.id!r} is reserved", {"path": "$.agent.id"})
        return record

    @property
    def by_id(self) -> dict[str, CapabilityRecord]:
        """The capabilities by their ids."""
        records = (CapabilityRecord(id=each) if isinstance(each, str) else each for each in self.capabilities)
        return {record.id: record for record in records}


_REGISTRATION = msgspec.json.Decoder(Registration)


def parse_registration(raw: bytes | msgspec.Raw) -> Registration:
    """Return the registration in JSON bytes. Raises InvalidParameters naming the place."""
    size = memoryview(raw).nbytes
    if size > MAX_REGISTRATION_BYTES:
        raise InvalidParameters(f"the registration has {size} bytes; the limit is {MAX_REGISTRATION_BYTES}")
    try:
        registration = _REGISTRATION.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        place = str(error).partition(" - at `")[2].rstrip("`") or "$"
        raise InvalidParameters(
            f"the registration is not valid: {str(error)[:MAX_REASON_CHARACTERS]}", {"path": place}
        ) from None
    registration.record  # noqa: B018  # raises when the agent is missing or its id is reserved
    return registration


@dataclass(slots=True, eq=False, kw_only=True)
class Session:
    """One connection to the router, or one poller of the HTTP binding.

    `pinned_agent_id` is the identity that a token or the URL fixed. `in_flight` counts requests that cost credit;
    `assigned` holds the keys of everything the agent has not answered yet, `changes` the ids of the messages that
    changed what it registered.
    """

    key: int
    kind: str
    pinned_agent_id: str | None = None
    agent_id: str | None = None
    record: AgentRecord | None = None
    capabilities: dict[str, CapabilityRecord] = field(default_factory=dict)
    free_capabilities: frozenset[str] = frozenset()
    endpoints: dict[str, str | None] = field(default_factory=dict)
    terms: SessionTerms = field(default_factory=SessionTerms)
    registered: bool = False
    draining: bool = False
    lagging: bool = False
    subscriptions: tuple[str, ...] | None = None
    in_flight: int = 0
    requested: int = 0
    last_used: int = 0
    joined_at: str = ""
    health: dict[str, Any] = field(default_factory=dict)
    assigned: dict[tuple[str, str], None] = field(default_factory=dict)
    changes: dict[str, None] = field(default_factory=dict)

    def knows_change(self, message_id: str) -> bool:
        """Return whether a change of the registration was made before, so that a repeat undoes no later one."""
        return message_id in self.changes

    def note_change(self, message_id: str) -> None:
        """Remember that a change was made."""
        self.changes[message_id] = None
        if len(self.changes) > MAX_KNOWN_CHANGES:
            del self.changes[next(iter(self.changes))]

    @property
    def has_credit(self) -> bool:
        """Whether another request that costs credit may be sent to the agent."""
        limit = self.terms.max_in_flight
        return limit is None or self.in_flight < limit

    @property
    def load(self) -> float:
        """How full the agent is, 0 is idle. Agents without a limit compare by what they have in hand."""
        return self.in_flight / (self.terms.max_in_flight or 64)
