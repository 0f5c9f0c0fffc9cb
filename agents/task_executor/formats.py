"""Data as text and back: json, jsonl, csv, yaml, text, base64. Values in, values out; nothing is ever unpickled."""

import base64
import binascii
import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import yaml

from agents.task_executor.errors import InvalidInput

MAX_YAML_DEPTH = 50
MAX_CSV_COLUMNS = 1000
TEXT_FORMATS = ("json", "jsonl", "csv", "yaml", "text", "base64")

_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def encode(data: Any, kind: str) -> bytes:
    """Return `data` in a format. Text goes out as it is, except for base64, where it is the encoded bytes.

    Raises: InvalidInput when the format is unknown or cannot hold the data.
    """
    encoder = _known(_ENCODERS, kind)
    if isinstance(data, str) and kind != "base64":
        return data.encode("utf-8", "surrogatepass")
    content: bytes = encoder(data)
    return content


def decode(content: bytes, kind: str) -> Any:
    """Return the data that bytes in a format hold. Raises InvalidInput when they are not in that format."""
    return _known(_DECODERS, kind)(content)


def text_of(content: bytes) -> str:
    """Return bytes as text. Raises InvalidInput when they are not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"not UTF-8 text (byte {error.start}); read it with format: base64") from None


def _known(table: Mapping[str, Callable[[Any], Any]], kind: str) -> Callable[[Any], Any]:
    found = table.get(kind)
    if found is None:
        raise InvalidInput(f"format: {kind!r} is unknown; use one of {', '.join(TEXT_FORMATS)}")
    return found


def _to_json(data: Any) -> bytes:
    return msgspec.json.encode(data)


def _to_text(data: Any) -> bytes:
    return b"" if data is None else msgspec.json.encode(data)


def _to_jsonl(data: Any) -> bytes:
    rows = data if isinstance(data, list) else [data]
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def _to_yaml(data: Any) -> bytes:
    content: bytes = yaml.dump(
        data, Dumper=_YAML_DUMPER, allow_unicode=True, sort_keys=False, encoding="utf-8"
    )
    return content


def _to_csv(data: Any) -> bytes:
    rows = data if isinstance(data, list) else [data]
    out = io.StringIO(newline="")
    if all(isinstance(row, dict) for row in rows):
        columns = list(dict.fromkeys(str(key) for row in rows for key in row))
        if len(columns) > MAX_CSV_COLUMNS:
            raise InvalidInput(f"csv: more than {MAX_CSV_COLUMNS} columns")
        table = csv.writer(out, lineterminator="\n")
        if columns:
            table.writerow(columns)
        table.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    elif all(isinstance(row, list) for row in rows):
        csv.writer(out, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    else:
        raise InvalidInput("csv: the content must be a list of objects or a list of lists")
    return out.getvalue().encode("utf-8", "surrogatepass")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _to_base64(data: Any) -> bytes:
    if not isinstance(data, str):
        raise InvalidInput("base64: the content must be base64 text")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("base64: the content is not base64 text") from None


def _from_json(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(f"not JSON: {error}") from None


def _from_jsonl(content: bytes) -> Any:
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                rows.append(msgspec.json.decode(line))
            except (msgspec.DecodeError, RecursionError) as error:
                raise InvalidInput(f"line {number} is not JSON: {error}") from None
    return rows


def _from_csv(content: bytes) -> Any:
    try:
        table = csv.DictReader(io.StringIO(text_of(content), newline=""), restkey="_rest", strict=True)
        if len(table.fieldnames or ()) > MAX_CSV_COLUMNS:
            raise InvalidInput(f"csv: more than {MAX_CSV_COLUMNS} columns")
        return [dict(row) for row in table]
    except csv.Error as error:
        raise InvalidInput(f"not CSV: {error}") from None


def _from_yaml(content: bytes) -> Any:
    """Return the one document of a YAML text. Aliases and deep nesting are refused before anything is built."""
    depth = 0
    try:
        for event in yaml.parse(content, Loader=_YAML_LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise InvalidInput("yaml: aliases are not allowed")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise InvalidInput(f"yaml: nested deeper than {MAX_YAML_DEPTH}")
        loaded = yaml.load(content, Loader=_YAML_LOADER)  # noqa: S506 - a safe loader
        return msgspec.to_builtins(loaded, str_keys=True)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" (line {place.line + 1}, column {place.column + 1})" if place is not None else ""
        raise InvalidInput(f"not YAML{where}") from None
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput("yaml: holds values that JSON cannot express") from None


def _from_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


_ENCODERS: Mapping[str, Callable[[Any], bytes]] = {
    "": _to_text,
    "text": _to_text,
    "json": _to_json,
    "jsonl": _to_jsonl,
    "csv": _to_csv,
    "yaml": _to_yaml,
    "base64": _to_base64,
}
_DECODERS: Mapping[str, Callable[[bytes], Any]] = {
    "": text_of,
    "text": text_of,
    "json": _from_json,
    "jsonl": _from_jsonl,
    "csv": _from_csv,
    "yaml": _from_yaml,
    "base64": _from_base64,
}
