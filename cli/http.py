"""The dashboard's REST API as commands use it: problems become sentences and exit codes."""

from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from cli.errors import CommandError, ExitCode

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 40.0
MAX_LISTED_ERRORS = 20
_EXIT_CODES: Mapping[int, ExitCode] = {
    400: ExitCode.USAGE,
    401: ExitCode.NOT_AUTHORISED,
    403: ExitCode.NOT_AUTHORISED,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.CONFLICT,
    412: ExitCode.CONFLICT,
    413: ExitCode.INVALID,
    422: ExitCode.INVALID,
    503: ExitCode.UNREACHABLE,
    504: ExitCode.TIMED_OUT,
}


class Server:
    """A dashboard, asked over HTTP.

    Args:
        url: Its address, such as http://localhost:8090, with a path when it is served below one.

    Raises: CommandError (usage) when the address is none.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandError(f"{url!r} is no address; write it like http://localhost:8090", ExitCode.USAGE)
        self.url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS), trust_env=False
        )

    @property
    def websocket_url(self) -> str:
        """The address of the live channel."""
        return "ws" + self.url.removeprefix("http") + "/api/ws"

    async def get(self, *path: str, **query: str | int) -> Any:
        """Return what the API answers to a GET."""
        return await self._request("GET", path, query=query)

    async def post(self, *path: str, body: object, headers: Mapping[str, str] | None = None) -> Any:
        """Return what the API answers to a POST."""
        return await self._request("POST", path, body=body, headers=headers)

    async def __aenter__(self) -> Self:
        """Return the server, to be asked inside the context."""
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def _request(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, str | int] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        url = "/".join((self.url, *(quote(part, safe="") for part in path)))
        try:
            response = await self._client.request(method, url, params=query, json=body, headers=headers)
        except httpx.TimeoutException:
            raise CommandError(f"{self.url} did not answer in time", ExitCode.UNREACHABLE) from None
        except httpx.HTTPError as error:
            raise CommandError(f"{self.url} cannot be reached: {error}", ExitCode.UNREACHABLE) from None
        if response.is_error:
            raise refusal(response)
        try:
            return response.json()
        except ValueError:
            raise CommandError(
                f"{url} answered no JSON; is it the dashboard?", ExitCode.UNREACHABLE
            ) from None


def refusal(response: httpx.Response) -> CommandError:
    """Return what a person is told about an error answer."""
    code = _EXIT_CODES.get(response.status_code, ExitCode.FAILED)
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        return CommandError(f"{response.request.url}: HTTP {response.status_code}", code)
    lines = [str(problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}")]
    listed = problem.get("errors")
    if isinstance(listed, list):
        entries = [entry for entry in listed if isinstance(entry, dict)]
        lines += [
            f"  {entry.get('pointer', '')} {entry.get('detail', '')}" for entry in entries[:MAX_LISTED_ERRORS]
        ]
    return CommandError("\n".join(lines), code)
