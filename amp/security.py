"""Who may speak, and whether a message is what its sender signed.

API keys and JSON Web Tokens (HS256 only) fix who a connection belongs to. Signatures are HMAC-SHA256 over the message
as sorted JSON. Secrets are compared in constant time and never appear in an error or a log.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from amp.errors import AuthenticationFailed, LocalProtocolError

DEFAULT_SIGNING_KEY = "default-key"
"""What a reference client signs with when it has no key."""
MIN_JWT_SECRET_BYTES = 32
MAX_TOKEN_CHARACTERS = 8192
MAX_TOKEN_LIFE = timedelta(hours=12)
FRESHNESS = timedelta(minutes=5)
ALGORITHM = "HMAC-SHA256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What the router accepts. Without any, everybody on this machine may join.

    Args:
        api_keys: Keys, each with the agent it is bound to, or None when it may speak for any.
        jwt_secret: The secret of HS256 tokens, at least 32 bytes. Their claim `agent_id` (or `sub`) is the agent.
    """

    api_keys: Mapping[str, str | None] = field(default_factory=dict)
    jwt_secret: str | None = None

    def __post_init__(self) -> None:
        if self.jwt_secret is not None and len(self.jwt_secret.encode()) < MIN_JWT_SECRET_BYTES:
            raise LocalProtocolError(f"the JWT secret needs at least {MIN_JWT_SECRET_BYTES} bytes")
        if "" in self.api_keys:
            raise LocalProtocolError("an API key cannot be empty")

    @property
    def required(self) -> bool:
        """Whether a client must prove who it is."""
        return bool(self.api_keys) or self.jwt_secret is not None

    @property
    def signing_keys(self) -> list[str]:
        """The keys that signatures are tried with."""
        return [*self.api_keys, DEFAULT_SIGNING_KEY]

    def identify(self, authorization: str | None, now: datetime) -> str | None:
        """Return the agent that an `Authorization` header is bound to, or None when it may speak for any.

        Raises: AuthenticationFailed when credentials are required and these are not good.
        """
        if not self.required:
            return None
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not 0 < len(token) <= MAX_TOKEN_CHARACTERS:
            raise AuthenticationFailed("send 'Authorization: Bearer <api key or token>'")
        found: list[str | None] = [
            agent_id
            for key, agent_id in self.api_keys.items()
            if hmac.compare_digest(key.encode(), token.encode("utf-8", "surrogatepass"))
        ]
        if found:
            return found[0]
        if self.jwt_secret is not None and token.count(".") == 2:
            return agent_of_token(token, self.jwt_secret, now)
        raise AuthenticationFailed("the API key is not known here")


def agent_of_token(token: str, secret: str, now: datetime) -> str:
    """Return the agent id of a JSON Web Token. Raises AuthenticationFailed for everything that is not exactly right."""
    head, body, signature = token.split(".")
    expected = hmac.new(secret.encode(), f"{head}.{body}".encode("ascii", "replace"), hashlib.sha256).digest()
    header, claims = _token_part(head), _token_part(body)
    if header.get("alg") != "HS256" or set(header) - {"alg", "typ"}:
        raise AuthenticationFailed("the token must be signed with HS256 and carry no other header than 'typ'")
    if not hmac.compare_digest(_base64url(signature), expected):
        raise AuthenticationFailed("the token's signature is wrong")
    expires_at, issued_at, starts_at = (_time_claim(claims, name) for name in ("exp", "iat", "nbf"))
    seconds = now.timestamp()
    if expires_at is None or issued_at is None:
        raise AuthenticationFailed("the token needs the claims 'exp' and 'iat'")
    if not (starts_at or 0) <= seconds < expires_at or issued_at > seconds + FRESHNESS.total_seconds():
        raise AuthenticationFailed("the token is not valid now")
    if expires_at - issued_at > MAX_TOKEN_LIFE.total_seconds():
        raise AuthenticationFailed(f"the token lives longer than {MAX_TOKEN_LIFE}")
    agent_id = claims.get("agent_id") or claims.get("sub")
    if not isinstance(agent_id, str) or not agent_id:
        raise AuthenticationFailed("the token names no agent: claim 'agent_id' or 'sub'")
    return agent_id


def _time_claim(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _token_part(text: str) -> dict[str, Any]:
    try:
        value = json.loads(_base64url(text))
    except (ValueError, RecursionError):
        raise AuthenticationFailed("the token cannot be read") from None
    if not isinstance(value, dict):
        raise AuthenticationFailed("the token cannot be read")
    return value


def _base64url(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise AuthenticationFailed("the token cannot be read") from None


# --- signatures ---------------------------------------------------------------------------------------------


def sign(message: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return the value of `headers.signature` for a message, over the bytes without that header."""
    return {"algorithm": ALGORITHM, "value": _digest(_with_signature(message, keep_null=False), key).hex()}


def check_signature(message: Mapping[str, Any], keys: Iterable[str], now: datetime) -> None:
    """Raise AuthenticationFailed unless the signature is absent, or good and fresh.

    The reference client signs with `"signature": null` in the bytes and verifies without it; both forms are good
    here, in hex or in base64.
    """
    headers = message.get("headers")
    signature = headers.get("signature") if isinstance(headers, dict) else None
    if not signature:
        return
    value = signature.get("value") if isinstance(signature, dict) else signature
    if not isinstance(value, str) or not value:
        raise AuthenticationFailed("headers.signature needs 'algorithm' and 'value'")
    forms = [_with_signature(message, keep_null=keep) for keep in (True, False)]
    digests = [_digest(form, key) for key in keys for form in forms]
    given = value.encode("utf-8", "surrogatepass")
    texts = [text for each in digests for text in (each.hex().encode(), base64.b64encode(each))]
    if not any(hmac.compare_digest(given, text) for text in texts):
        raise AuthenticationFailed("the message's signature is wrong", {"reason": "bad_signature"})
    _check_fresh(message.get("timestamp"), now)


def _with_signature(message: Mapping[str, Any], *, keep_null: bool) -> dict[str, Any]:
    headers = {key: value for key, value in dict(message.get("headers") or {}).items() if key != "signature"}
    if keep_null:
        headers["signature"] = None
    return {**message, "headers": headers}


def _digest(message: Mapping[str, Any], key: str) -> bytes:
    return hmac.new(key.encode(), json.dumps(message, sort_keys=True).encode(), hashlib.sha256).digest()


def _check_fresh(timestamp: Any, now: datetime) -> None:
    """Refuse a signed message from another time: it may be a replay."""
    try:
        if isinstance(timestamp, str):
            said = datetime.fromisoformat(timestamp)
            said = said if said.tzinfo else said.replace(tzinfo=UTC)
        else:
            said = datetime.fromtimestamp(float(timestamp), UTC)
    except (ValueError, TypeError, OverflowError, OSError):
        raise AuthenticationFailed(
            "a signed message needs a timestamp in ISO 8601 or epoch seconds"
        ) from None
    if abs(said - now) > FRESHNESS:
        raise AuthenticationFailed(f"the signed message is not from within {FRESHNESS}", {"reason": "stale"})


def is_loopback(host: str) -> bool:
    """Return whether a host name or address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
