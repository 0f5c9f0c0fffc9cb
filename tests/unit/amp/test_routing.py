"""The router's decisions, as values: no loop, no clock."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from amp.actions import Action, Announce, Close, Fanout, Forward, Tell
from amp.envelope import PROTOCOL, Destination, Envelope, Headers, Message, Source
from amp.errors import AmpError
from amp.routing import REPLY_GRACE_MS, Routing, RoutingLimits
from amp.session import Session, SessionTerms

AT = datetime(2026, 1, 1, tzinfo=UTC)
_keys = count(1)
_ids = count(1)


def make_envelope(
    agent_id: str,
    kind: str = "request",
    payload: object = None,
    *,
    to: str | None = None,
    capability: str | None = None,
    message_id: str | None = None,
    hints: dict[str, Any] | None = None,
    **headers: Any,
) -> Envelope:
    body = payload if payload is not None else {"capability": capability, "parameters": {}}
    message = Message(
        id=message_id or f"m{next(_ids)}",
        type=kind,
        timestamp="2026-01-01T00:00:00Z",
        source=Source(agent_id),
        destination=Destination(agent_id=to, capability=capability, routing_hints=hints),
        headers=Headers(**headers),
        payload=msgspec.Raw(msgspec.json.encode(body)),
    )
    return Envelope(PROTOCOL, message)


class Mesh:
    """A routing with shorthands."""

    def __init__(self, **limits: int) -> None:
        self.routing = Routing(RoutingLimits(**limits))
        self.now_ms = 0.0

    def connect(self, kind: str = "memory") -> Session:
        session = Session(key=next(_keys), kind=kind)
        self.routing.attach(session)
        return session

    def send(self, session: Session, envelope: Envelope) -> list[Action]:
        return self.routing.handle(session, envelope, self.now_ms, AT)

    def register(self, agent_id: str, *capabilities: str | dict[str, Any], **terms: Any) -> Session:
        session = self.connect()
        (answer,) = [
            each
            for each in self.reregister(session, agent_id, *capabilities, **terms)
            if isinstance(each, Tell)
        ]
        assert answer.type == "response", answer
        return session

    def reregister(
        self, session: Session, agent_id: str, *capabilities: str | dict[str, Any], **terms: Any
    ) -> list[Action]:
        payload = {"agent": {"id": agent_id}, "capabilities": capabilities, "session": terms}
        return self.send(
            session, make_envelope(agent_id, payload=payload, to="registry", capability="registration")
        )

    def answer(self, session: Session, request: Envelope, kind: str = "response") -> list[Action]:
        payload: dict[str, Any] = {"status": "success", "result": {}}
        if kind == "error":
            payload = {"error": {"code": "X", "message": "x"}}
        return self.send(
            session,
            make_envelope(
                session.agent_id or "",
                kind,
                payload,
                to=request.message.source.agent_id,
                correlation_id=request.message.id,
            ),
        )


def code_of(actions: Sequence[Action]) -> str:
    (error,) = [
        each.payload for each in actions if isinstance(each, Tell) and isinstance(each.payload, AmpError)
    ]
    assert isinstance(error, AmpError)
    return error.code


def receiver_of(actions: Sequence[Action]) -> str | None:
    (forward,) = [each for each in actions if isinstance(each, Forward)]
    return forward.session.agent_id


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.mark.parametrize(
    ("to", "capability", "expected"),
    [
        (None, "cut", "cutter"),
        ("cutter", "cut", "cutter"),
        ("cutter", None, "cutter"),
        ("plain", "anything", "plain"),
        ("nobody", "cut", "AGENT_NOT_FOUND"),
        (None, "fly", "CAPABILITY_NOT_FOUND"),
        ("cutter", "fly", "CAPABILITY_NOT_FOUND"),
        (None, None, "INVALID_SCHEMA"),
        ("registry", "fly", "CAPABILITY_NOT_FOUND"),
    ],
)
def test_request_goes_where_it_is_addressed(
    mesh: Mesh, to: str | None, capability: str | None, expected: str
) -> None:
    mesh.register("cutter", "cut", {"id": "sew", "version": "2.0"})
    mesh.register("plain")
    asker = mesh.register("asker")
    actions = mesh.send(asker, make_envelope("asker", to=to, capability=capability))
    assert (receiver_of(actions) if expected in ("cutter", "plain") else code_of(actions)) == expected


def test_capability_in_the_payload_alone_is_enough(mesh: Mesh) -> None:
    mesh.register("cutter", "cut")
    asker = mesh.register("asker")
    assert receiver_of(mesh.send(asker, make_envelope("asker", payload={"capability": "cut"}))) == "cutter"
    assert code_of(mesh.send(asker, make_envelope("asker", payload={"capability": 5}))) == "INVALID_SCHEMA"


def test_least_loaded_agent_gets_the_request_and_a_preference_wins(mesh: Mesh) -> None:
    mesh.register("one", "cut", max_in_flight=2)
    mesh.register("two", "cut", max_in_flight=2)
    asker = mesh.register("asker")
    got = [
        receiver_of(mesh.send(asker, make_envelope("asker", capability="cut", hints={"prefer": prefer})))
        for prefer in ("two", None, "two", None)
    ]
    assert got == ["two", "one", "two", "one"]


def test_request_without_credit_waits_and_leaves_by_priority_then_age(mesh: Mesh) -> None:
    worker = mesh.register("worker", "cut", max_in_flight=1)
    asker = mesh.register("asker")
    first = make_envelope("asker", capability="cut")
    mesh.send(asker, first)
    waiting = [make_envelope("asker", capability="cut", priority=priority) for priority in (5, 1, 10, 5)]
    assert [mesh.send(asker, each) for each in waiting] == [[], [], [], []]
    order = []
    current = first
    for _ in waiting:
        forwards = [each for each in mesh.answer(worker, current) if isinstance(each, Forward)]
        current = forwards[-1].envelope
        order.append(waiting.index(next(each for each in waiting if each.message.id == current.message.id)))
    assert order == [2, 0, 3, 1]
    assert mesh.routing.queues.count == 0


def test_free_request_passes_a_busy_agent(mesh: Mesh) -> None:
    mesh.register("worker", "cut", {"id": "stop", "constraints": {"credit": 0}}, max_in_flight=1)
    asker = mesh.register("asker")
    mesh.send(asker, make_envelope("asker", capability="cut"))
    assert mesh.send(asker, make_envelope("asker", capability="cut")) == []
    assert receiver_of(mesh.send(asker, make_envelope("asker", capability="stop"))) == "worker"


def test_full_queue_refuses_with_a_time_to_come_back() -> None:
    mesh = Mesh(max_queued_requests=2)
    mesh.register("worker", "cut", max_in_flight=1)
    asker = mesh.register("asker")
    actions = [mesh.send(asker, make_envelope("asker", capability="cut")) for _ in range(4)]
    assert code_of(actions[3]) == "INSUFFICIENT_RESOURCES"
    (tell,) = actions[3]
    assert isinstance(tell, Tell)
    assert isinstance(tell.payload, AmpError)
    assert tell.payload.details["retry_after_ms"] > 0


def test_queued_request_times_out_a_little_before_its_sender_gives_up(mesh: Mesh) -> None:
    mesh.register("worker", "cut", max_in_flight=1)
    asker = mesh.register("asker")
    mesh.send(asker, make_envelope("asker", capability="cut"))
    mesh.send(asker, make_envelope("asker", capability="cut", timeout_ms=1000))
    assert mesh.routing.expire(850) == []
    due = mesh.routing.next_deadline_ms()
    assert due is not None
    assert 850 < due < 1000
    assert code_of(mesh.routing.expire(due)) == "TIMEOUT"


def test_a_request_may_wait_in_the_queue_for_less_time_than_for_its_answer(mesh: Mesh) -> None:
    worker = mesh.register("worker", "cut", max_in_flight=1)
    asker = mesh.register("asker")
    first = make_envelope("asker", capability="cut", timeout_ms=60_000)
    mesh.send(asker, first)
    mesh.send(asker, make_envelope("asker", capability="cut", timeout_ms=60_000, hints={"queue_ms": 500}))
    assert mesh.routing.expire(499) == []
    assert code_of(mesh.routing.expire(600)) == "TIMEOUT"
    mesh.send(asker, make_envelope("asker", capability="cut", timeout_ms=60_000, hints={"queue_ms": 500}))
    mesh.answer(worker, first)
    assert mesh.routing.expire(5000) == [], "an agent took it in time"


def test_agent_that_never_answers_gets_its_credit_back_after_the_grace(mesh: Mesh) -> None:
    mesh.register("worker", "cut", max_in_flight=1)
    asker = mesh.register("asker")
    mesh.send(asker, make_envelope("asker", capability="cut", timeout_ms=1000))
    mesh.send(asker, make_envelope("asker", capability="cut", timeout_ms=60_000))
    assert receiver_of(mesh.routing.expire(1000 + REPLY_GRACE_MS + 100)) == "worker"


def test_lost_agent_fails_what_it_had_and_what_only_it_could_do(mesh: Mesh) -> None:
    worker = mesh.register("worker", "cut", max_in_flight=1)
    asker = mesh.register("asker")
    for capability, to in (("cut", None), ("cut", None), ("cut", "worker")):
        mesh.send(asker, make_envelope("asker", capability=capability, to=to))
    actions = mesh.routing.detach(worker, 0)
    codes = [
        each.payload.code for each in actions if isinstance(each, Tell) and isinstance(each.payload, AmpError)
    ]
    assert codes == ["NETWORK_ERROR", "CAPABILITY_NOT_FOUND", "AGENT_NOT_FOUND"]
    assert mesh.routing.pending == {}


def test_deregistered_agent_gets_nothing_new_but_may_answer(mesh: Mesh) -> None:
    worker = mesh.register("worker", "cut")
    asker = mesh.register("asker")
    request = make_envelope("asker", capability="cut")
    mesh.send(asker, request)
    mesh.send(worker, make_envelope("worker", payload={}, to="registry", capability="deregistration"))
    assert code_of(mesh.send(asker, make_envelope("asker", capability="cut"))) == "CAPABILITY_NOT_FOUND"
    assert code_of(mesh.send(asker, make_envelope("asker", to="worker"))) == "AGENT_NOT_FOUND"
    assert receiver_of(mesh.answer(worker, request)) == "asker"
    assert mesh.routing.deregister(worker) == []


def ours(token: str = "", **terms: Any) -> dict[str, Any]:
    """Return the terms of one of our own clients, a process of its own for each token."""
    return {"repeats": True, "resume_token": token or "one", **terms}


def test_repeated_request_goes_to_the_agent_that_has_or_had_it(mesh: Mesh) -> None:
    one = mesh.register("one", "cut", **ours(max_in_flight=1))
    mesh.register("two", "cut", **ours())
    asker = mesh.register("asker", **ours())
    request = make_envelope("asker", capability="cut", hints={"prefer": "one"})
    assert receiver_of(mesh.send(asker, request)) == "one"
    assert receiver_of(mesh.send(asker, request)) == "one"
    assert one.in_flight == 1
    mesh.answer(one, request)
    other = make_envelope("asker", capability="cut", hints={"prefer": "one"})
    assert receiver_of(mesh.send(asker, other)) == "one"
    assert receiver_of(mesh.send(asker, request)) == "one"  # although it has no credit
    assert receiver_of(mesh.answer(one, request)) == "asker"


def test_repeat_of_a_queued_request_keeps_one_place(mesh: Mesh) -> None:
    one = mesh.register("one", "cut", **ours(max_in_flight=1))
    asker = mesh.register("asker", **ours())
    first, second = (make_envelope("asker", capability="cut") for _ in range(2))
    mesh.send(asker, first)
    assert mesh.send(asker, second) == []
    assert mesh.send(asker, second) == []
    forwarded = [each.envelope.message for each in mesh.answer(one, first) if isinstance(each, Forward)]
    assert [each.id for each in forwarded if each.type == "request"] == [second.message.id]
    assert (mesh.routing.queues.count, asker.requested) == (0, 1)


def test_stranger_that_knows_no_repeats_never_sees_one(mesh: Mesh) -> None:
    stranger = mesh.register("stranger", "cut")
    asker = mesh.register("asker", **ours())
    request = make_envelope("asker", capability="cut")
    assert receiver_of(mesh.send(asker, request)) == "stranger"
    assert mesh.send(asker, request) == []
    mesh.answer(stranger, request)
    assert mesh.send(asker, request) == []


def test_stranger_does_it_again_for_one_who_lost_the_answer_with_its_connection(mesh: Mesh) -> None:
    stranger = mesh.register("stranger", "cut")
    asker = mesh.register("asker", **ours())
    request = make_envelope("asker", capability="cut")
    mesh.send(asker, request)
    mesh.routing.detach(asker, 0)
    mesh.answer(stranger, request)
    assert receiver_of(mesh.send(mesh.register("asker", **ours()), request)) == "stranger"


@pytest.mark.parametrize("answered", [True, False])
def test_repeat_is_not_given_to_another_process_unless_asked_anew(mesh: Mesh, answered: bool) -> None:
    one = mesh.register("one", "cut", **ours("first"))
    asker = mesh.register("asker", **ours())
    request = make_envelope("asker", capability="cut", message_id="same")
    mesh.send(asker, request)
    if answered:
        mesh.answer(one, request)
    mesh.routing.detach(one, 0)
    mesh.register("one", "cut", **ours("second"))
    mesh.register("two", "cut", **ours())
    for _ in range(2):  # the word of the loss may be lost too
        refused = mesh.send(asker, request)
        assert code_of(refused) == "NETWORK_ERROR"
    anew = make_envelope("asker", capability="cut", message_id="same", hints={"anew": True, "prefer": "two"})
    assert receiver_of(mesh.send(asker, anew)) == "two"


def test_requester_may_repeat_with_other_content_from_a_new_connection_only(mesh: Mesh) -> None:
    mesh.register("one", "cut", **ours())
    asker = mesh.register("asker", **ours())
    first, later = (
        make_envelope(
            "asker", capability="cut", message_id="t", payload={"capability": "cut", "parameters": n}
        )
        for n in range(2)
    )
    mesh.send(asker, first)
    assert code_of(mesh.send(asker, later)) == "INVALID_SCHEMA"
    mesh.routing.detach(asker, 0)
    assert receiver_of(mesh.send(mesh.register("asker", **ours()), later)) == "one"


def test_repeated_registration_or_subscription_undoes_no_later_one(mesh: Mesh) -> None:
    session = mesh.connect()

    def register(name: str) -> Envelope:
        payload = {"agent": {"id": "one"}, "capabilities": [name], "session": {"subscriptions": [name]}}
        return make_envelope("one", payload=payload, to="registry", capability="registration")

    def subscribe(name: str) -> Envelope:
        return make_envelope("one", payload={"patterns": [name]}, to="registry", capability="subscription")

    old, new, first, second = register("old"), register("new"), subscribe("a"), subscribe("b")
    for envelope in (old, new, first, second):
        assert [each.type for each in mesh.send(session, envelope) if isinstance(each, Tell)] == ["response"]
    for envelope in (old, first):
        assert [each.type for each in mesh.send(session, envelope) if isinstance(each, Tell)] == ["response"]
    assert (set(session.capabilities), session.subscriptions) == ({"new"}, ("b",))


def test_message_id_cannot_be_used_for_another_request(mesh: Mesh) -> None:
    worker = mesh.register("worker", "cut")
    asker = mesh.register("asker")
    request = make_envelope("asker", capability="cut", message_id="same")
    other = make_envelope(
        "asker", capability="cut", message_id="same", payload={"capability": "cut", "parameters": 1}
    )
    mesh.send(asker, request)
    assert code_of(mesh.send(asker, other)) == "INVALID_SCHEMA"
    mesh.answer(worker, request)
    assert code_of(mesh.send(asker, other)) == "INVALID_SCHEMA"


def test_reply_of_somebody_else_is_dropped(mesh: Mesh) -> None:
    worker = mesh.register("worker", "cut")
    thief = mesh.register("thief")
    asker = mesh.register("asker")
    request = make_envelope("asker", capability="cut")
    mesh.send(asker, request)
    assert mesh.answer(thief, request) == []
    assert receiver_of(mesh.answer(worker, request)) == "asker"


def test_reply_may_leave_out_who_asked(mesh: Mesh) -> None:
    worker = mesh.register("worker", "cut")
    asker = mesh.register("asker")
    request = make_envelope("asker", capability="cut")
    mesh.send(asker, request)
    reply = make_envelope("worker", "response", {"status": "success"}, correlation_id=request.message.id)
    assert receiver_of(mesh.send(worker, reply)) == "asker"


def test_reply_that_this_router_never_saw_asked_is_passed_on(mesh: Mesh) -> None:
    worker = mesh.register("worker")
    mesh.register("asker")
    reply = make_envelope("worker", "response", {"status": "success"}, to="asker", correlation_id="old")
    assert receiver_of(mesh.send(worker, reply)) == "asker"
    assert mesh.send(worker, make_envelope("worker", "response", {}, to="gone", correlation_id="old")) == []


@pytest.mark.parametrize(
    ("kind", "payload", "headers"),
    [
        ("response", {"status": "success"}, {}),
        ("error", {"error": "text"}, {"correlation_id": "x"}),
        ("event", {}, {}),
        ("event", {"event_type": 4}, {}),
        ("event", {"event_type": "x" * 257}, {}),
        ("request", {"capability": "x" * 257}, {}),
    ],
)
def test_message_with_a_wrong_payload_is_refused(
    mesh: Mesh, kind: str, payload: dict[str, Any], headers: dict[str, Any]
) -> None:
    agent = mesh.register("agent")
    assert code_of(mesh.send(agent, make_envelope("agent", kind, payload, **headers))) == "INVALID_SCHEMA"


def test_events_go_to_subscribers_and_to_those_who_never_subscribe(mesh: Mesh) -> None:
    mesh.register("subscriber", subscriptions=["log.*"])
    mesh.register("other", subscriptions=["news"])
    mesh.register("stranger")
    sender = mesh.register("sender")

    def hears(hints: dict[str, Any] | None = None, **where: Any) -> set[str | None]:
        envelope = make_envelope("sender", "event", {"event_type": "log.advanced"}, hints=hints, **where)
        fanouts = [each for each in mesh.send(sender, envelope) if isinstance(each, Fanout)]
        return {session.agent_id for each in fanouts for session in each.sessions}

    assert hears() == {"subscriber", "stranger"}
    assert hears({"subscribers_only": True}) == {"subscriber"}
    assert hears(to="other") == {"other"}
    mesh.routing.registry.mute(mesh.routing.registry.agents["subscriber"])
    assert hears({"subscribers_only": True}) == set()
    missing = make_envelope("sender", "event", {"event_type": "x"}, to="nobody")
    assert code_of(mesh.send(sender, missing)) == "AGENT_NOT_FOUND"


def test_agents_that_come_and_go_are_announced_to_subscribers(mesh: Mesh) -> None:
    watcher = mesh.register("watcher", subscriptions=["agent.*"])
    session = mesh.connect()
    joined = [each for each in mesh.reregister(session, "new", "cut") if isinstance(each, Announce)]
    left = [each for each in mesh.routing.detach(session, 0) if isinstance(each, Announce)]
    assert [each.payload["event_type"] for each in joined + left] == ["agent.joined", "agent.left"]
    assert joined[0].sessions == (watcher,)
    assert joined[0].payload["capabilities"] == ["cut"]


def test_connection_is_held_to_its_first_identity(mesh: Mesh) -> None:
    agent = mesh.register("agent")
    assert code_of(mesh.send(agent, make_envelope("other", capability="x"))) == "AUTHENTICATION_FAILED"
    assert (
        code_of(mesh.send(mesh.connect(), make_envelope("router", capability="x"))) == "AUTHENTICATION_FAILED"
    )
    registration = make_envelope(
        "agent", payload={"agent": {"id": "b"}}, to="registry", capability="registration"
    )
    assert code_of(mesh.send(agent, registration)) == "AUTHENTICATION_FAILED"


def test_exclusive_id_is_kept_and_an_open_one_is_taken_over(mesh: Mesh) -> None:
    mesh.register("mine", exclusive=True, resume_token="t1")
    assert (
        code_of(mesh.reregister(mesh.connect(), "mine", exclusive=True, resume_token="t2"))
        == "AUTHENTICATION_FAILED"
    )
    assert (
        code_of(mesh.send(mesh.connect(), make_envelope("mine", capability="x"))) == "AUTHENTICATION_FAILED"
    )
    again = mesh.reregister(mesh.connect(), "mine", exclusive=True, resume_token="t1")
    assert any(isinstance(each, Close) for each in again)
    mesh.register("open")
    assert any(
        isinstance(each, Close) for each in mesh.send(mesh.connect(), make_envelope("open", capability="x"))
    )
    mesh.register("open2")
    assert code_of(mesh.reregister(mesh.connect(), "open2", exclusive=True)) == "AUTHENTICATION_FAILED"


def test_replacing_connection_inherits_what_is_under_way(mesh: Mesh) -> None:
    mesh.register("worker", "cut", max_in_flight=1)
    asker = mesh.register("asker")
    request = make_envelope("asker", capability="cut")
    mesh.send(asker, request)
    newer = mesh.connect()
    mesh.send(newer, make_envelope("worker", "event", {"event_type": "hello"}))
    assert receiver_of(mesh.answer(newer, request)) == "asker"
    assert newer.in_flight == 0
    assert receiver_of(mesh.send(asker, make_envelope("asker", capability="cut"))) == "worker"


def test_frames_too_large_for_their_receiver_are_refused_to_their_sender(mesh: Mesh) -> None:
    worker = mesh.register("worker", "cut", max_frame_bytes=8192)
    asker = mesh.register("asker", max_frame_bytes=8192)
    large = {"capability": "cut", "parameters": {"text": "x" * 8192}}
    assert code_of(mesh.send(asker, make_envelope("asker", payload=large))) == "INSUFFICIENT_RESOURCES"
    request = make_envelope("asker", capability="cut")
    mesh.send(asker, request)
    reply = make_envelope("worker", "response", large, to="asker", correlation_id=request.message.id)
    assert code_of(mesh.send(worker, reply)) == "INSUFFICIENT_RESOURCES"
    event = make_envelope("asker", "event", {"event_type": "x", **large}, to="worker")
    assert code_of(mesh.send(asker, event)) == "INSUFFICIENT_RESOURCES"


def test_request_that_finds_a_full_outbox_is_answered(mesh: Mesh) -> None:
    worker = mesh.register("worker", "cut")
    asker = mesh.register("asker")
    request = make_envelope("asker", capability="cut")
    mesh.send(asker, request)
    assert code_of(mesh.routing.undeliverable(worker, request, 0)) == "INSUFFICIENT_RESOURCES"
    assert mesh.routing.undeliverable(worker, request, 0) == []
    assert worker.in_flight == 0


def test_one_connection_cannot_have_too_much_under_way() -> None:
    mesh = Mesh(max_pending_per_agent=2)
    mesh.register("worker", "cut")
    asker = mesh.register("asker")
    actions = [mesh.send(asker, make_envelope("asker", capability="cut")) for _ in range(3)]
    assert code_of(actions[2]) == "RATE_LIMIT_EXCEEDED"


def test_credentials_and_signature_are_not_passed_on(mesh: Mesh) -> None:
    mesh.register("worker", "cut")
    asker = mesh.register("asker")
    envelope = make_envelope(
        "asker",
        capability="cut",
        authentication={"token": "s"},
        signature={"value": "x"},
        hints={"prefer": "worker"},
    )
    (forward,) = mesh.send(asker, envelope)
    assert isinstance(forward, Forward)
    headers = forward.envelope.message.headers
    assert (headers.authentication, headers.signature) == (None, None)
    assert forward.envelope.message.destination.routing_hints is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["asker", "cutter", "tailor"]),
        ({"capabilities": ["cut"]}, ["cutter", "tailor"]),
        ({"capabilities": ["cut", "sew"]}, ["tailor"]),
        ({"capability_pattern": "se*"}, ["tailor"]),
        ({"framework": "f"}, []),
        ({"tags": ["t"]}, []),
        ({"constraints": {"max_latency_ms": 5}}, ["asker", "cutter"]),
        ({"performance_requirements": {"min_success_rate": 0.5}}, ["asker", "tailor"]),
        ({"input_compatible_with": {"properties": {"cloth": {}}}}, ["cutter", "tailor"]),
        ({"input_compatible_with": ["paper"]}, ["tailor"]),
        ({"input_compatible_with": "cloth", "capabilities": ["cut"]}, ["cutter", "tailor"]),
        ({"input_compatible_with": 5}, []),
        ({"output_includes": ["pieces"]}, ["cutter"]),
        ({"output_includes": "pieces"}, ["cutter"]),
    ],
)
def test_discovery_finds_who_fits(mesh: Mesh, query: dict[str, Any], expected: list[str]) -> None:
    cut = {
        "id": "cut",
        "input_schema": {"required": ["cloth"], "properties": {"cloth": {}}},
        "output_schema": {"properties": {"pieces": {}}},
    }
    cutter = mesh.register("cutter", cut)
    cutter.health.update({"success_rate": 0.1, "response_time_avg": 2})
    mesh.register("tailor", "sew", {"id": "cut", "constraints": {"response_time_ms": 10}})
    asker = mesh.register("asker")
    for payload in ({"query": query}, {"capability": "discovery", "parameters": {"query": query}}):
        (tell,) = mesh.send(
            asker, make_envelope("asker", payload=payload, to="registry", capability="discovery")
        )
        assert isinstance(tell, Tell)
        assert not isinstance(tell.payload, AmpError)
        found = [each["identity"]["id"] for each in tell.payload["result"]["agents"]]
        assert [each for each in found if each != "asker" or "asker" in expected] == expected


def ask_traffic(mesh: Mesh, asker: Session, name: str, **query: Any) -> Any:
    (tell,) = mesh.send(asker, make_envelope(name, payload=query, to="registry", capability="traffic"))
    assert isinstance(tell, Tell)
    assert not isinstance(tell.payload, AmpError)
    return tell.payload["result"]


def test_traffic_tells_a_requester_where_its_requests_are(mesh: Mesh) -> None:
    mesh.register("cutter", "cut", max_in_flight=1)
    asker, other = mesh.register("asker"), mesh.register("other")
    mesh.send(asker, make_envelope("asker", capability="cut", message_id="first"))
    mesh.send(asker, make_envelope("asker", capability="cut", message_id="second"))
    mesh.send(asker, make_envelope("asker", capability="cut", message_id="urgent", priority=9))
    ids = ["first", "second", "urgent", "unknown"]
    found = ask_traffic(mesh, asker, "asker", capabilities=["cut", "fly"], requests=ids)
    assert found["capabilities"] == {
        "cut": {"agents": [{"id": "cutter", "in_flight": 1, "max_in_flight": 1}], "queued": 2},
        "fly": {"agents": [], "queued": 0},
    }
    assert found["requests"] == {
        "first": {"state": "assigned", "agent_id": "cutter"},
        "second": {"state": "queued", "place": 2, "of": 2},
        "urgent": {"state": "queued", "place": 1, "of": 2},
    }
    assert ask_traffic(mesh, other, "other", requests=ids)["requests"] == {}


@pytest.mark.parametrize(
    ("constraint", "preferred", "expected"),
    [
        ("", None, {"one", "two"}),
        (">=1.0.0 <2.0.0", None, {"one"}),
        ("^2.0", None, {"two"}),
        ("~1.4", None, {"one"}),
        ("!=1.4.0", None, {"two"}),
        (">1.4, <=2.1.0", None, {"two"}),
        ("=1.4.0", None, {"one"}),
        (">=1.0", "2.1", {"two"}),
        (">=1.0", "9.0", {"one", "two"}),
        (">=3", None, "CAPABILITY_NOT_FOUND"),
        ("about 2", None, "INVALID_PARAMETERS"),
    ],
)
def test_version_constraints_choose(
    mesh: Mesh, constraint: str, preferred: str | None, expected: Any
) -> None:
    mesh.register("one", {"id": "cut", "version": "1.4.0"})
    mesh.register("two", {"id": "cut", "version": "2.1"})
    asker = mesh.register("asker")
    wanted = {"id": "cut", "version_constraint": constraint, "preferred_version": preferred}
    payload = {"capability_request": wanted}
    (tell,) = mesh.send(asker, make_envelope("asker", payload=payload, to="registry"))
    assert isinstance(tell, Tell)
    if isinstance(tell.payload, AmpError):
        assert tell.payload.code == expected
    else:
        assert {each["agent_id"] for each in tell.payload["result"]["agents"]} == expected
    routed = mesh.send(asker, make_envelope("asker", payload=payload))
    if isinstance(expected, str):
        assert code_of(routed) == expected
    else:
        assert receiver_of(routed) in expected


@pytest.mark.parametrize(
    ("requirements", "accepted"),
    [
        ({"capabilities": ["cut"]}, True),
        ({"capabilities": ["cut"], "estimated_tokens": 50}, True),
        ({"capabilities": ["cut"], "estimated_tokens": 500}, False),
        ({"capabilities": ["cut"], "deadline": "2025-01-01T00:00:00"}, False),
        ({"capabilities": ["cut"], "deadline": "2027-01-01T00:00:00Z"}, True),
        ({"capabilities": ["fly"]}, False),
    ],
)
@pytest.mark.parametrize("to", ["registry", "cutter"])
def test_negotiation_says_what_can_be_had(
    mesh: Mesh, requirements: dict[str, Any], accepted: bool, to: str
) -> None:
    mesh.register("cutter", {"id": "cut", "constraints": {"max_tokens": 100}})
    asker = mesh.register("asker")
    payload = {"negotiation_type": "capability_check", "requirements": requirements}
    (tell,) = mesh.send(asker, make_envelope("asker", payload=payload, to=to))
    assert isinstance(tell, Tell)
    assert not isinstance(tell.payload, AmpError)
    assert tell.payload["result"]["accepted"] is accepted


def test_negotiation_with_a_wrong_deadline_or_agent_is_refused(mesh: Mesh) -> None:
    asker = mesh.register("asker")
    payload = {"negotiation_type": "capability_check", "requirements": {"deadline": "soon"}}
    assert (
        code_of(mesh.send(asker, make_envelope("asker", payload=payload, to="registry")))
        == "INVALID_PARAMETERS"
    )
    assert (
        code_of(mesh.send(asker, make_envelope("asker", payload=payload, to="nobody"))) == "AGENT_NOT_FOUND"
    )


@pytest.mark.parametrize(
    ("capability", "payload"),
    [
        ("registration", {"agent": {"id": ""}}),
        ("registration", {"capabilities": []}),
        ("registration", {"agent": {"id": "asker"}, "endpoints": {"invoke": "x" * 600_000}}),
        ("registration", {"agent": {"id": "registry"}}),
        ("registration", {"agent": {"id": "asker"}, "capabilities": [7]}),
        ("subscription", {}),
        ("subscription", {"patterns": "all"}),
        ("discovery", {"query": {"capabilities": 5}}),
        ("discovery", {"capability": "discovery", "parameters": {"capabilities": 5}}),
        ("versions", {}),
        ("discovery", {"capability": 5, "parameters": 5}),
    ],
)
def test_registry_refuses_wrong_parameters(mesh: Mesh, capability: str, payload: dict[str, Any]) -> None:
    asker = mesh.register("asker")
    actions = mesh.send(asker, make_envelope("asker", payload=payload, to="registry", capability=capability))
    assert code_of(actions) == "INVALID_PARAMETERS"


def test_call_without_a_connection_cannot_speak_for_an_exclusive_agent(mesh: Mesh) -> None:
    mesh.register("mine", exclusive=True)
    call = mesh.connect("invoke")
    assert code_of(mesh.send(call, make_envelope("mine", capability="x"))) == "AUTHENTICATION_FAILED"
    registration = {"agent": {"id": "later"}, "capabilities": ["cut"]}
    mesh.send(call, make_envelope("later", payload=registration, to="registry", capability="registration"))
    session = mesh.connect()
    mesh.send(session, make_envelope("later", "event", {"event_type": "x"}))
    assert set(session.capabilities) == {"cut"}


class RoutingMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the tables stay consistent and everything is answered once."""

    def __init__(self) -> None:
        super().__init__()
        self.mesh = Mesh(max_queued_requests=5)
        self.sessions: dict[str, Session] = {}
        self.in_hand: list[tuple[Session, Envelope]] = []
        self.open: set[str] = set()
        self.asker = self.mesh.register("asker", max_frame_bytes=1 << 20)

    def note(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Forward) and action.envelope.message.type == "request":
                self.in_hand.append((action.session, action.envelope))
            elif isinstance(action, Forward):
                self.open.remove(action.envelope.message.headers.correlation_id or "")
            elif isinstance(action, Tell) and action.session is self.asker:
                self.open.remove(action.correlation_id or "")

    @rule(name=st.sampled_from(["a", "b", "c"]), limit=st.integers(1, 2))
    def join(self, name: str, limit: int) -> None:
        if name not in self.sessions:
            session = self.sessions[name] = self.mesh.connect()
            actions = self.mesh.reregister(session, name, "cut", max_in_flight=limit)
            self.note([each for each in actions if not (isinstance(each, Tell) and each.session is session)])

    @rule(name=st.sampled_from(["a", "b", "c"]))
    def leave(self, name: str) -> None:
        session = self.sessions.pop(name, None)
        if session is not None:
            self.in_hand = [each for each in self.in_hand if each[0] is not session]
            self.note(self.mesh.routing.detach(session, self.mesh.now_ms))

    @rule(priority=st.integers(1, 10), to=st.sampled_from([None, "a", "b"]))
    def ask(self, priority: int, to: str | None) -> None:
        envelope = make_envelope("asker", capability="cut", to=to, priority=priority, timeout_ms=1000)
        self.open.add(envelope.message.id)
        self.note(self.mesh.send(self.asker, envelope))

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        if self.in_hand:
            session, envelope = self.in_hand.pop(data.draw(st.integers(0, len(self.in_hand) - 1)))
            self.note(self.mesh.answer(session, envelope))

    @invariant()
    def credit_is_never_exceeded_and_always_right(self) -> None:
        for session in self.sessions.values():
            assert session.terms.max_in_flight is not None
            assert 0 <= session.in_flight <= session.terms.max_in_flight
            assert session.in_flight == sum(1 for holder, _ in self.in_hand if holder is session)

    @invariant()
    def every_open_request_is_in_one_place(self) -> None:
        routing = self.mesh.routing
        assert {key[1] for key in routing.pending} == self.open
        assert routing.queues.count + len(self.in_hand) == len(self.open)
        assert self.asker.requested == len(self.open)

    @invariant()
    def nobody_waits_beside_free_credit(self) -> None:
        if self.mesh.routing.queues.depth(("capability", "cut")):
            assert not any(session.has_credit for session in self.sessions.values())


RoutingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRoutingMachine = RoutingMachine.TestCase


def test_default_terms_are_those_of_a_stranger() -> None:
    terms = SessionTerms()
    assert not terms.batching
    assert terms.max_frame_bytes < 1024 * 1024
