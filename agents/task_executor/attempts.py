"""Which attempts this executor has, had, or must not begin. A token runs at most once here.

A duplicate dispatch attaches to the run or gets the kept result; a cancelled token is refused. Values only: time
comes in, and the work itself belongs to the caller.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from amp.capability import Incoming
from amp.errors import AmpError, InvalidParameters
from orchestration.contracts import Attempt

MAX_TOKEN_CHARACTERS = 512
MAX_KEPT_RESULTS = 10_000
MAX_KEPT_BYTES = 64 * 1024 * 1024
KEPT_SECONDS = 600.0
"""How long a result answers duplicates; longer than any duplicate travels."""
ERROR_BYTES = 1024
"""What a kept error or cancellation is taken to weigh."""

Ending = msgspec.Raw | AmpError
"""How an attempt ended: its encoded result, or its error."""


@dataclass(slots=True)
class Run:
    """An attempt under way. `abandoned` is true when nobody who asked for it is known to listen any more.

    `done` is true when its work is over and only its ending is being kept: it cannot be stopped then.
    """

    token: str
    engine_id: str
    work: asyncio.Future[Ending]
    abandoned: bool = False
    done: bool = False
    listeners: list[asyncio.Future[Ending]] = field(default_factory=list)

    async def ending(self) -> Ending:
        """Return how it ends. Who is cancelled here stops listening, and nothing else.

        Raises: CancelledError when it was stopped without an ending.
        """
        if self.work.done():
            return self.work.result()
        listener: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.listeners.append(listener)
        return await listener

    def tell(self, ending: Ending) -> None:
        """Tell who listens how it ended."""
        for listener in self.listeners:
            if not listener.done():
                listener.set_result(ending)
        self.listeners.clear()


@dataclass(frozen=True, slots=True)
class _Kept:
    ending: Ending
    until: float
    weight: int


@dataclass(slots=True)
class Attempts:
    """The attempts by token. The first three fields bound what is remembered of finished ones."""

    max_results: int = MAX_KEPT_RESULTS
    max_bytes: int = MAX_KEPT_BYTES
    kept_seconds: float = KEPT_SECONDS
    running: dict[str, Run] = field(default_factory=dict)
    _kept: OrderedDict[str, _Kept] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def known_ending(self, token: str, now: float) -> Ending | None:
        """Return how the attempt ended when it is remembered, else None."""
        self._forget_old(now)
        kept = self._kept.get(token)
        return None if kept is None else kept.ending

    def begin(self, token: str, engine_id: str, start: Callable[[], asyncio.Future[Ending]]) -> Run:
        """Return the run of a token: the one under way, attached to, or a new one from `start`."""
        run = self.running.get(token)
        if run is None:
            run = self.running[token] = Run(token, engine_id, start())
            run.work.add_done_callback(partial(self._over, run))
        run.engine_id = engine_id
        run.abandoned = False
        return run

    def _over(self, run: Run, work: asyncio.Future[Ending]) -> None:
        """Forget a run that was stopped before its first step, or broke: it said nothing itself."""
        if self.running.get(run.token) is run:
            del self.running[run.token]
        for listener in run.listeners:
            listener.cancel()

    def drop(self, token: str) -> None:
        """Forget an attempt that did not begin and may be asked for again."""
        self.running.pop(token, None)

    def finish(self, token: str, ending: Ending, now: float) -> Run | None:
        """Remember how an attempt ended and return its run; None when it was not under way."""
        run = self.running.pop(token, None)
        previous = self._kept.pop(token, None)
        if previous is not None:
            self._bytes -= previous.weight
        weight = len(bytes(ending)) if isinstance(ending, msgspec.Raw) else ERROR_BYTES
        self._kept[token] = _Kept(ending, now + self.kept_seconds, weight)
        self._bytes += weight
        self._forget_old(now)
        return run

    def abandon(self, engine_id: str | None = None) -> int:
        """Mark the runs of an engine, or all, as having no listener; return how many there are."""
        runs = [run for run in self.running.values() if engine_id is None or run.engine_id == engine_id]
        for run in runs:
            run.abandoned = True
        return len(runs)

    def _forget_old(self, now: float) -> None:
        while self._kept:
            token, oldest = next(iter(self._kept.items()))
            if oldest.until > now and len(self._kept) <= self.max_results and self._bytes <= self.max_bytes:
                return
            del self._kept[token]
            self._bytes -= oldest.weight


class _Probe(msgspec.Struct):
    token: str | msgspec.UnsetType = msgspec.UNSET


_PROBE = msgspec.json.Decoder(_Probe)
_ATTEMPT = msgspec.json.Decoder(Attempt)


def attempt_of(incoming: Incoming) -> Attempt | None:
    """Return the attempt that a request's context describes, or None when the context is none of ours.

    Raises: InvalidParameters when the context has a token but is no whole attempt.
    """
    raw = incoming.context_raw
    if raw is None:
        return None
    try:
        attempt = _ATTEMPT.decode(raw)
    except msgspec.DecodeError as error:
        if not _has_token(raw):
            return None
        raise InvalidParameters(f"context: not an attempt: {error}", retryable=False) from None
    if len(attempt.token) > MAX_TOKEN_CHARACTERS:
        raise InvalidParameters(
            f"context: a token has at most {MAX_TOKEN_CHARACTERS} characters", retryable=False
        )
    return attempt


def _has_token(raw: bytes) -> bool:
    try:
        return _PROBE.decode(raw).token is not msgspec.UNSET
    except msgspec.DecodeError:
        return True
