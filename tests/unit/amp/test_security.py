import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from amp.errors import AuthenticationFailed, LocalProtocolError
from amp.router_main import credentials_of
from amp.security import DEFAULT_SIGNING_KEY, Credentials, agent_of_token, check_signature, is_loopback, sign

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "s" * 32


def make_message(**headers: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "type": "request",
        "timestamp": NOW.isoformat(),
        "source": {"agent_id": "a"},
        "headers": headers,
        "payload": {"text": "é", "n": 1.0},
    }


def reference_signature(message: dict[str, Any], key: str) -> str:
    return hmac.new(key.encode(), json.dumps(message, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def with_signature(message: dict[str, Any], value: Any) -> dict[str, Any]:
    return {**message, "headers": {**message["headers"], "signature": value}}


def test_both_forms_of_the_reference_client_and_both_encodings_are_good() -> None:
    null_form, bare_form = make_message(signature=None), make_message()
    for signed in (null_form, bare_form):
        value = reference_signature(signed, DEFAULT_SIGNING_KEY)
        for text in (value, base64.b64encode(bytes.fromhex(value)).decode()):
            check_signature(
                with_signature(signed, {"algorithm": "x", "value": text}), [DEFAULT_SIGNING_KEY], NOW
            )
            check_signature(with_signature(signed, text), ["other", DEFAULT_SIGNING_KEY], NOW)


def test_own_signature_is_good_and_a_reference_verifier_accepts_it() -> None:
    message = make_message(priority=5)
    signature = sign(message, "key")
    assert signature["value"] == reference_signature(message, "key")
    check_signature(with_signature(message, signature), ["key"], NOW)


@pytest.mark.parametrize("signature", [None, "", {}])
def test_absent_signature_is_accepted(signature: Any) -> None:
    check_signature(with_signature(make_message(), signature), [], NOW)


@pytest.mark.parametrize("signature", [{"value": "00"}, {"value": 5}, "wrong", {"algorithm": "x"}, "\ud800"])
def test_wrong_signature_is_refused(signature: Any) -> None:
    with pytest.raises(AuthenticationFailed):
        check_signature(with_signature(make_message(), signature), ["key"], NOW)


@pytest.mark.parametrize("timestamp", ["2020-01-01T00:00:00", "soon", None, 1e300, 0])
def test_signed_message_from_another_time_is_refused(timestamp: Any) -> None:
    message = {**make_message(), "timestamp": timestamp}
    with pytest.raises(AuthenticationFailed):
        check_signature(with_signature(message, sign(message, "key")), ["key"], NOW)


@pytest.mark.parametrize("timestamp", [NOW.timestamp(), "2026-01-01T00:00:00", "2026-01-01T00:04:00Z"])
def test_signed_message_of_now_is_taken(timestamp: Any) -> None:
    message = {**make_message(), "timestamp": timestamp}
    check_signature(with_signature(message, sign(message, "key")), ["key"], NOW)


def make_token(
    claims: dict[str, Any] | None = None, header: dict[str, Any] | None = None, secret: str = SECRET
) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    seconds = NOW.timestamp()
    body = {"agent_id": "a", "iat": seconds - 1, "exp": seconds + 60, **(claims or {})}
    text = f"{part(header or {'alg': 'HS256', 'typ': 'JWT'})}.{part({k: v for k, v in body.items() if v is not None})}"
    digest = hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def test_token_names_its_agent() -> None:
    assert agent_of_token(make_token(), SECRET, NOW) == "a"
    assert agent_of_token(make_token({"agent_id": None, "sub": "b"}), SECRET, NOW) == "b"
    assert Credentials(jwt_secret=SECRET).identify(f"Bearer {make_token()}", NOW) == "a"


@pytest.mark.parametrize(
    "token",
    [
        make_token(secret="t" * 32),
        make_token(header={"alg": "none"}),
        make_token(header={"alg": "HS256", "jku": "http://x"}),
        make_token(header={"alg": "HS256", "crit": ["x"]}),
        make_token({"exp": None}),
        make_token({"iat": None}),
        make_token({"exp": NOW.timestamp() - 1}),
        make_token({"nbf": NOW.timestamp() + 60}),
        make_token({"iat": NOW.timestamp() + 3600, "exp": NOW.timestamp() + 3700}),
        make_token({"exp": NOW.timestamp() + timedelta(hours=13).total_seconds()}),
        make_token({"exp": True}),
        make_token({"agent_id": None}),
        make_token({"agent_id": 5}),
        "a.b.c",
        "e30.e30.!!!",
        f"{base64.urlsafe_b64encode(b'[1]').decode()}.e30.e30",
    ],
)
def test_token_that_is_not_exactly_right_is_refused(token: str) -> None:
    with pytest.raises(AuthenticationFailed):
        agent_of_token(token, SECRET, NOW)


@pytest.mark.parametrize(
    ("authorization", "agent_id"),
    [("Bearer free", None), ("bearer bound", "only-me"), ("Bearer  free ", None)],
)
def test_key_says_who_may_speak(authorization: str, agent_id: str | None) -> None:
    credentials = Credentials(api_keys={"free": None, "bound": "only-me"})
    assert credentials.identify(authorization, NOW) == agent_id


@pytest.mark.parametrize(
    "authorization", [None, "", "free", "Basic free", "Bearer ", "Bearer nope", "Bearer a.b.c"]
)
def test_wrong_key_is_refused(authorization: str | None) -> None:
    with pytest.raises(AuthenticationFailed):
        Credentials(api_keys={"free": None}).identify(authorization, NOW)
    assert Credentials().identify(authorization, NOW) is None


def test_weak_secrets_are_refused() -> None:
    with pytest.raises(LocalProtocolError):
        Credentials(jwt_secret="short")
    with pytest.raises(LocalProtocolError):
        Credentials(api_keys={"": None})


def test_credentials_come_from_arguments_and_environment() -> None:
    credentials = credentials_of(
        ["k1", "k2=agent"], {"AMP_MESH__API_KEY": "k3", "AMP_MESH_JWT_SECRET": SECRET}
    )
    assert credentials.api_keys == {"k1": None, "k2": "agent", "k3": None}
    assert credentials.jwt_secret == SECRET
    assert not credentials_of([], {}).required


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.2", True), ("[::1]", True), ("0.0.0.0", False), ("example.com", False)],
)
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
