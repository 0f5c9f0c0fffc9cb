"""The JSON Schema of a capability's parameters, compiled. Pure.

A schema never fetches anything: references outside itself are errors.
"""

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry

from amp.errors import InvalidParameters, LocalProtocolError

MAX_REASON_CHARACTERS = 300
MAX_PROBLEMS = 20


class ParameterSchema:
    """Checks parameters of one capability, named `owner` in what is said.

    Raises: LocalProtocolError when the schema itself is wrong.
    """

    def __init__(self, schema: Mapping[str, Any], owner: str) -> None:
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise LocalProtocolError(
                f"the input schema of {owner!r} is not a JSON Schema: {error.message}"
            ) from None
        self._owner = owner
        self._validator = Draft202012Validator(schema, registry=Registry())

    def check(self, value: Any) -> None:
        """Raise InvalidParameters listing what in `value` the schema does not allow."""
        problems = []
        for problem in self._validator.iter_errors(value):
            problems.append({"path": problem.json_path, "reason": problem.message[:MAX_REASON_CHARACTERS]})
            if len(problems) == MAX_PROBLEMS:
                break
        if problems:
            first = problems[0]
            raise InvalidParameters(
                f"{self._owner}: {first['reason']} at {first['path']}", {**first, "problems": problems}
            )
