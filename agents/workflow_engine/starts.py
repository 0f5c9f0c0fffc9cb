"""Starting instances, each once: a start is answered when it is durable, and a repeated one gets the same answer.

It never answers from what is only under way here: a duplicate waits for the first start's append.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from agents.workflow_engine.catalog import Catalog
from agents.workflow_engine.errors import (
    EngineBusy,
    IdempotencyKeyReused,
    InstanceNotFound,
    InvalidInputs,
    StartRefused,
)
from agents.workflow_engine.histories import Histories
from orchestration import contracts, machine
from orchestration.definition.errors import InputError
from orchestration.definition.inputs import prepare_inputs
from orchestration.definition.plan import Plan
from orchestration.starts import MAX_KEY_CHARACTERS, instance_id_of, is_key, request_hash
from orchestration.status import InstanceStatus
from runtime.clock import Clock

MAX_TRIES = 10
"""How often a start is begun again whose instance somebody else began and gave up."""
BUSY_RETRY_MS = 1000
FULL_RETRY_MS = 5000


class StartedInstance(msgspec.Struct, frozen=True):
    """What a start returns. `status` is the instance's when it was stored.

    `created` is false when the `instance_id` was used before; `replayed` is true when an earlier start with the same
    idempotency key made the instance.
    """

    id: str
    status: str
    workflow_id: str
    created: bool = True
    replayed: bool = False


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A start as it was asked for. `request_hash` is empty unless it has an idempotency key."""

    workflow_id: str
    inputs: dict[str, Any]
    instance_id: str
    trigger: str
    request_hash: str = ""


class Starts:
    """Starts instances of one engine.

    Args:
        begin: Stores the first step of an instance and drives it; returns what became of the append.
        has_slot: Whether an instance may begin at once.
        refuse: Returns why no further instance is taken, empty when one is.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        histories: Histories,
        clock: Clock,
        new_id: Callable[[], str],
        begin: Callable[[Plan, machine.Step], asyncio.Task[contracts.AppendOutcome]],
        has_slot: Callable[[], bool],
        refuse: Callable[[], str],
    ) -> None:
        self._catalog = catalog
        self._histories = histories
        self._clock = clock
        self._new_id = new_id
        self._begin = begin
        self._has_slot = has_slot
        self._refuse = refuse
        self._under_way: dict[str, asyncio.Task[contracts.AppendOutcome]] = {}

    def wish(
        self,
        workflow_id: str,
        inputs: Mapping[str, Any],
        *,
        instance_id: str | None,
        trigger: str,
        idempotency_key: str,
    ) -> Wish:
        """Return a start with its instance's id. Raises: InvalidInputs for a key that is none, or beside an id."""
        if idempotency_key and instance_id:
            raise InvalidInputs("a start has an idempotency key or an instance id, not both")
        if idempotency_key and not is_key(idempotency_key):
            raise InvalidInputs(
                f"an idempotency key is 1 to {MAX_KEY_CHARACTERS} visible ASCII characters without spaces"
            )
        return Wish(
            workflow_id=workflow_id,
            inputs=dict(inputs),
            instance_id=instance_id_of(idempotency_key) if idempotency_key else instance_id or self._new_id(),
            trigger=trigger,
            request_hash=request_hash(workflow_id, inputs) if idempotency_key else "",
        )

    async def start(self, wish: Wish) -> StartedInstance:
        """Return the instance once it is durable, whoever made it.

        Raises: WorkflowNotFound, InvalidInputs with every problem, EngineBusy, IdempotencyKeyReused, StartRefused.
        """
        earlier = await self._earlier(wish)
        if earlier is not None:
            return earlier
        plan = await self._catalog.newest(wish.workflow_id)
        inputs = await _checked_inputs(plan, wish.inputs)
        reason = self._refuse()
        if reason:
            raise EngineBusy(reason, {"retry_after_ms": BUSY_RETRY_MS})
        for _ in range(MAX_TRIES):
            if wish.instance_id in self._under_way:
                earlier = await self._earlier(wish)
                if earlier is not None:
                    return earlier
                continue
            started = await self._append(wish, plan, inputs)
            if started is not None:
                return started
        raise EngineBusy(f"{wish.instance_id} is started elsewhere", {"retry_after_ms": BUSY_RETRY_MS})

    async def _append(self, wish: Wish, plan: Plan, inputs: dict[str, Any]) -> StartedInstance | None:
        """Begin the instance; return None when another start was first and is not there either."""
        step = machine.start(
            plan,
            wish.instance_id,
            inputs,
            at=self._clock.now(),
            trigger=wish.trigger,
            request_hash=wish.request_hash,
            admit=self._has_slot(),
        )
        status = step.instance.status.value
        under_way = self._under_way[wish.instance_id] = self._begin(plan, step)
        under_way.add_done_callback(lambda _: self._under_way.pop(wish.instance_id))
        outcome = await asyncio.shield(under_way)
        if outcome.status == "ok":
            return StartedInstance(wish.instance_id, status, wish.workflow_id)
        if outcome.status == "full":
            raise EngineBusy(outcome.reason, {"retry_after_ms": FULL_RETRY_MS})
        if outcome.status == "refused":
            raise StartRefused(f"the store refused the start: {outcome.reason}")
        return await self._stored(wish)

    async def _earlier(self, wish: Wish) -> StartedInstance | None:
        """Return the instance of an earlier start that this one repeats; None when there is none."""
        under_way = self._under_way.get(wish.instance_id)
        if under_way is not None:
            await asyncio.wait({under_way})
        elif not wish.request_hash:
            return None  # an id that was used is found by the append, at no cost to those that were not
        return await self._stored(wish)

    async def _stored(self, wish: Wish) -> StartedInstance | None:
        if not wish.request_hash:
            try:
                row = await self._histories.row(wish.instance_id)
            except InstanceNotFound:
                return None
            return StartedInstance(row.instance_id, row.status.value, row.workflow_id, created=False)
        first = await self._histories.start_of(wish.instance_id)
        if first is None:
            return None
        if first.request_hash != wish.request_hash:
            raise IdempotencyKeyReused(
                "the idempotency key was used for another request; use a new key for a new start",
                {"instance_id": wish.instance_id},
            )
        status = InstanceStatus.RUNNING if first.admitted else InstanceStatus.PENDING
        return StartedInstance(wish.instance_id, status.value, first.workflow_id, replayed=True)


async def _checked_inputs(plan: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs with their defaults. A schema may be slow to apply, so that is done off the loop."""
    try:
        if plan.input_schema is None:
            return prepare_inputs(None, inputs)
        return await asyncio.to_thread(prepare_inputs, plan.input_schema, inputs)
    except InputError as error:
        problems = [msgspec.to_builtins(problem) for problem in error.problems]
        raise InvalidInputs(str(error), {"problems": problems}) from None
