"""A customer of the REST API who does not give up: every order is repeated until it is answered.

What it was told is all it knows: the instances that were acknowledged. It keeps nothing else.
"""

import asyncio
from types import TracebackType
from typing import Any

import aiohttp

from tests.chaos.workload import PAUSED, STOPPED, Start

RETRY_SECONDS = 0.1
TRY_SECONDS = 15.0
PATIENCE_SECONDS = 180.0
PAUSE_SECONDS = 0.5
LATER = frozenset({408, 425, 429, 500, 502, 503, 504, 507})


class Refused(AssertionError):
    """The API refused what it must accept."""


class Customer:
    """Starts instances and gives orders about them."""

    def __init__(self, url: str) -> None:
        self.asked: dict[str, Start] = {}
        self.tries = 0
        self._url = url
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TRY_SECONDS))

    async def __aenter__(self) -> "Customer":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def serve(self, start: Start) -> str:
        """Start an instance, give the orders that belong to its workflow, and return its id."""
        instance_id = await self.start(start)
        if start.workflow_id == PAUSED:
            await self.order(instance_id, "pause", duration=PAUSE_SECONDS)
            await self.order(instance_id, "resume")
        elif start.workflow_id == STOPPED:
            await self.order(instance_id, "stop")
        return instance_id

    async def start(self, start: Start) -> str:
        """Return the id of the instance, once it is acknowledged."""
        status, body = await self._post(
            f"/api/workflows/{start.workflow_id}/start",
            {"inputs": {"n": start.n}},
            {"Idempotency-Key": start.key},
        )
        if status != 201:
            raise Refused(f"the start {start} was answered with {status} {body}")
        instance_id = str(body["instance_id"])
        known = self.asked.setdefault(instance_id, start)
        if known != start:
            raise Refused(f"{instance_id} is the answer to {known} and to {start}")
        return instance_id

    async def order(self, instance_id: str, what: str, **more: Any) -> int:
        """Give an order, and return the status of its answer: 202, or 409 when the instance has ended."""
        status, body = await self._post(
            f"/api/workflows/{instance_id}/{what}", {"reason": "test", **more}, {}
        )
        if status not in (202, 409):
            raise Refused(f"the order to {what} {instance_id} was answered with {status} {body}")
        return status

    async def _post(self, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        """Return status and body of the first answer that is not a request to come back later."""
        last: object = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    self.tries += 1
                    try:
                        async with self._session.post(self._url + path, json=body, headers=headers) as answer:
                            if answer.status not in LATER:
                                return answer.status, await answer.json(content_type=None)
                            last = answer.status, await answer.text()
                    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                        last = error
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            raise Refused(f"{path} was not answered within {PATIENCE_SECONDS:g} s; last: {last!r}") from None
