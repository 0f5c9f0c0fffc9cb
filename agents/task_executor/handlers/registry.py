"""The one table of task handlers. A new task type is one file here and one line in the table."""

from collections.abc import Mapping
from dataclasses import dataclass

from agents.task_executor.compute import Compute, ForeignCode
from agents.task_executor.custom_handlers import CustomHandlers
from agents.task_executor.files import FileRoot
from agents.task_executor.handlers.api_call import ApiCall
from agents.task_executor.handlers.base import TaskHandler
from agents.task_executor.handlers.custom import Custom
from agents.task_executor.handlers.data_transform import DataTransform
from agents.task_executor.handlers.file_operation import FileOperation
from agents.task_executor.handlers.subprocess_ import Subprocess
from agents.task_executor.handlers.validation import Validation
from agents.task_executor.http_client import HttpClient
from agents.task_executor.program_records import ProgramRecords
from runtime.settings import SubprocessSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What handlers work with. The executor owns it and closes it."""

    http: HttpClient
    files: FileRoot
    compute: Compute
    disk: Compute
    foreign: ForeignCode
    custom: CustomHandlers
    subprocess: SubprocessSettings
    programs: ProgramRecords


def task_handlers(services: Services) -> Mapping[str, TaskHandler]:
    """Return the handler of every task type, by the word used in `type` and `task_type`."""
    return {
        "api_call": ApiCall(services.http),
        "data_transform": DataTransform(services.compute, services.custom, services.foreign),
        "subprocess": Subprocess(services.subprocess, services.files, services.programs),
        "validation": Validation(services.compute),
        "file_operation": FileOperation(services.files, services.disk),
        "custom": Custom(services.custom, services.foreign),
    }
