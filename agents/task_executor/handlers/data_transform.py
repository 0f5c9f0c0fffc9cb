"""Task type `data_transform`: transformations in order over a value, by the data engine.

Small data is transformed at once, large data on a thread; the engine's own limits bound both.
"""

from collections.abc import Callable, Mapping
from typing import Any

from agents.task_executor import formats
from agents.task_executor.compute import Compute, ForeignCode, has_loops, is_small
from agents.task_executor.custom_handlers import CustomHandlers
from agents.task_executor.errors import InvalidInput
from agents.task_executor.handlers.base import Outcome, TaskContext
from orchestration import transforms
from orchestration.contracts import DataTransformReply, DataTransformRequest

OUTPUT_FORMATS = ("json", "jsonl", "csv", "yaml", "text")


class DataTransform:
    """Performs `data_transform` tasks, the operator's registered transformations included."""

    request_type = DataTransformRequest

    def __init__(self, compute: Compute, custom: CustomHandlers, foreign: ForeignCode) -> None:
        self._compute = compute
        self._custom = custom
        self._foreign = foreign

    async def run(self, request: DataTransformRequest, context: TaskContext) -> Outcome:
        """Return the final data; in another format than json it becomes text. Primary is the data."""
        if request.output_format not in OUTPUT_FORMATS:
            raise InvalidInput(f"output_format: must be one of {', '.join(OUTPUT_FORMATS)}")
        started = context.clock.monotonic()
        work = self._work(request, context)
        if self._uses_custom(request):
            data, applied = await self._foreign.run(work)
        else:
            small = is_small(request.input_data, request.transformations) and not has_loops(
                request.transformations
            )
            data, applied = await self._compute.run(work, small=small)
        reply = DataTransformReply(
            transformed_data=data,
            applied_transformations=applied,
            execution_time=round(context.clock.monotonic() - started, 6),
        )
        return Outcome(
            result=reply, outputs={"data": data, "transformation_count": len(applied)}, primary=data
        )

    def _work(
        self, request: DataTransformRequest, context: TaskContext
    ) -> Callable[[], tuple[Any, list[dict[str, Any]]]]:
        def transform() -> tuple[Any, list[dict[str, Any]]]:
            data, applied = transforms.apply(
                request.input_data,
                request.transformations,
                context.names,
                self._custom.transformations,
                declared=context.declared,
                now=context.clock.now(),
            )
            if request.output_format != "json":
                data = formats.encode(data, request.output_format).decode("utf-8")
            return data, list(applied)

        return transform

    def _uses_custom(self, request: DataTransformRequest) -> bool:
        """Return whether the operator's own code may run, which can take any time."""
        return bool(self._custom.transformations) and any(
            isinstance(step, Mapping) and step.get("type") == "custom" for step in request.transformations
        )
