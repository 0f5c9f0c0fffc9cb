"""Task handlers and transformations of your own: name this file in the settings and tasks can use them.

    task_executor:
      custom_handlers_path: examples/custom_handlers.py     # or custom_handlers_module: my_package.handlers

A task then uses a handler as `type: custom` and a transformation as `custom: {operation: ...}`:

    - id: score
      type: custom
      parameters: { task_name: score_lead, parameters: { visits: "{visits}", country: "{country}" } }
      outputs: [score, grade]

    - id: mask
      type: data_transform
      parameters:
        input_data: "{customers}"
        transformations: [{ type: custom, config: { operation: mask_fields, fields: [email] } }]

A handler gets the parameters and a context: the workflow variables its parameters refer to, workflow_id,
workflow_instance_id, task_id, attempt, idempotency_key, remaining_seconds, cancelled() and progress(...).
What it returns must be expressible as JSON; the keys of a returned object are offered to the task's outputs.
An exception fails the task; raise `amp.errors.AmpError(code, message, retryable=...)` to choose code and retry.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from amp.errors import AmpError

GRADES = ((80, "hot"), (40, "warm"), (0, "cold"))
MAX_STEPS = 100


def score_lead(params: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Return {score, grade} of a lead. A plain function runs on a thread of its own, so it may block."""
    visits = params.get("visits")
    if not isinstance(visits, int) or visits < 0:
        raise AmpError("INVALID_INPUT", "visits must be a whole number, 0 or more", retryable=False)
    score = min(100, visits * 10 + (20 if params.get("country") in ("DE", "FR") else 0))
    return {"score": score, "grade": next(grade for least, grade in GRADES if score >= least)}


async def count_slowly(params: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Return {counted}: counts with a pause each, and tells watchers how far it is. Stops when it is cancelled."""
    steps = min(int(params.get("steps", 3)), MAX_STEPS)
    for step in range(steps):
        await context["progress"]({"step": step + 1, "of": steps})
        await asyncio.sleep(float(params.get("pause_seconds", 0.1)))
    return {"counted": steps}


def mask_fields(data: Any, config: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
    """Return the records with some fields masked. A transformation gets the data, its config and the variables."""
    fields = config.get("fields", [])
    records = data if isinstance(data, list) else [data]
    masked = [{key: "***" if key in fields else value for key, value in record.items()} for record in records]
    return masked if isinstance(data, list) else masked[0]


HANDLERS = {"score_lead": score_lead, "count_slowly": count_slowly}
TRANSFORMS = {"mask_fields": mask_fields}
