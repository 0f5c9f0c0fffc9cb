"""Named places at which a process can be made to die, for tests of recovery. In ordinary runs each is a no-op.

`AMP_CRASH=store.commit.after:1` kills the process when it reaches that place for the first time;
`...:3:stop` freezes it at the third, `...:1:raise` raises there. It never cleans up first: that is the point.
"""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Literal

VARIABLE = "AMP_CRASH"
MAX_HITS = 1_000_000

Action = Literal["kill", "stop", "raise"]

POINTS: Mapping[str, str] = {
    "engine.start.before_append": "a start was checked and decided, nothing is stored",
    "engine.start.after_append": "a start is durable, nobody was told",
    "engine.turn.before_append": "facts were decided, nothing is stored",
    "engine.turn.after_append": "facts are durable, what they ask for is not done",
    "engine.dispatch.between": "one of several orders of a turn was performed",
    "engine.dispatch.before_send": "an attempt is recorded, its request is not sent",
    "engine.result.received": "an attempt's answer arrived, nothing is decided",
    "engine.condition.answered": "the evaluator answered, nothing is stored",
    "engine.recovery.answered": "the error handler answered, nothing is stored",
    "engine.timer.fired": "something is due, nothing is decided",
    "engine.lease.renewed": "the lease was renewed, the inboxes are not read",
    "engine.claim.answered": "instances are ours, none is taken up",
    "engine.restore.between": "one of several instances was taken up",
    "engine.cancel.between": "one of several executors was told to stop an attempt",
    "engine.inbox.put": "an order is in the inbox, nobody was told",
    "engine.inbox.read": "inbox entries were read, none is consumed",
    "engine.settled.before_send": "a result is durable, its executor was not told",
    "store.request.queued": "a write waits for the writer",
    "store.group.begun": "a transaction is open and empty",
    "store.group.between": "one of several requests of a transaction is written",
    "store.commit.before": "everything of a transaction is written, not committed",
    "store.commit.after": "a transaction is on the disk, nobody was told",
    "store.hint.before": "callers were answered, readers were not told",
    "store.checkpoint.before": "the write-ahead log is about to be moved into the file",
    "store.checkpoint.after": "the write-ahead log was moved into the file",
    "store.backup.copied": "a copy is whole, but not under its name",
    "store.migration.before_commit": "the schema is new, not committed",
    "store.purge.before_commit": "ended instances are removed, not committed",
    "store.lease.swept": "leases were ended, engines were not told",
    "executor.task.received": "a request was read, no attempt is begun",
    "executor.task.accepted": "an attempt is begun, its effect is not",
    "executor.effect.after": "the effect happened, its result is nowhere",
    "executor.spool.written": "a result is in the spool, not synced",
    "executor.spool.synced": "a result is safely in the spool, nobody was told",
    "executor.settled.received": "a result is known to be recorded, it is still in the spool",
    "executor.recovery.between": "one of several spooled results was delivered after a restart",
    "executor.heartbeat.before": "a heartbeat is due",
    "executor.cancel.before": "an attempt is about to be stopped",
    "executor.file.before_rename": "a file is written under another name",
    "executor.handover.before": "a result that nobody waits for is about to go to the inbox",
    "router.frame.read": "a frame was read, nothing was routed",
    "router.forward.between": "a message went to one of several destinations",
    "router.registration.before_answer": "an agent is known, and does not know it",
    "router.takeover.before": "an agent's new connection is about to replace its old one",
    "router.reply.before": "a reply is about to be forwarded",
    "condition.evaluate.before": "a condition was asked",
    "condition.evaluate.after": "a condition is evaluated, nobody was told",
    "error.verdict.before": "a verdict was asked for",
    "error.verdict.after": "a verdict is found, nobody was told",
    "error.breaker.changed": "a circuit breaker changed, nobody was told",
    "monitor.page.read": "a page of the log was read, nothing is counted",
    "monitor.page.before_commit": "a page is counted, not committed",
    "monitor.page.after_commit": "a page is counted and committed",
    "monitor.alert.raised": "an alert is stored, nobody was told",
    "dashboard.request.parsed": "a request was read, nothing is done",
    "dashboard.start.committed": "a start is durable, its HTTP answer is not sent",
    "dashboard.live.resync": "a page is about to be given what it missed",
}
"""Every place, with how things stand there."""


class Crash(Exception):
    """What the action `raise` raises."""


_hook: Callable[[str], None] | None = None


def reach(point: str) -> None:
    """Mark a place of `POINTS`. It does nothing unless the process was armed for it."""
    if _hook is not None:
        _hook(point)


def arm(text: str | None) -> None:
    """Take the order in `AMP_CRASH`: `point:hit` or `point:hit:action`. None or empty disarms.

    Raises: ValueError when the order makes no sense.
    """
    if not text:
        on_reach(None)
        return
    point, _, rest = text.partition(":")
    count, _, action = rest.partition(":")
    if point not in POINTS:
        raise ValueError(f"{VARIABLE}: no point is called {point!r}; amp/crash.py lists them")
    if not count.isdecimal() or not 1 <= int(count) <= MAX_HITS:
        raise ValueError(f"{VARIABLE}: the hit must be a number from 1 to {MAX_HITS}, as in {point}:1")
    if action not in ("", "kill", "stop", "raise"):
        raise ValueError(f"{VARIABLE}: the action is kill, stop or raise, not {action!r}")
    on_reach(_Order(point, int(count), action or "kill"))


def arm_from_environment() -> None:
    """Take the order of the process's environment. Raises ValueError when it makes no sense."""
    arm(os.environ.get(VARIABLE))


def on_reach(hook: Callable[[str], None] | None) -> None:
    """Have `hook` called with each place that is reached; None for nothing."""
    global _hook
    _hook = hook


class _Order:
    """Acts when its point is reached for the wanted time."""

    def __init__(self, point: str, hit: int, action: str) -> None:
        self._point = point
        self._left = hit
        self._action = action

    def __call__(self, point: str) -> None:
        if point != self._point:
            return
        self._left -= 1
        if self._left != 0:
            return
        if self._action == "raise":
            raise Crash(f"crash point {point}")
        os.kill(os.getpid(), signal.SIGSTOP if self._action == "stop" else signal.SIGKILL)
