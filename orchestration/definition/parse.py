"""From a person's text or object to a checked definition, or to every problem it has, each at its place.

Nothing here runs anything: expressions and templates are parsed, never evaluated. Whatever the text, the outcome is
a ParsedDefinition or a DefinitionError.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from orchestration.definition.checks import check_definition
from orchestration.definition.document import MAX_TEXT_BYTES, Document
from orchestration.definition.errors import DefinitionError, Problem
from orchestration.definition.findings import Findings
from orchestration.definition.json_source import read_json
from orchestration.definition.models import WorkflowDefinition
from orchestration.definition.shape import check_shape
from orchestration.definition.values import UNSAFE_CODES, check_values, sound_copy
from orchestration.definition.yaml_source import read_yaml

Format = Literal["yaml", "json"]

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ParsedDefinition:
    """A definition without errors. `warnings` are findings that do not hinder a start."""

    definition: WorkflowDefinition
    warnings: list[Problem] = field(default_factory=list)


def parse_text(text: str | bytes, format: Format = "yaml", source_name: str = "") -> ParsedDefinition:
    """Return the definition that a text holds.

    Args:
        text: At most MAX_TEXT_BYTES of UTF-8.
        source_name: What the messages call the text, such as its file's name.

    Raises: DefinitionError with every problem.
    """
    decoded, problem = _decoded(text)
    if problem is not None:
        raise DefinitionError([problem], source_name=source_name)
    document = read_json(decoded) if format == "json" else read_yaml(decoded)
    return _parse(document, source_name)


def parse_object(value: object, source_name: str = "") -> ParsedDefinition:
    """Return the definition that plain data describe. The data are copied. Problems carry pointers, no lines.

    Raises: DefinitionError with every problem.
    """
    return _parse(Document(value), source_name)


def format_of(file_name: str) -> Format:
    """Return the format that a file's name tells: json for `.json`, else yaml."""
    return "json" if file_name.lower().endswith(".json") else "yaml"


def _parse(document: Document, source_name: str) -> ParsedDefinition:
    findings = Findings(document)
    unsafe = check_values(document) if document.is_complete else []
    for problem in unsafe:
        findings.add(problem)
    if not document.is_complete or any(problem.code in UNSAFE_CODES for problem in unsafe):
        raise DefinitionError(findings.errors(), source_name=source_name)
    document.value = sound_copy(document.value)
    shape = check_shape(findings)
    definition = check_definition(shape, findings)
    if definition is None or findings.has_errors:
        raise DefinitionError(findings.errors(), source_name=source_name)
    return ParsedDefinition(definition, findings.warnings())


def _decoded(text: str | bytes) -> tuple[str, Problem | None]:
    """Return the text without its byte order mark, or why it cannot be read."""
    size = (
        len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    )
    if size > MAX_TEXT_BYTES:
        message = f"the definition has {size:,} bytes; {MAX_TEXT_BYTES:,} are allowed"
        return "", Problem(code="too-large", message=message)
    if isinstance(text, bytes):
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as error:
            line, column = _place(text[: error.start].decode("utf-8", "replace"))
            return "", Problem(code="not-utf8", message="the text is not UTF-8", line=line, column=column)
    else:
        decoded = text
    found = _SURROGATE.search(decoded)
    if found:
        line, column = _place(decoded[: found.start()])
        message = "the text contains half of a surrogate pair"
        return "", Problem(code="bad-value", message=message, line=line, column=column)
    return decoded.removeprefix("\ufeff"), None


def _place(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
