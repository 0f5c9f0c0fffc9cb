"""The one way out to HTTP: one request in, one bounded answer out, every address checked.

Redirects are followed here, so that each hop meets the address policy again and credentials never cross hosts.
This module must never read the environment (proxies, netrc), keep cookies, or return more bytes than the setting says.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ssl import SSLCertVerificationError

import httpcore

from agents.task_executor.errors import (
    InvalidInput,
    NotPermitted,
    ResultTooLarge,
    TaskError,
    TaskFailed,
    TimedOut,
    Unreachable,
)
from agents.task_executor.network import (
    AddressPolicy,
    AddressRefused,
    GuardedBackend,
    Resolver,
    client_tls,
    parse_allowance,
    resolve,
)
from runtime.absent import absent
from runtime.settings import HttpSettings, SettingsError

with absent("click", "rich", "pygments"):
    import httpx

MAX_URL_LENGTH = 8192
KEEP_ALIVE_SECONDS = 15.0
USER_AGENT = "amp-workflow-orchestration"
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
HEADERS_KEPT_ACROSS_HOSTS = frozenset({"accept", "accept-language", "content-type", "user-agent"})
"""Everything else a task sets may be a credential, whatever it is called."""
NEVER_SENT = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout)
"""There was no connection, so nothing of the request left."""
BODY_HEADERS = frozenset({"content-type", "content-length", "content-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request. `headers` has lower-case names."""

    method: str
    url: httpx.URL
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """The final answer after redirects, its body complete and decoded from its content coding."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: httpx.URL


def parse_url(text: str) -> httpx.URL:
    """Return the address of a request.

    Raises: InvalidInput when it is no absolute http or https URL with a host and a sound port.
    """
    if len(text) > MAX_URL_LENGTH:
        raise InvalidInput(f"url: longer than {MAX_URL_LENGTH} characters")
    if any(character <= " " or character in "\\\x7f" for character in text):
        raise InvalidInput("url: contains a space, a backslash or a control character; percent-encode it")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise InvalidInput(f"url: not a URL: {error}") from None
    if url.scheme not in ("http", "https"):
        raise InvalidInput("url: must begin with http:// or https://")
    if not url.host:
        raise InvalidInput("url: has no host")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise InvalidInput("url: the port must be from 1 to 65535")
    return url


def shown(url: httpx.URL) -> str:
    """Return the URL without what may be secret: user, password, query and fragment."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))


