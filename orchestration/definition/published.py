"""The definition format as a JSON Schema, for editors and for programs that write definitions.

Made from the models that check definitions, so the two cannot differ. What only our own checks know (the graph,
expressions, parameters of a capability) is not in it.
"""

from typing import Any

from jsonschema import Draft202012Validator

from orchestration.definition.models import WorkflowDefinition
from orchestration.definition.tasks import CAPABILITY_BY_TYPE

SCHEMA_ID = "urn:amp-workflow-orchestration:workflow-definition:1"


def definition_schema() -> dict[str, Any]:
    """Return the JSON Schema (Draft 2020-12) of a workflow definition, self-contained."""
    schema = WorkflowDefinition.model_json_schema()
    schema["$defs"]["TaskDefinition"]["properties"]["type"]["enum"] = list(CAPABILITY_BY_TYPE)
    head = {
        "$schema": Draft202012Validator.META_SCHEMA["$id"],
        "$id": SCHEMA_ID,
        "title": "Workflow definition",
    }
    return {**head, **{key: value for key, value in schema.items() if key not in head}}
