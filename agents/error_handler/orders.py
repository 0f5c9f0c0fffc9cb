"""Performing a recovery: each action is an order to the agent that can carry it out. Nothing is decided here."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from agents.error_handler.errors import RecoveryFailed
from amp.client import MeshClient
from amp.errors import InvalidParameters
from orchestration import contracts
from orchestration.status import RecoveryAction
from runtime.settings import ErrorHandlerSettings

T = TypeVar("T")

ORDER_TIMEOUT_SECONDS = 10.0
ORDER_PATIENCE_SECONDS = 5.0

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=31_536_000)]


class OrderContext(msgspec.Struct, frozen=True, kw_only=True):
    """What an order is about. Other keys of an error's context do not matter here."""

    workflow_instance_id: str = ""
    task_id: str = ""


class OrderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an action is to be done. `capability`, `parameters` and `agent_id` name what stands in (fallback)."""

    retry_delay: _Seconds | None = None
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    pause_duration: _Seconds | None = None
    reason: str = ""
    capability: str = ""
    parameters: dict[str, Any] = {}
    agent_id: str | None = None


class RecoveryOrders:
    """Gives orders to the engine, the state manager or whoever can stand in."""

    def __init__(self, mesh: MeshClient, settings: ErrorHandlerSettings) -> None:
        self._mesh = mesh
        self._settings = settings

    async def give(
        self, action: RecoveryAction, context: Mapping[str, Any], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what the ordered agent answered.

        Raises: InvalidParameters when the order is incomplete, RecoveryFailed when it cannot be carried out, any
        other AmpError as the ordered agent gave it.
        """
        about = _converted(context, OrderContext, "error_context")
        how = _converted(config, OrderConfig, "recovery_config")
        match action:
            case RecoveryAction.RETRY:
                return await self._retry(about, how)
            case RecoveryAction.SKIP:
                reason = how.reason or "ordered by the error handler"
                return await self._send(contracts.TASK_SKIP.id, {**_task(about), "reason": reason})
            case RecoveryAction.PAUSE:
                duration = (
                    self._settings.pause_duration_seconds
                    if how.pause_duration is None
                    else how.pause_duration
                )
                return await self._control(contracts.WORKFLOW_PAUSE.id, about, how, {"duration": duration})
            case RecoveryAction.ABORT:
                return await self._control(contracts.WORKFLOW_STOP.id, about, how, {})
            case RecoveryAction.FALLBACK:
                return await self._stand_in(how)
            case RecoveryAction.ROLLBACK:
                return await self._roll_back(about, how)
            case RecoveryAction.ESCALATE:
                raise InvalidParameters("escalate is no order to another agent; use error-escalate")

    async def _retry(self, about: OrderContext, how: OrderConfig) -> dict[str, Any]:
        retries = self._settings.max_retry_attempts if how.max_retries is None else how.max_retries
        delay = self._settings.retry_delay_seconds if how.retry_delay is None else how.retry_delay
        retry_config = {"max_retries": retries, "delay": delay}
        return await self._send(contracts.TASK_RETRY.id, {**_task(about), "retry_config": retry_config})

    async def _control(
        self, capability: str, about: OrderContext, how: OrderConfig, more: dict[str, Any]
    ) -> dict[str, Any]:
        reason = how.reason or "ordered by the error handler"
        return await self._send(capability, {"instance_id": _instance(about), "reason": reason, **more})

    async def _stand_in(self, how: OrderConfig) -> dict[str, Any]:
        """Ask for something else instead: the only fallback there is outside a definition."""
        if not how.capability:
            raise InvalidParameters(
                "a fallback needs recovery_config.capability (and parameters): what stands in for the failed work",
                {"path": "$.recovery_config.capability"},
            )
        return await self._send(how.capability, how.parameters, agent_id=how.agent_id)

    async def _roll_back(self, about: OrderContext, how: OrderConfig) -> dict[str, Any]:
        """Bring the instance's state back to the version before the present one."""
        instance_id = _instance(about)
        known = await self._send(
            contracts.STATE_GET.id, {"workflow_instance_id": instance_id, "include_history": True}
        )
        version = known.get("version", 0)
        earlier = [entry for entry in known.get("history", []) if entry.get("version", version) < version]
        if not earlier:
            raise RecoveryFailed(f"the state of {instance_id!r} has no earlier version to go back to")
        before = max(earlier, key=lambda entry: entry["version"])
        written = await self._send(
            contracts.STATE_UPDATE.id,
            {
                "workflow_instance_id": instance_id,
                "updates": before.get("state_data", before.get("state", {})),
                "merge_strategy": "replace",
                "description": how.reason or f"rolled back to version {before['version']}",
            },
        )
        return {**written, "restored_version": before["version"]}

    async def _send(
        self, capability: str, parameters: Mapping[str, Any], *, agent_id: str | None = None
    ) -> dict[str, Any]:
        answer = await self._mesh.request(
            capability,
            parameters,
            agent_id=agent_id,
            timeout_seconds=ORDER_TIMEOUT_SECONDS,
            patience_seconds=ORDER_PATIENCE_SECONDS,
        )
        return answer if isinstance(answer, dict) else {"result": answer}


def _task(about: OrderContext) -> dict[str, Any]:
    instance_id = _instance(about)
    if not about.task_id:
        raise InvalidParameters("error_context.task_id is missing", {"path": "$.error_context.task_id"})
    return {"workflow_instance_id": instance_id, "task_id": about.task_id}


def _instance(about: OrderContext) -> str:
    if not about.workflow_instance_id:
        raise InvalidParameters(
            "error_context.workflow_instance_id is missing", {"path": "$.error_context.workflow_instance_id"}
        )
    return about.workflow_instance_id


def _converted(value: Mapping[str, Any], kind: type[T], name: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as problem:
        raise InvalidParameters(f"{name}: {problem}", {"path": f"$.{name}"}) from None