class _AnswerStream(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._answer.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._answer.aclose()


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx's seam to the network, over a pool whose connections the policy checked."""

    def __init__(self, settings: HttpSettings, backend: httpcore.AsyncNetworkBackend) -> None:
        self._settings = settings
        self._backend = backend

    @cached_property
    def _pool(self) -> httpcore.AsyncConnectionPool:
        """The connections. Made for the first request: the certificates that TLS trusts take 3 MB."""
        settings = self._settings
        return httpcore.AsyncConnectionPool(
            ssl_context=client_tls(verify=settings.verify_tls),
            max_connections=settings.max_connections,
            max_keepalive_connections=settings.max_connections,
            keepalive_expiry=KEEP_ALIVE_SECONDS,
            network_backend=self._backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. Raises httpcore's errors and AddressRefused."""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        answer = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_AnswerStream(answer), extensions=answer.extensions
        )

    async def aclose(self) -> None:
        """Close every connection."""
        if "_pool" in vars(self):
            await self._pool.aclose()


def address_policy(settings: HttpSettings, own_ports: Iterable[int] = ()) -> AddressPolicy:
    """Return the policy of the settings.

    Raises: SettingsError naming an entry of `allowed_networks` that cannot be read.
    """
    try:
        entries = tuple(parse_allowance(text) for text in settings.allowed_networks)
    except ValueError as error:
        raise SettingsError(f"task_executor.http.allowed_networks: {error}") from None
    return AddressPolicy(entries, frozenset(own_ports))


class HttpClient:
    """Sends requests for tasks. `close` ends it."""

    def __init__(
        self, settings: HttpSettings, *, own_ports: Iterable[int] = (), resolver: Resolver = resolve
    ) -> None:
        self._settings = settings
        backend = GuardedBackend(address_policy(settings, own_ports), resolver=resolver)
        self._client = httpx.AsyncClient(
            transport=GuardedTransport(settings, backend),
            trust_env=False,
            follow_redirects=False,
            headers={"user-agent": USER_AGENT, "accept-encoding": "identity"},
            cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        )

    async def send(self, request: HttpRequest, *, timeout_seconds: float) -> HttpAnswer:
        """Return the answer to one request, after at most `max_redirects` redirects.

        Raises: TimedOut after `timeout_seconds` in all, Unreachable, NotPermitted, ResultTooLarge, InvalidInput,
            TaskFailed for an endless redirect.
        """
        redirects: list[HttpRequest] = []
        try:
            return await self._send(request, timeout_seconds, redirects)
        except TaskError as error:
            if redirects:
                # Whoever redirected may have done the work before.
                error.details["begun"] = True
            raise

    async def _send(
        self, request: HttpRequest, timeout_seconds: float, redirects: list[HttpRequest]
    ) -> HttpAnswer:
        place = shown(request.url)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._follow(request, timeout_seconds, redirects)
        except AddressRefused as refusal:
            raise NotPermitted(str(refusal), details={"url": place}) from None
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise TimedOut(
                f"{place} did not answer within {timeout_seconds:g} seconds",
                details={"url": place, **_never_sent(error)},
            ) from None
        except (httpcore.LocalProtocolError, httpx.LocalProtocolError) as error:
            raise InvalidInput(f"the request cannot be sent: {error}", details={"url": place}) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpx.TransportError) as error:
            distrusted = _is_caused_by(error, SSLCertVerificationError)
            reason = str(error) or type(error).__name__
            raise Unreachable(
                f"{place}: {reason}",
                details={"url": place, **_never_sent(error)},
                retryable=not distrusted,
            ) from None

    async def _follow(
        self, request: HttpRequest, timeout_seconds: float, redirects: list[HttpRequest]
    ) -> HttpAnswer:
        for _ in range(self._settings.max_redirects + 1):
            answer = await self._exchange(request, timeout_seconds)
            location = answer.headers.get("location")
            if answer.status not in REDIRECT_STATUSES or not location:
                return answer
            redirects.append(request)
            request = redirected(request, answer.status, location)
        place = shown(request.url)
        raise TaskFailed(
            f"more than {self._settings.max_redirects} redirects, the last to {place}", details={"url": place}
        )

    async def _exchange(self, request: HttpRequest, timeout_seconds: float) -> HttpAnswer:
        connect_seconds = min(timeout_seconds, self._settings.connect_timeout_seconds)
        outgoing = self._client.build_request(
            request.method,
            request.url,
            headers=dict(request.headers),
            content=request.body,
            timeout=httpx.Timeout(timeout_seconds, connect=connect_seconds),
        )
        response = await self._client.send(outgoing, stream=True)
        try:
            body = await self._read(response)
        finally:
            await response.aclose()
        return HttpAnswer(status=response.status_code, headers=response.headers, body=body, url=request.url)

    async def _read(self, response: httpx.Response) -> bytes:
        limit = self._settings.max_response_bytes
        parts: list[bytes] = []
        size = 0
        async for part in response.aiter_raw():
            size += len(part)
            if size > limit:
                raise _too_large(response.request.url, limit)
            parts.append(part)
        return decoded(
            b"".join(parts), response.headers.get("content-encoding", ""), limit, response.request.url
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def decoded(body: bytes, coding: str, limit: int, url: httpx.URL) -> bytes:
    """Return the body without its content coding, inflating at most `limit` bytes.

    Raises: ResultTooLarge, and Unreachable for a coding that was not asked for or is damaged.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity") or not body:
        return body
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise Unreachable(
            f"{shown(url)} answered in the content coding {coding!r}, not asked for", retryable=False
        )
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise Unreachable(f"{shown(url)} answered with damaged {coding} data: {error}") from None
    if len(plain) > limit:
        raise _too_large(url, limit)
    return plain


def _too_large(url: httpx.URL, limit: int) -> ResultTooLarge:
    return ResultTooLarge(
        f"{shown(url)} answered with more than {limit} bytes (task_executor.http.max_response_bytes)",
        details={"url": shown(url), "limit_bytes": limit},
    )


def redirected(request: HttpRequest, status: int, location: str) -> HttpRequest:
    """Return the request that follows a redirect, without credentials when it leads to another origin.

    Raises: TaskFailed when the new address cannot be used.
    """
    try:
        url = parse_url(str(request.url.join(location)))
    except (InvalidInput, httpx.InvalidURL, ValueError) as error:
        raise TaskFailed(
            f"{shown(request.url)} redirects to an address that cannot be used: {error}"
        ) from None
    headers = dict(request.headers)
    if _origin(url) != _origin(request.url):
        url = url.copy_with(userinfo=b"")
        headers = {name: value for name, value in headers.items() if name in HEADERS_KEPT_ACROSS_HOSTS}
    elif not url.userinfo and request.url.userinfo:
        url = url.copy_with(userinfo=request.url.userinfo)
    if status == 303 or (status in (301, 302) and request.method == "POST"):
        kept = {name: value for name, value in headers.items() if name not in BODY_HEADERS}
        return HttpRequest(method="GET", url=url, headers=kept)
    return replace(request, url=url, headers=headers)


def _never_sent(error: Exception) -> dict[str, bool]:
    """Return the detail that says that nothing was sent, if this is so."""
    return {"begun": False} if isinstance(error, NEVER_SENT) else {}


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _is_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None or isinstance(seen, kind):
            break
        seen = seen.__cause__ or seen.__context__
    return isinstance(seen, kind)
