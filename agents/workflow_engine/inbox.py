"""What lies in an instance's inbox, read as a stimulus. Entries may be written by others: nothing is trusted."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo, InboxItem, TaskResult
from orchestration.definition.plan import Plan
from orchestration.outputs import map_outputs

MAX_ERROR_MESSAGE_CHARACTERS = 4000


def stimulus_of(item: InboxItem, plan: Plan, at: datetime, jitter: float) -> st.AnyStimulus:
    """Return the stimulus of an inbox entry.

    An entry that makes no sense becomes a tick, so that it leaves the inbox and changes nothing.
    """
    data = item.data
    reason = str(data.get("reason", ""))
    task_id = str(data.get("task_id", ""))
    match item.kind:
        case "pause":
            seconds = data.get("duration")
            duration = float(seconds) if isinstance(seconds, int | float) else None
            return st.PauseOrder(at=at, reason=reason, duration_seconds=duration)
        case "resume":
            return st.ResumeOrder(at=at, reason=reason)
        case "stop":
            return st.StopOrder(at=at, reason=reason)
        case "task_retry":
            return st.RetryOrder(at=at, task_id=task_id, reason=reason)
        case "task_skip":
            return st.SkipOrder(at=at, task_id=task_id, reason=reason)
        case "task_complete":
            outputs = data.get("outputs")
            return st.CompleteOrder(
                at=at,
                task_id=task_id,
                outputs=outputs if isinstance(outputs, dict) else {},
                reason=reason,
            )
        case "state_update" if isinstance(data.get("updates"), dict):
            return st.UpdateOrder(
                at=at,
                updates=data["updates"],
                replace=data.get("merge_strategy") == "replace",
                description=str(data.get("description", "")),
            )
        case "task_result" if task_id in plan.tasks:
            return _task_result(data, plan, task_id, at, jitter)
        case _:
            return st.Tick(at=at)


def _task_result(
    data: Mapping[str, Any], plan: Plan, task_id: str, at: datetime, jitter: float
) -> st.AnyStimulus:
    """How an attempt ended or was lost, as its executor could not tell the engine that asked."""
    token = str(data.get("token", ""))
    lost = data.get("lost")
    if isinstance(lost, dict):
        return st.AttemptVanished(
            at=at,
            task_id=task_id,
            token=token,
            agent_id=str(lost.get("agent_id", "")),
            reason=str(lost.get("reason", "")),
            begun=lost.get("begun") is not False,
        )
    try:
        if data.get("error") is not None:
            error = as_recorded(msgspec.convert(data["error"], ErrorInfo))
            return st.AttemptErrored(at=at, task_id=task_id, token=token, error=error, jitter=jitter)
        result = msgspec.convert(data.get("result"), TaskResult)
    except msgspec.ValidationError:
        return st.Tick(at=at)
    names = plan.tasks[task_id].output_names
    return st.AttemptSucceeded(
        at=at,
        task_id=task_id,
        token=token,
        outputs=map_outputs(names, result=result.result, outputs=result.outputs, primary=result.primary),
        primary=result.primary,
        metadata=_without_spooled(result.metadata),
    )


def as_recorded(error: ErrorInfo) -> ErrorInfo:
    """Return an error as the log keeps it: what the wire carries in its details is in the fields."""
    details = _without_spooled(error.details)
    retryable, retry_after = details.pop("retryable", None), details.pop("retry_after_seconds", None)
    return msgspec.structs.replace(
        error,
        message=error.message[:MAX_ERROR_MESSAGE_CHARACTERS],
        details=details,
        retryable=retryable if isinstance(retryable, bool) else error.retryable,
        retry_after_seconds=(
            float(retry_after) if isinstance(retry_after, int | float) else error.retry_after_seconds
        ),
    )


def _without_spooled(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts of a result without how its executor kept it, which means nothing to the log."""
    return {name: value for name, value in facts.items() if name != "spooled"}
