"""Handlers for what waits: why an instance or task does not move, what a person orders about a task, orphans."""

from typing import TYPE_CHECKING, Any

import msgspec

from orchestration import contracts
from orchestration.contracts import Contract
from web.server import values
from web.server.bodies import check_value
from web.server.problems import ProblemError
from web.server.table import Answer, Call

if TYPE_CHECKING:
    from web.server.models import CompleteBody


async def get_instance_why(call: Call) -> Answer:
    """Answer why an instance does not move: {status, summary, reasons}."""
    return await _why(call, "")


async def get_task_why(call: Call) -> Answer:
    """Answer why a task does not move, and which orders about it would be refused: {..., refusals}."""
    return await _why(call, call.path["task_id"])


async def _why(call: Call, task_id: str) -> Answer:
    instance_id = call.path["instance_id"]
    request = contracts.WorkflowWhyRequest(instance_id=instance_id, task_id=task_id)
    reply = await call.services.backend.ask(contracts.WORKFLOW_WHY, request, contracts.WorkflowWhy)
    try:
        secrets = await call.services.instances.secrets(instance_id)
    except ProblemError as problem:
        return Answer(_without_secrets(reply, problem))
    return Answer(values.masked(msgspec.to_builtins(reply), secrets))


def _without_secrets(reply: contracts.WorkflowWhy, problem: ProblemError) -> Any:
    """Return what may be told while nobody can say what is secret: that the store does not answer.

    Raises: ProblemError when that is not the reason.
    """
    silent = [reason for reason in reply.reasons if reason.code == "store_unavailable"]
    if not silent:
        raise problem
    told = msgspec.structs.replace(reply, summary=silent[0].sentence, reasons=silent, refusals={})
    return msgspec.to_builtins(told)


async def retry_task(call: Call) -> Answer:
    """Run a task again that failed, was skipped after a failure, waits for a retry, or did not do its work."""
    return await _order(call, contracts.TASK_RETRY, contracts.TaskRetryRequest, reason=call.body.reason)


async def skip_task(call: Call) -> Answer:
    """Do not run, or do not finish, a task."""
    return await _order(call, contracts.TASK_SKIP, contracts.TaskSkipRequest, reason=call.body.reason)


async def complete_task(call: Call) -> Answer:
    """Say that a task of unknown outcome did its work, and what it gave."""
    body: CompleteBody = call.body
    check_value(body.outputs)
    return await _order(
        call, contracts.TASK_COMPLETE, contracts.TaskCompleteRequest, outputs=body.outputs, reason=body.reason
    )


async def _order(call: Call, contract: Contract, request_type: type, **fields: Any) -> Answer:
    instance_id, task_id = call.path["instance_id"], call.path["task_id"]
    request = request_type(workflow_instance_id=instance_id, task_id=task_id, **fields)
    reply = await call.services.backend.ask(contract, request, contracts.TaskControlled, safe=False)
    data = {"accepted": reply.accepted, "instance_id": instance_id, "task_id": task_id}
    return Answer(data, status=202, headers={"Location": f"/api/instances/{instance_id}"})


async def get_orphans(call: Call) -> Answer:
    """Answer the unfinished instances that nothing will wake: {count, orphans, checked_at}."""
    request = contracts.OrphansRequest(limit=call.query.limit)
    reply = await call.services.backend.ask(contracts.INSTANCE_ORPHANS, request, contracts.OrphansReply)
    return Answer(reply)
