"""Checks a task's parameters against the request of the capability that will get them.

The executor decodes the same structs, so what is refused here would fail there every time. A field that holds a
template is left to the executor: its value is not known yet.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from orchestration import contracts, rules, transforms
from orchestration.definition.errors import Path, did_you_mean, quoted
from orchestration.definition.findings import Findings
from orchestration.definition.tasks import CAPABILITY_BY_TYPE, TASK_CONFIG_TYPES
from orchestration.templates import has_templates, references

_PLACE_MARK = " - at `$"


def check_parameters(capability: str, parameters: Mapping[str, Any], path: Path, findings: Findings) -> None:
    """Note parameters that a capability of ours does not take, lacks, or takes in another type.

    Args:
        path: Where the parameters stand in the definition.
    """
    contract = contracts.CONTRACTS.get(capability)
    if contract is None:
        return
    _check_fields(contract.request, parameters, path, findings)
    if capability == contracts.TASK_EXECUTE.id:
        _check_envelope(parameters, path, findings)
    else:
        _check_work(capability, parameters, path, findings)


def _check_envelope(parameters: Mapping[str, Any], path: Path, findings: Findings) -> None:
    """Check the work inside `task_type` and `task_config`."""
    task_type, inner = parameters.get("task_type"), parameters.get("task_config")
    if not isinstance(task_type, str) or has_templates(task_type):
        return
    if task_type not in TASK_CONFIG_TYPES:
        findings.error(
            "unknown-type",
            f"'task_type' cannot be {quoted(task_type)}",
            (*path, "task_type"),
            hint=partial(did_you_mean, task_type, TASK_CONFIG_TYPES, list_known=True),
        )
    elif isinstance(inner, dict):
        capability = CAPABILITY_BY_TYPE[task_type]
        _check_fields(contracts.CONTRACTS[capability].request, inner, (*path, "task_config"), findings)
        _check_work(capability, inner, (*path, "task_config"), findings)


def _check_work(capability: str, parameters: Mapping[str, Any], path: Path, findings: Findings) -> None:
    """Check what a capability says about its parameters beyond their types."""
    if capability == contracts.TASK_API_CALL.id:
        _check_calls(parameters, path, findings)
    elif capability == contracts.TASK_FILE_OPERATION.id:
        _check_files(parameters, path, findings)
    elif capability == contracts.TASK_DATA_TRANSFORM.id:
        _check_entries("transformations", parameters, path, findings, transforms.check)
    elif capability == contracts.TASK_VALIDATION.id:
        _check_entries("rules", parameters, path, findings, rules.check)


def _check_entries(
    name: str,
    parameters: Mapping[str, Any],
    path: Path,
    findings: Findings,
    check: Callable[[list[Any]], list[tuple[int, str]]],
) -> None:
    """Check the entries of a list one by one, those without templates; bad expressions are reported elsewhere."""
    entries = parameters.get(name)
    if not isinstance(entries, list):
        return
    for index, entry in enumerate(entries):
        if has_templates(entry) or references(entry).problems:
            continue
        for _, message in check([entry]):
            findings.error("wrong-parameter", f"{name} {index + 1}: {message}", (*path, name, index))


def _check_calls(parameters: Mapping[str, Any], path: Path, findings: Findings) -> None:
    """An api_call goes to a url, or to several at once, each under a name of its own."""
    branches = parameters.get("parallel_requests")
    if not branches:
        if not parameters.get("url"):
            findings.error("missing-parameter", "an api_call needs 'url' or 'parallel_requests'", path)
        return
    if parameters.get("url"):
        findings.error(
            "wrong-parameter", "give either 'url' or 'parallel_requests', not both", (*path, "url")
        )
    if not isinstance(branches, list):
        return
    names: set[str] = set()
    for index, branch in enumerate(branches):
        if not isinstance(branch, dict):
            continue
        place = (*path, "parallel_requests", index)
        if not branch.get("url"):
            findings.error("missing-parameter", f"request {index + 1} needs a 'url'", place)
        name = branch.get("name")
        if isinstance(name, str) and name in names:
            message = f"two requests have the name {quoted(name)}"
            findings.error("duplicate-name", message, (*place, "name"))
        names.add(str(name))


def _check_files(parameters: Mapping[str, Any], path: Path, findings: Findings) -> None:
    """A file_operation names a file, or has a list of operations."""
    if not parameters.get("operations"):
        if not parameters.get("file_path"):
            findings.error("missing-parameter", "a file_operation needs 'file_path' or 'operations'", path)
        return
    for name in ("file_path", "additional_files"):
        if parameters.get(name):
            message = f"give either {quoted(name)} or 'operations', not both"
            findings.error("wrong-parameter", message, (*path, name))


def _check_fields(request: type, parameters: Mapping[str, Any], path: Path, findings: Findings) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(request)}
    for name, value in parameters.items():
        field = fields.get(name)
        if field is None:
            findings.error(
                "unknown-parameter",
                f"there is no parameter {quoted(name)} here",
                (*path, name),
                hint=partial(did_you_mean, name, fields, list_known=True),
                at_key=True,
            )
        elif not has_templates({name: value}):
            wrong = _wrong_value(value, field.type)
            if wrong:
                findings.error("wrong-parameter", f"{quoted(name)}: {wrong}", (*path, name))
    for name, field in fields.items():
        if field.required and name not in parameters:
            findings.error("missing-parameter", f"the parameter {quoted(name)} is required", path)


def _wrong_value(value: object, kind: Any) -> str:
    """Return why a value is not of a type, in msgspec's words without their place marks; "" when it is.

    Not strict, as in the executor: a filled template is often text, so "30" passes for a number.
    """
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        said = str(error).partition(_PLACE_MARK)[0].replace("`", "")
        return f"{said[:1].lower()}{said[1:]}"
    return ""
