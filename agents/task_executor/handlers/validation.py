"""Task type `validation`: data against rules and a JSON Schema. An invalid document is an answer, not a failure."""

from agents.task_executor.compute import Compute, has_loops, is_small
from agents.task_executor.handlers.base import Outcome, TaskContext
from orchestration import rules
from orchestration.contracts import ValidationReply, ValidationRequest

MAX_SMALL_RULES = 20


class Validation:
    """Performs `validation` tasks."""

    request_type = ValidationRequest

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    async def run(self, request: ValidationRequest, context: TaskContext) -> Outcome:
        """Return the verdict on each rule. Primary is {valid, failed_rules, validation_errors, ...}."""
        started = context.clock.monotonic()
        outcome = await self._compute.run(
            lambda: rules.validate(
                request.data,
                request.rules,
                context.names,
                schema=request.schema,
                declared=context.declared,
                now=context.clock.now(),
            ),
            small=request.schema is None
            and len(request.rules) <= MAX_SMALL_RULES
            and is_small(request.data, request.rules)
            and not has_loops(request.rules),
        )
        reply = ValidationReply(
            is_valid=outcome.is_valid,
            validation_results=list(outcome.results),
            execution_time=round(context.clock.monotonic() - started, 6),
        )
        outputs = {"valid": outcome.is_valid, "failed_rules": list(outcome.failed_rules)}
        return Outcome(result=reply, outputs=outputs, primary=outcome.primary)
