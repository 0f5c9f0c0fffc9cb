"""The shapes of bodies and query strings, and the only place that checks them with pydantic: 9 MB.

A dashboard that nobody asked anything must not have loaded this module. Routes name its models, `bodies` imports it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from orchestration.status import InstanceStatus
from web.server.monitoring import EVENTS_ON_PAGE, WIDGETS, MetricType
from web.server.problems import ProblemError, sum_up, unknown_field

INSTANCE_ID = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
TimeRange = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}[smhd]$")]
Where = Literal["body", "query"]


class Model(BaseModel):
    """A body or a query string. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoQuery(Model):
    """No parameters."""


class CreateBody(Model):
    """A definition, as an object or as the text of a file."""

    definition: dict[str, Any] | str
    format: Literal["yaml", "json"] = "yaml"
    overwrite: bool = False


class ValidateBody(Model):
    """A definition to check, as an object or as the text of a file."""

    definition: dict[str, Any] | str
    format: Literal["yaml", "json"] = "yaml"


class StartBody(Model):
    """Inputs of a start. `instance_id` names the instance and can be used once."""

    inputs: dict[str, Any] = Field(default_factory=dict)
    instance_id: Annotated[str, Field(pattern=INSTANCE_ID)] | None = None


class ControlBody(Model):
    """Why; and for a pause, after how many seconds it ends by itself."""

    reason: Annotated[str, Field(max_length=500)] = ""
    duration: Annotated[float, Field(gt=0, le=31_536_000)] | None = None


class PageQuery(Model):
    """A page of a list."""

    limit: Annotated[int, Field(ge=1, le=500)] = 100
    cursor: str = ""


class UploadQuery(Model):
    """How to store an uploaded definition."""

    overwrite: bool = True


class InstancesQuery(Model):
    """Filters of the list of instances. `status` takes several, separated by commas."""

    status: str = ""
    workflow_id: str | None = None
    text: Annotated[str, Field(max_length=200)] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Annotated[str, Field(max_length=500)] | None = None

    @field_validator("status")
    @classmethod
    def _known_statuses(cls, value: str) -> str:
        known = [status.value for status in InstanceStatus]
        for status in filter(None, value.split(",")):
            if status not in known:
                raise ValueError(f"unknown status {status!r}; known: {', '.join(known)}")
        return value

    @field_validator("created_after", "created_before")
    @classmethod
    def _aware(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a time needs its zone, such as 2026-01-15T10:00:00Z")
        return value


class EventsQuery(Model):
    """A page of events, oldest first."""

    after_seq: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=500)] = EVENTS_ON_PAGE


class MetricsQuery(Model):
    """Which metrics, over which time (30m, 1h, 7d)."""

    metric_type: MetricType | None = None
    time_range: TimeRange = "1h"


class RangeQuery(Model):
    """A time range."""

    time_range: TimeRange = "24h"


class AlertsQuery(Model):
    """Filters of the list of alerts."""

    severity: Literal["", "info", "warning", "error", "critical"] = ""
    include_resolved: bool = False
    limit: Annotated[int, Field(ge=1, le=500)] = 100


class ReportQuery(Model):
    """Which report, over which time. `workflow_ids` takes several, separated by commas."""

    report_type: Literal["summary", "detailed", "trends"] = "summary"
    time_range: TimeRange = "24h"
    workflow_ids: str = ""
    include_predictions: bool = False


class DashboardQuery(Model):
    """Which widgets, separated by commas."""

    widgets: str = ",".join(WIDGETS)


class OrderBody(Model):
    """Why somebody orders it."""

    reason: Annotated[str, Field(max_length=500)] = ""


class CompleteBody(Model):
    """What the work gave, by the names of the task's outputs, and how somebody knows."""

    outputs: dict[str, Any] = Field(default_factory=dict)
    reason: Annotated[str, Field(max_length=500)] = ""


class OrphansQuery(Model):
    """How many orphans to list."""

    limit: Annotated[int, Field(ge=1, le=500)] = 100


def checked(name: str, value: Mapping[str, Any], *, where: Where) -> Model:
    """Return the value as the model of this name. Raises: ProblemError 422 for a body, 400 for a query string."""
    model: type[Model] = globals()[name]
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _problem(error, model, where) from None


def _problem(error: ValidationError, model: type[Model], where: Where) -> ProblemError:
    """Return the 422 for a body or the 400 for a query string, every problem with its pointer."""
    errors = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        pointer = "".join(f"/{part}" for part in problem["loc"])
        detail = problem["msg"]
        if problem["type"] == "extra_forbidden":
            known = model.model_fields if len(problem["loc"]) == 1 else ()
            detail = unknown_field(str(problem["loc"][-1]), known)
        errors.append({"pointer": pointer, "detail": detail, "code": problem["type"]})
    status = 400 if where == "query" else 422
    return ProblemError(
        status, f"invalid_{where}", sum_up(errors), title=f"The {where} cannot be used", errors=errors
    )
