"""Every capability the agents offer each other: name, request, reply. The mesh on one page.

The schemas that an agent announces are made from these structs, and a request is decoded into them, so the
announcement and the check cannot differ. Public capabilities keep the names and fields of the protocol's
workflow example; internal ones are how our own agents work together and may change with a release.
This module must never do anything: it only declares.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal

import msgspec

from orchestration.status import Effects, InstanceStatus, RecoveryAction, Severity

MAX_PAGE_ROWS = 1000
"""Most rows that one reply of a listing carries."""

Object = dict[str, Any]
Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE_ROWS)]


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value that crosses the mesh. Unknown fields are ignored, so that releases can differ by one."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters of a public capability. A misspelt field is an error, not a silence."""


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """One capability: what it is called, what it takes, what it answers.

    `request` and `reply` are structs. `free` means that a request costs the agent no credit (control calls that
    must pass while the agent is busy). `internal` ones are left out of the public documentation.
    """

    id: str
    request: type
    reply: type
    description: str
    category: str
    internal: bool = False
    free: bool = False


# --- shared pieces -----------------------------------------------------------------------------------------


class ErrorInfo(Wire, frozen=True, kw_only=True):
    """What went wrong with an attempt or an instance, safe to log, store and show."""

    code: str
    message: str
    details: Object = {}
    retryable: bool | None = None
    retry_after_seconds: float | None = None

    @property
    def begun(self) -> bool | None:
        """Return whether the effect may have begun, as `details.begun` says; None when it says nothing."""
        said = self.details.get("begun")
        return said if isinstance(said, bool) else None


class Attempt(Wire, frozen=True, kw_only=True):
    """What an executor knows about the attempt it performs. It travels as the request payload's `context`.

    `variables` holds the values of the names that the task's templates use, and only those. `declared` lists the
    names that are null when unset. `output_names` are the task's declared outputs, in order. `heartbeat_seconds` is
    how long the engine waits for a sign of life, 0 for ever.
    """

    token: str
    engine_id: str
    workflow_id: str
    workflow_instance_id: str
    task_id: str
    attempt: int
    timeout_seconds: float
    idempotency_key: str
    heartbeat_seconds: float = 0.0
    effects: Effects | None = None
    variables: Object = {}
    declared: list[str] = []
    output_names: list[str] = []


class TaskResult(Wire, frozen=True, kw_only=True):
    """What a finished attempt answers. `primary` is the value that outputs without a match are taken from."""

    result: Object
    outputs: Object = {}
    primary: Any = None
    metadata: Object = {}


class EventRecord(Wire, frozen=True, kw_only=True):
    """One row of the log. `data` is the event as JSON, tagged by `type`; `offset` grows over the whole store."""

    offset: int
    instance_id: str
    seq: int
    type: str
    at: datetime
    data: msgspec.Raw


class InstanceRow(Wire, frozen=True, kw_only=True):
    """One row an instance: the columns that lists show and search, written with the events they sum up.

    `wake_at` and `wake_reason` say why an unfinished instance will be looked at again, and when at the latest.
    """

    instance_id: str
    workflow_id: str
    workflow_version: str
    workflow_name: str
    definition_hash: str
    status: InstanceStatus
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    updated_at: datetime | None = None
    wake_at: datetime | None = None
    wake_reason: str = ""
    task_counts: dict[str, int] = {}
    current_tasks: list[str] = []
    error_code: str = ""
    error_message: str = ""
    trigger: str = "api"
    owner: str = ""
    epoch: int = 0
    seq: int = 0


# --- the log: state manager, internal -----------------------------------------------------------------------


class NewEvent(Wire, frozen=True, kw_only=True):
    """An event to append. `data` is the encoded event, stored as it is."""

    type: str
    at: datetime
    data: msgspec.Raw


class AppendBatch(Wire, frozen=True, kw_only=True):
    """The next events of one instance.

    `expected_seq` is the seq of its last event that the sender knows, 0 for a new instance.
    `row` replaces the instance's row (its owner, epoch and seq columns are set by the store).
    `consumed_inbox_ids` leave the inbox in the same transaction.
    """

    instance_id: str
    owner: str
    epoch: int
    expected_seq: int
    events: list[NewEvent]
    row: InstanceRow
    consumed_inbox_ids: list[int] = []


class AppendRequest(Wire, frozen=True, kw_only=True):
    """Batches of different instances, stored in one transaction; each succeeds or conflicts by itself."""

    batches: list[AppendBatch]


class AppendOutcome(Wire, frozen=True, kw_only=True):
    """`status` ok: stored, `seq` is the last event's. conflict: nothing stored, `seq` is what the store has.

    stale_owner: nothing stored, another engine owns the instance. refused: nothing stored, and the same batch never
    will be: it breaks a bound that `reason` names. full: nothing stored, because the disk is (nearly) full and no new
    instance is taken now; instances under way go on.
    """

    instance_id: str
    status: Literal["ok", "conflict", "stale_owner", "refused", "full"]
    seq: int
    offset: int = 0
    reason: str = ""


class AppendReply(Wire, frozen=True, kw_only=True):
    """One outcome a batch, in the same order."""

    outcomes: list[AppendOutcome]


class LogReadRequest(Wire, frozen=True, kw_only=True):
    """Events after an offset, oldest first; with `instance_id`, those of one instance after `after` as its seq."""

    after: int = 0
    limit: Limit = 500
    instance_id: str | None = None
    types: list[str] = []


class LogReadReply(Wire, frozen=True, kw_only=True):
    """`next` is the offset (or seq) to read after next time; `end` is true when nothing more is there now."""

    events: list[EventRecord]
    next: int
    end: bool


class InboxPutRequest(Wire, frozen=True, kw_only=True):
    """Something that happens to an instance from outside. The same `dedupe_key` is stored once.

    kind: pause, resume, stop, task_retry, task_skip, task_complete, task_result, state_update.
    """

    instance_id: str
    kind: str
    data: Object = {}
    dedupe_key: str | None = None


class InboxPutReply(Wire, frozen=True, kw_only=True):
    """`found` is false when there is no such instance, `open` false when it has ended: nothing is stored then."""

    inbox_id: int
    found: bool
    open: bool
    status: InstanceStatus | None = None


class InboxItem(Wire, frozen=True, kw_only=True):
    """One entry of an instance's inbox."""

    inbox_id: int
    instance_id: str
    kind: str
    data: Object
    at: datetime


class InboxReadRequest(Wire, frozen=True, kw_only=True):
    """Unconsumed entries of the instances an owner holds, in order."""

    owner: str
    instance_ids: list[str] = []
    limit: Limit = 500


class InboxReadReply(Wire, frozen=True, kw_only=True):
    """The entries, oldest first."""

    items: list[InboxItem]


class LeaseRequest(Wire, frozen=True, kw_only=True):
    """An engine says that it lives. `owner` is unique for each process start."""

    owner: str
    agent_id: str
    lease_seconds: float
    release: bool = False


class LeaseReply(Wire, frozen=True, kw_only=True):
    """How things stand now. Counts are of unfinished instances: `claimable` without a live owner, `held` by the
    asker, `open` all there are. `engines` hold a lease. `begun` is true when the asker had none: an earlier one ended.
    """

    lease_seconds: float
    claimable: int
    held: int = 0
    open: int = 0
    engines: int = 1
    begun: bool = False


class ClaimRequest(Wire, frozen=True, kw_only=True):
    """Take over unfinished instances whose owner holds no live lease, oldest first."""

    owner: str
    limit: Limit = 50


class ClaimReply(Wire, frozen=True, kw_only=True):
    """The rows now owned by the caller, each with its new epoch."""

    rows: list[InstanceRow]


class InstanceGetRequest(Wire, frozen=True, kw_only=True):
    """One instance's row."""

    instance_id: str


class InstanceGetReply(Wire, frozen=True, kw_only=True):
    """`row` is null when there is no such instance."""

    row: InstanceRow | None


class InstanceListRequest(Wire, frozen=True, kw_only=True):
    """Rows, newest first. `cursor` comes from the reply before. Empty filters mean all."""

    statuses: list[InstanceStatus] = []
    workflow_id: str | None = None
    owner: str | None = None
    text: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    limit: Limit = 50
    cursor: str | None = None


class InstanceListReply(Wire, frozen=True, kw_only=True):
    """`counts` are the matches by status, so that a page can show totals."""

    rows: list[InstanceRow]
    next_cursor: str | None = None
    total: int = 0
    counts: dict[str, int] = {}


class OrphansRequest(Wire, frozen=True, kw_only=True):
    """Which unfinished instances has nobody to wake them?"""

    limit: Limit = 100


class Orphan(Wire, frozen=True, kw_only=True):
    """An unfinished instance that nothing will wake. `code`: no_owner, overdue or no_wake_reason."""

    instance_id: str
    workflow_id: str
    status: InstanceStatus
    code: str
    reason: str
    owner: str = ""
    since: datetime | None = None


class OrphansReply(Wire, frozen=True, kw_only=True):
    """`count` is how many there are; `orphans` the first of them."""

    count: int
    orphans: list[Orphan]
    checked_at: datetime


class PurgeRequest(Wire, frozen=True, kw_only=True):
    """Remove instances that ended more than so many days ago, with all that belongs to them. `dry_run`: only count."""

    older_than_days: Annotated[float, msgspec.Meta(ge=1)]
    dry_run: bool = False


class PurgeReply(Wire, frozen=True, kw_only=True):
    """How many instances and events were removed, or would be."""

    instances: int
    events: int
    ended_before: datetime


class DefinitionRecord(Wire, frozen=True, kw_only=True):
    """A stored definition.

    `content` is its normalized form, `hash` the SHA-256 of that, `source` the text that the user sent.
    """

    workflow_id: str
    version: str
    name: str
    hash: str
    content: Object
    source: str = ""
    format: Literal["yaml", "json"] = "json"
    created_at: datetime | None = None


class DefinitionPutRequest(Wire, frozen=True, kw_only=True):
    """Store a definition.

    Equal content is accepted again; other content under a used id and version needs `overwrite`.
    """

    definition: DefinitionRecord
    overwrite: bool = False


class DefinitionPutReply(Wire, frozen=True, kw_only=True):
    """`status`: created, updated, unchanged, or exists (refused: other content, no overwrite)."""

    status: Literal["created", "updated", "unchanged", "exists"]


class DefinitionGetRequest(Wire, frozen=True, kw_only=True):
    """The newest definition of a workflow, or the one with this hash.

    With `known_hash` the content is not sent again when the newest definition is the one the asker has.
    """

    workflow_id: str = ""
    hash: str = ""
    known_hash: str = ""


class DefinitionGetReply(Wire, frozen=True, kw_only=True):
    """`definition` is null when there is none, and when `unchanged` says that the asker has it."""

    definition: DefinitionRecord | None = None
    unchanged: bool = False


class DefinitionListRequest(Wire, frozen=True, kw_only=True):
    """The newest definition of every workflow, by id."""

    limit: Limit = MAX_PAGE_ROWS
    after: str = ""


class DefinitionListReply(Wire, frozen=True, kw_only=True):
    """Records by workflow id, ascending. `next` is the `after` of the page that follows, empty after the last."""

    definitions: list[DefinitionRecord]
    next: str = ""


# --- workflow engine, public --------------------------------------------------------------------------------


class WorkflowCreateRequest(Request, frozen=True, kw_only=True):
    """Check and store a definition given as an object."""

    definition: Object
    overwrite: bool = False
    source: str = ""
    format: Literal["yaml", "json"] = "json"


class WorkflowCreated(Wire, frozen=True, kw_only=True):
    """`status`: created, updated or unchanged. `warnings` are findings that do not hinder a start."""

    workflow_id: str
    status: str
    version: str = ""
    warnings: list[Object] = []


class WorkflowLoadRequest(Request, frozen=True, kw_only=True):
    """Check and store a definition from a file below the engine's workflow folders."""

    file_path: str
    format: Literal["yaml", "json"] = "yaml"
    overwrite: bool = True


class WorkflowStartRequest(Request, frozen=True, kw_only=True):
    """Start an instance. The same `instance_id` starts only once.

    `idempotency_key` names the start: the same key with the same request gives the same instance and answer, with
    another request it is refused (`IDEMPOTENCY_KEY_REUSED`). Instead of `instance_id`, not beside it.
    """

    workflow_id: str
    inputs: Object = {}
    instance_id: str | None = None
    trigger: str = "api"
    idempotency_key: str = ""


class WorkflowStarted(Wire, frozen=True, kw_only=True):
    """`status` is the instance's: pending or running; what it has now when `instance_id` was used before.

    `replayed` is true when an earlier start with the same idempotency key made the instance; all else is then as in
    the first answer.
    """

    instance_id: str
    status: str
    workflow_id: str = ""
    created: bool = True
    replayed: bool = False


class WorkflowControlRequest(Request, frozen=True, kw_only=True):
    """Pause, resume or stop an instance. `duration` seconds end a pause by itself."""

    instance_id: str
    reason: str = ""
    duration: float | None = None


class WorkflowControlled(Wire, frozen=True, kw_only=True):
    """The command is stored durably and will be obeyed; `status` is the instance's when that was noted."""

    instance_id: str
    status: str
    accepted: bool = True


class WorkflowStatusRequest(Request, frozen=True, kw_only=True):
    """The status document of one instance."""

    instance_id: str


class WorkflowStatus(Wire, frozen=True, kw_only=True):
    """`instance`: id, workflow_id, status, times, inputs, outputs, error_message. `tasks`: by id."""

    instance: Object
    tasks: Object


class WorkflowListRequest(Request, frozen=True, kw_only=True):
    """The stored workflows, and with `include_instances` the newest instances."""

    include_instances: bool = False
    limit: Limit = 100


class WorkflowList(Wire, frozen=True, kw_only=True):
    """`workflows`: by id."""

    workflows: Object
    instances: list[Object] = []


class TaskRetryRequest(Request, frozen=True, kw_only=True):
    """Run a failed task of an instance again, in place."""

    workflow_instance_id: str
    task_id: str
    retry_config: Object = {}
    reason: str = ""


class TaskSkipRequest(Request, frozen=True, kw_only=True):
    """Skip a task of an instance that has not finished."""

    workflow_instance_id: str
    task_id: str
    reason: str = ""


class TaskCompleteRequest(Request, frozen=True, kw_only=True):
    """Say that a task whose outcome is unknown did its work, and what it gave. (`task-retry` says it did not.)"""

    workflow_instance_id: str
    task_id: str
    outputs: Object = {}
    reason: str = ""


class TaskBeat(Wire, frozen=True, kw_only=True):
    """An attempt is alive. `progress` is what its handler told last.

    `begun` is false when an effect that must not be repeated comes next and the executor asks whether it may begin.
    """

    token: str
    progress: Object = {}
    begun: bool = True


class TaskHeartbeatRequest(Wire, frozen=True, kw_only=True):
    """The attempts of one engine that an executor is at work on."""

    beats: list[TaskBeat]


class TaskHeartbeatReply(Wire, frozen=True, kw_only=True):
    """The tokens whose result is no longer wanted: the executor stops them."""

    unwanted: list[str] = []


class WorkflowWhyRequest(Request, frozen=True, kw_only=True):
    """Why does an instance, or one task of it, not move?"""

    instance_id: str
    task_id: str = ""


class Reason(Wire, frozen=True, kw_only=True):
    """One thing that is waited for.

    `code` is for programs, `sentence` for people. `task_id` is empty for the instance as a whole. `facts` are the
    operands of the unmet condition, `held_by` who holds what is waited for, `unblocked_by` what ends the wait, and
    `until` when it ends by itself at the latest.
    """

    code: str
    sentence: str
    task_id: str = ""
    facts: Object = {}
    held_by: str = ""
    unblocked_by: str = ""
    until: datetime | None = None


class WorkflowWhy(Wire, frozen=True, kw_only=True):
    """`summary` is one sentence; `reasons` has at least one entry.

    About one task, `refusals` has each order that a person may give (retry, skip, complete) with why it would be
    refused now; empty when it would be obeyed.
    """

    instance_id: str
    status: str
    summary: str
    reasons: list[Reason]
    as_of: datetime
    task_id: str = ""
    refusals: dict[str, str] = {}


class TaskControlled(Wire, frozen=True, kw_only=True):
    """The command is stored durably and will be obeyed."""

    accepted: bool
    workflow_instance_id: str
    task_id: str


# --- task executor, public ----------------------------------------------------------------------------------


class TaskExecuteRequest(Request, frozen=True, kw_only=True):
    """Run a task of any type the executor knows. `task_config` is that type's parameters."""

    task_type: str
    task_config: Object
    workflow_context: Object = {}
    workflow_instance_id: str = ""
    task_id: str = ""


class ApiCallRequest(Request, frozen=True, kw_only=True):
    """An HTTP request, or several at once with `parallel_requests`."""

    method: Literal["GET", "POST", "PUT", "DELETE", "PATCH"] = "GET"
    url: str = ""
    headers: Object = {}
    data: Any = None
    timeout: float = 30
    retry_count: int = 3
    fail_on_status: bool = True
    parallel_requests: list[Object] = []
    polling_interval: float | None = None
    max_wait_time: float | None = None
    until: str | None = None


class ApiCallReply(Wire, frozen=True, kw_only=True):
    """`success` means a status below 400. `response_data` is the JSON body, else {text}."""

    status_code: int
    response_data: Any
    headers: Object
    success: bool
    execution_time: float = 0.0


class DataTransformRequest(Request, frozen=True, kw_only=True):
    """Apply transformations in order."""

    input_data: Any
    transformations: list[Object]
    output_format: str = "json"


class DataTransformReply(Wire, frozen=True, kw_only=True):
    """The final data and what was applied, with result sizes."""

    transformed_data: Any
    applied_transformations: list[Object]
    execution_time: float = 0.0


class SubprocessRequest(Request, frozen=True, kw_only=True):
    """Run a program from the allow-list. There is never a shell."""

    command: str
    args: list[Any] = []
    cwd: str | None = None
    env: Object = {}
    timeout: float = 300
    fail_on_exit: bool = True
    stdin: str | None = None


class SubprocessReply(Wire, frozen=True, kw_only=True):
    """What the program answered; long output is cut and says so."""

    exit_code: int
    stdout: str
    stderr: str
    success: bool
    execution_time: float = 0.0


class ValidationRequest(Request, frozen=True, kw_only=True):
    """Check data against rules and, when given, a JSON Schema."""

    data: Any
    rules: list[Object] = []
    schema: Object | None = None


class ValidationReply(Wire, frozen=True, kw_only=True):
    """An invalid document is an answer, not a failure."""

    is_valid: bool
    validation_results: list[Object]
    execution_time: float = 0.0


class FileOperationRequest(Request, frozen=True, kw_only=True):
    """Work on files below the configured root."""

    operation: Literal["read", "write", "append", "delete", "copy"] = "write"
    file_path: str = ""
    content: Any = None
    destination: str = ""
    format: str = ""
    operations: list[Object] = []
    additional_files: list[Object] = []


class FileOperationReply(Wire, frozen=True, kw_only=True):
    """Which keys are set depends on the operation."""

    operation: str
    file_path: str
    content: Any = None
    size: int | None = None
    bytes_written: int | None = None
    bytes_appended: int | None = None
    deleted: int | None = None
    copied: bool | None = None
    destination: str | None = None
    files: list[Object] | None = None


class CustomTaskRequest(Request, frozen=True, kw_only=True):
    """Run a handler that the operator registered."""

    task_name: str
    parameters: Object = {}


class CustomTaskReply(Wire, frozen=True, kw_only=True):
    """What the handler answered."""

    result: Any
    task_name: str


class TemplateRenderRequest(Wire, frozen=True, kw_only=True):
    """Fill the templates in parameters meant for an agent that knows no templates."""

    parameters: Object
    variables: Object = {}
    declared: list[str] = []


class TemplateRenderReply(Wire, frozen=True, kw_only=True):
    """The parameters with every template replaced."""

    parameters: Object


class TaskCancelRequest(Wire, frozen=True, kw_only=True):
    """Stop working on an attempt; its result is no longer wanted."""

    token: str
    reason: str = ""


class TaskCancelReply(Wire, frozen=True, kw_only=True):
    """`found` is false when the executor does not have that attempt (any more)."""

    found: bool


class TaskSettledRequest(Wire, frozen=True, kw_only=True):
    """The results of these attempts are in the log (or will never be wanted): the executor need not keep them."""

    tokens: list[str]


class TaskSettledReply(Wire, frozen=True, kw_only=True):
    """How many of them were still kept."""

    removed: int


# --- state manager, public ----------------------------------------------------------------------------------


class StateGetRequest(Request, frozen=True, kw_only=True):
    """The state kept under an instance id; of a running instance, its context variables."""

    workflow_instance_id: str
    keys: list[str] = []
    include_history: bool = False


class StateGetReply(Wire, frozen=True, kw_only=True):
    """`version` 0 means that nothing was ever set. `history` is newest first, 50 entries at most."""

    state: Object
    version: int
    history: list[Object] = []


class StateSetRequest(Request, frozen=True, kw_only=True):
    """Put a whole state. Existing state is replaced only with `overwrite`."""

    workflow_instance_id: str
    state: Object
    overwrite: bool = False
    description: str = ""


class StateSetReply(Wire, frozen=True, kw_only=True):
    """The version written."""

    success: bool
    version: int


class StateUpdateRequest(Request, frozen=True, kw_only=True):
    """Change keys (merge) or replace the whole."""

    workflow_instance_id: str
    updates: Object
    merge_strategy: Literal["merge", "replace"] = "merge"
    description: str = ""


class StateUpdateReply(Wire, frozen=True, kw_only=True):
    """The version written and the keys it touched."""

    success: bool
    version: int
    updated_keys: list[str]


class StateDeleteRequest(Request, frozen=True, kw_only=True):
    """Delete a state, or only some of its keys."""

    workflow_instance_id: str
    keys: list[str] = []


class StateDeleteReply(Wire, frozen=True, kw_only=True):
    """What was there and is gone."""

    success: bool
    deleted_keys: list[str]


class StateListRequest(Request, frozen=True, kw_only=True):
    """States by id, newest change first."""

    prefix: str = ""
    limit: Limit = 100


class StateListReply(Wire, frozen=True, kw_only=True):
    """Each: workflow_instance_id, version, created_at, updated_at."""

    states: list[Object]
    total_count: int


class StateQueryRequest(Request, frozen=True, kw_only=True):
    """States whose values match. A filter is {key: value} or {key: {"op": "gt", "value": 5}}; keys may be dotted."""

    filters: Object = {}
    projection: list[str] = []
    limit: Limit = 100


class StateQueryReply(Wire, frozen=True, kw_only=True):
    """The matches, each with its workflow_instance_id, version and (projected) state."""

    results: list[Object]
    total_count: int


class StateBackupRequest(Request, frozen=True, kw_only=True):
    """Write a consistent copy of the store while it is in use. `name` is a plain file name in the backup folder."""

    name: str = ""


class StateBackupReply(Wire, frozen=True, kw_only=True):
    """Where the copy is and how large."""

    backup: str
    size_bytes: int
    created_at: str


class StateRestoreRequest(Request, frozen=True, kw_only=True):
    """Bring back the states (not the log) of a backup."""

    name: str
    workflow_instance_ids: list[str] = []


class StateRestoreReply(Wire, frozen=True, kw_only=True):
    """How many states were restored."""

    restored: int


class ContextMergeRequest(Request, frozen=True, kw_only=True):
    """Copy state between instances, or merge AMP context objects (`context_id`, `source_context_ids`)."""

    source_instance_id: str = ""
    target_instance_id: str = ""
    keys: list[str] = []
    merge_strategy: Literal["merge", "replace"] = "merge"
    context_id: str = ""
    source_context_ids: list[str] = []


class ContextMergeReply(Wire, frozen=True, kw_only=True):
    """The keys that were written."""

    success: bool
    merged_keys: list[str]
    context: Object | None = None


class ContextIsolateRequest(Request, frozen=True, kw_only=True):
    """Give an instance a private copy of its state under a new id, or of some of its keys."""

    workflow_instance_id: str
    isolated_id: str = ""
    keys: list[str] = []


class ContextIsolateReply(Wire, frozen=True, kw_only=True):
    """The id of the copy."""

    isolated_id: str
    version: int
    keys: list[str]


class ContextCreateRequest(Request, frozen=True, kw_only=True):
    """Create an AMP context object."""

    session_id: str = ""
    shared_memory: Object = {}
    agent_memory: Object = {}
    ttl_seconds: float | None = None
    context_id: str = ""


class ContextGetRequest(Request, frozen=True, kw_only=True):
    """Read an AMP context object; another agent's private memory is never in the answer."""

    context_id: str


class ContextUpdateRequest(Request, frozen=True, kw_only=True):
    """Change keys of the shared memory and of the caller's own memory."""

    context_id: str
    shared_memory: Object = {}
    agent_memory: Object = {}
    merge_strategy: Literal["merge", "replace"] = "merge"


class ContextForkRequest(Request, frozen=True, kw_only=True):
    """Create a child context that starts with the parent's shared memory."""

    context_id: str
    session_id: str = ""


class ContextReply(Wire, frozen=True, kw_only=True):
    """The context object as the caller may see it."""

    context: Object


# --- condition evaluator, public ----------------------------------------------------------------------------

ConditionType = Literal["python", "simple", "regex", "custom", "json_path"]


class ConditionEvaluateRequest(Request, frozen=True, kw_only=True):
    """Is a condition true in a context?"""

    expression: str
    context: Object = {}
    condition_type: ConditionType = "python"
    cache_key: str = ""
    use_cache: bool = True


class ConditionEvaluateReply(Wire, frozen=True, kw_only=True):
    """`details`: expression, condition_type, context_keys, evaluation_successful, error."""

    result: bool
    details: Object
    evaluation_time_ms: float
    from_cache: bool


class ConditionBatchRequest(Request, frozen=True, kw_only=True):
    """Several conditions over one context."""

    conditions: list[Object]
    context: Object = {}
    operator: Literal["and", "or", "all", "any"] = "and"


class ConditionBatchReply(Wire, frozen=True, kw_only=True):
    """The joined result and each one's."""

    overall_result: bool
    individual_results: list[Object]
    evaluation_time_ms: float


class ConditionValidateRequest(Request, frozen=True, kw_only=True):
    """Would a condition parse? Which names does it use? Nothing is evaluated."""

    expression: str
    condition_type: ConditionType = "python"


class ConditionValidateReply(Wire, frozen=True, kw_only=True):
    """`errors` say what is wrong and where."""

    valid: bool
    errors: list[Object]
    names: list[str]


class ExpressionParseRequest(Request, frozen=True, kw_only=True):
    """The structure of an expression."""

    expression: str


class ExpressionParseReply(Wire, frozen=True, kw_only=True):
    """`tree` is the syntax tree as nested objects; `names` and `functions` are what it refers to."""

    valid: bool
    tree: Object | None
    names: list[str]
    functions: list[str]
    errors: list[Object]


class DecisionTreeRequest(Request, frozen=True, kw_only=True):
    """Walk a tree of conditions to a leaf."""

    tree: Object
    context: Object = {}


class DecisionTreeReply(Wire, frozen=True, kw_only=True):
    """`path` is a list of "true", "false", "error"."""

    result: Any
    path: list[str]
    evaluations: list[Object]


class RuleEngineRequest(Request, frozen=True, kw_only=True):
    """Find the rules that apply, by priority."""

    rules: list[Object]
    context: Object = {}
    execution_mode: Literal["first_match", "all_matches", "highest_priority"] = "first_match"


class RuleEngineReply(Wire, frozen=True, kw_only=True):
    """The rules that matched and their actions."""

    matched_rules: list[Object]
    actions: list[Any]
    execution_time_ms: float


# --- error handler, public ----------------------------------------------------------------------------------


class ErrorHandleRequest(Request, frozen=True, kw_only=True):
    """What should happen about this error? With `auto_recover` the handler also orders it.

    `error`: code, message, details. `context`: workflow_instance_id, workflow_id, task_id, agent_id, attempt,
    on_error (the definition's wish: action, fallback).
    """

    error: Object
    context: Object = {}
    auto_recover: bool = True
    escalate_immediately: bool = False


class ErrorHandleReply(Wire, frozen=True, kw_only=True):
    """`recovery_action` is a RecoveryAction; `delay_seconds` belongs to retry and pause."""

    handled: bool
    recovery_action: RecoveryAction
    escalated: bool
    recommendations: list[str]
    severity: Severity
    error_id: str
    delay_seconds: float = 0.0
    reason: str = ""


class ErrorRecoverRequest(Request, frozen=True, kw_only=True):
    """Order a recovery action."""

    recovery_action: str
    error_context: Object
    recovery_config: Object = {}


class ErrorRecoverReply(Wire, frozen=True, kw_only=True):
    """`next_action` is "escalate" when the order failed."""

    success: bool
    result: Object
    next_action: str


class ErrorEscalateRequest(Request, frozen=True, kw_only=True):
    """Bring an error to people's attention."""

    error: Object
    context: Object = {}
    reason: str = ""


class ErrorEscalateReply(Wire, frozen=True, kw_only=True):
    """The alert that was raised."""

    escalated: bool
    escalation_id: str
    severity: Severity


class ErrorAnalyzeRequest(Request, frozen=True, kw_only=True):
    """What went wrong lately?"""

    time_window_hours: float = 24
    error_types: list[str] = []
    workflow_ids: list[str] = []


class ErrorAnalyzeReply(Wire, frozen=True, kw_only=True):
    """Counts, patterns, advice."""

    error_summary: Object
    patterns: list[Object]
    recommendations: list[str]


class CircuitBreakerRequest(Request, frozen=True, kw_only=True):
    """Look at or change the breaker of a resource."""

    operation: Literal["check", "trip", "reset", "status"]
    resource_id: str
    config: Object = {}


class CircuitBreakerReply(Wire, frozen=True, kw_only=True):
    """`state`: closed, open, half_open. Times are ISO 8601 or empty."""

    state: str
    failure_count: int
    last_failure: str
    next_attempt: str
    allowed: bool = True


class RecoveryStrategyRequest(Request, frozen=True, kw_only=True):
    """Which recovery would be chosen for an error code, without recording anything."""

    error_code: str
    error_message: str = ""
    context: Object = {}


class RecoveryStrategyReply(Wire, frozen=True, kw_only=True):
    """The choice and its reason."""

    recovery_action: RecoveryAction
    severity: Severity
    delay_seconds: float
    reason: str


class ErrorPatternsRequest(Request, frozen=True, kw_only=True):
    """The known patterns and how often each was seen."""

    time_window_hours: float = 24


class ErrorPatternsReply(Wire, frozen=True, kw_only=True):
    """Each: name, pattern, severity, action, count, last_seen."""

    patterns: list[Object]


# --- monitor, public ----------------------------------------------------------------------------------------


class MetricsGetRequest(Request, frozen=True, kw_only=True):
    """Metrics of workflows, tasks, agents or the system over a time range such as 30m, 1h, 7d."""

    metric_type: Literal["workflow", "task", "agent", "system"]
    workflow_id: str = ""
    task_id: str = ""
    agent_id: str = ""
    time_range: str = "1h"


class MetricsGetReply(Wire, frozen=True, kw_only=True):
    """By workflow, task or agent id; one object for the system."""

    metrics: Object
    timestamp: str


class MetricsAggregateRequest(Request, frozen=True, kw_only=True):
    """Executions counted in steps of time."""

    metric: Literal["executions", "failures", "duration", "tasks"] = "executions"
    time_range: str = "24h"
    step_seconds: Annotated[float, msgspec.Meta(ge=1)] = 900
    workflow_id: str = ""


class MetricsAggregateReply(Wire, frozen=True, kw_only=True):
    """Each point: at, value, and by status where that applies. `step_seconds` is the step used: whole minutes."""

    points: list[Object]
    timestamp: str
    step_seconds: float = 0.0


class AlertCreateRequest(Request, frozen=True, kw_only=True):
    """Raise an alert."""

    alert_type: str
    severity: Literal["info", "warning", "error", "critical"]
    title: str
    description: str
    metadata: Object = {}


class AlertCreateReply(Wire, frozen=True, kw_only=True):
    """`created` is false when the same alert was open already and was counted up."""

    alert_id: str
    created: bool


class AlertListRequest(Request, frozen=True, kw_only=True):
    """Alerts, newest first."""

    severity: str = ""
    include_resolved: bool = False
    limit: Limit = 100


class AlertListReply(Wire, frozen=True, kw_only=True):
    """Each: id, type, severity, title, description, metadata, created_at, acknowledged, resolved, count."""

    alerts: list[Object]
    total_count: int


class AlertUpdateRequest(Request, frozen=True, kw_only=True):
    """Say that an alert was seen or that its cause is gone."""

    alert_id: str
    acknowledged: bool = False
    resolved: bool = False


class AlertUpdateReply(Wire, frozen=True, kw_only=True):
    """`alert` is as it stands now; `updated` is false when nothing changed."""

    alert: Object
    updated: bool


class HealthCheckRequest(Request, frozen=True, kw_only=True):
    """Are the agents well? With `agent_id`, one of them."""

    agent_id: str = ""


class HealthCheckReply(Wire, frozen=True, kw_only=True):
    """`status`: healthy, degraded or unhealthy; `agents` by id. `system` is how busy the machine is, in percent."""

    status: str
    agents: Object
    checked_at: str
    system: Object = {}
    missing_roles: list[str] = []


class PerformanceReportRequest(Request, frozen=True, kw_only=True):
    """A report over a time range."""

    report_type: Literal["summary", "detailed", "trends"]
    time_range: str = "24h"
    workflow_ids: list[str] = []
    include_predictions: bool = False


class PerformanceReportReply(Wire, frozen=True, kw_only=True):
    """The report's fields depend on its type."""

    report: Object
    generated_at: str


class DashboardDataRequest(Request, frozen=True, kw_only=True):
    """The data behind the dashboard's widgets: overview, performance, alerts, workflows."""

    widgets: list[str] = msgspec.field(default_factory=lambda: ["overview"])
    refresh_interval: int = 30


class DashboardDataReply(Wire, frozen=True, kw_only=True):
    """By widget."""

    dashboard: Object
    last_updated: str


# --- the table ----------------------------------------------------------------------------------------------


def _public(id: str, request: type, reply: type, description: str, *, free: bool = False) -> Contract:
    return Contract(
        id=id, request=request, reply=reply, description=description, category=id.partition("-")[0], free=free
    )


def _internal(id: str, request: type, reply: type, description: str, *, free: bool = False) -> Contract:
    return Contract(
        id=id,
        request=request,
        reply=reply,
        description=description,
        category="internal",
        internal=True,
        free=free,
    )


WORKFLOW_CREATE = _public(
    "workflow-create", WorkflowCreateRequest, WorkflowCreated, "Check and store a definition"
)
WORKFLOW_LOAD = _public(
    "workflow-load", WorkflowLoadRequest, WorkflowCreated, "Store a definition from a file"
)
WORKFLOW_START = _public("workflow-start", WorkflowStartRequest, WorkflowStarted, "Start an instance")
WORKFLOW_STOP = _public(
    "workflow-stop", WorkflowControlRequest, WorkflowControlled, "Stop an instance", free=True
)
WORKFLOW_PAUSE = _public(
    "workflow-pause", WorkflowControlRequest, WorkflowControlled, "Pause an instance", free=True
)
WORKFLOW_RESUME = _public(
    "workflow-resume", WorkflowControlRequest, WorkflowControlled, "Resume an instance", free=True
)
WORKFLOW_STATUS = _public(
    "workflow-status", WorkflowStatusRequest, WorkflowStatus, "Where an instance stands"
)
WORKFLOW_LIST = _public("workflow-list", WorkflowListRequest, WorkflowList, "The stored workflows")
TASK_RETRY = _public("task-retry", TaskRetryRequest, TaskControlled, "Run a failed task again", free=True)
TASK_SKIP = _public("task-skip", TaskSkipRequest, TaskControlled, "Skip a task", free=True)
TASK_COMPLETE = _internal(
    "task-complete", TaskCompleteRequest, TaskControlled, "Say what a task of unknown outcome gave", free=True
)
TASK_HEARTBEAT = _internal(
    "task-heartbeat", TaskHeartbeatRequest, TaskHeartbeatReply, "Say that attempts are alive", free=True
)
WORKFLOW_WHY = _internal(
    "workflow-why", WorkflowWhyRequest, WorkflowWhy, "Why an instance does not move", free=True
)

TASK_EXECUTE = _public("task-execute", TaskExecuteRequest, TaskResult, "Run a task of any known type")
TASK_API_CALL = _public("task-api-call", ApiCallRequest, ApiCallReply, "Make HTTP requests")
TASK_DATA_TRANSFORM = _public(
    "task-data-transform", DataTransformRequest, DataTransformReply, "Transform data"
)
TASK_SUBPROCESS = _public("task-subprocess", SubprocessRequest, SubprocessReply, "Run an allowed program")
TASK_CUSTOM = _public("task-custom", CustomTaskRequest, CustomTaskReply, "Run a registered handler")
TASK_VALIDATION = _public("task-validation", ValidationRequest, ValidationReply, "Check data against rules")
TASK_FILE_OPERATION = _public(
    "task-file-operation", FileOperationRequest, FileOperationReply, "Work on files below the root"
)
TEMPLATE_RENDER = _internal("template-render", TemplateRenderRequest, TemplateRenderReply, "Fill templates")
TASK_SETTLED = _internal(
    "task-settled", TaskSettledRequest, TaskSettledReply, "Say that results are recorded", free=True
)
TASK_CANCEL = _internal("task-cancel", TaskCancelRequest, TaskCancelReply, "Stop an attempt", free=True)

STATE_GET = _public("state-get", StateGetRequest, StateGetReply, "Read a state")
STATE_SET = _public("state-set", StateSetRequest, StateSetReply, "Put a whole state")
STATE_UPDATE = _public("state-update", StateUpdateRequest, StateUpdateReply, "Change a state")
STATE_DELETE = _public("state-delete", StateDeleteRequest, StateDeleteReply, "Delete a state or keys of it")
STATE_LIST = _public("state-list", StateListRequest, StateListReply, "List states")
STATE_QUERY = _public("state-query", StateQueryRequest, StateQueryReply, "Find states by their values")
STATE_BACKUP = _public("state-backup", StateBackupRequest, StateBackupReply, "Copy the store")
STATE_RESTORE = _public("state-restore", StateRestoreRequest, StateRestoreReply, "Bring states back")
CONTEXT_MERGE = _public("context-merge", ContextMergeRequest, ContextMergeReply, "Merge states or contexts")
CONTEXT_ISOLATE = _public(
    "context-isolate", ContextIsolateRequest, ContextIsolateReply, "Copy a state privately"
)
CONTEXT_CREATE = _public("context-create", ContextCreateRequest, ContextReply, "Create a context")
CONTEXT_GET = _public("context-get", ContextGetRequest, ContextReply, "Read a context")
CONTEXT_UPDATE = _public("context-update", ContextUpdateRequest, ContextReply, "Change a context")
CONTEXT_FORK = _public("context-fork", ContextForkRequest, ContextReply, "Create a child context")

STATE_APPEND = _internal("state-append", AppendRequest, AppendReply, "Append events to the log")
LOG_READ = _internal("log-read", LogReadRequest, LogReadReply, "Read the log")
INBOX_PUT = _internal("inbox-put", InboxPutRequest, InboxPutReply, "Put something into an instance's inbox")
INBOX_READ = _internal("inbox-read", InboxReadRequest, InboxReadReply, "Read what is in the inboxes")
ENGINE_LEASE = _internal("engine-lease", LeaseRequest, LeaseReply, "Say that an engine lives", free=True)
INSTANCE_CLAIM = _internal("instance-claim", ClaimRequest, ClaimReply, "Take over instances without an owner")
INSTANCE_GET = _internal("instance-get", InstanceGetRequest, InstanceGetReply, "One instance's row")
INSTANCE_LIST = _internal("instance-list", InstanceListRequest, InstanceListReply, "Instances' rows")
INSTANCE_ORPHANS = _internal(
    "instance-orphans", OrphansRequest, OrphansReply, "Instances that nothing will wake", free=True
)
STATE_PURGE = _internal("state-purge", PurgeRequest, PurgeReply, "Remove instances that ended long ago")
DEFINITION_PUT = _internal("definition-put", DefinitionPutRequest, DefinitionPutReply, "Store a definition")
DEFINITION_GET = _internal("definition-get", DefinitionGetRequest, DefinitionGetReply, "Read a definition")
DEFINITION_LIST = _internal("definition-list", DefinitionListRequest, DefinitionListReply, "Read definitions")

CONDITION_EVALUATE = _public(
    "condition-evaluate", ConditionEvaluateRequest, ConditionEvaluateReply, "Evaluate a condition"
)
CONDITION_BATCH_EVALUATE = _public(
    "condition-batch-evaluate", ConditionBatchRequest, ConditionBatchReply, "Evaluate conditions together"
)
CONDITION_VALIDATE = _public(
    "condition-validate", ConditionValidateRequest, ConditionValidateReply, "Check a condition"
)
EXPRESSION_PARSE = _public(
    "expression-parse", ExpressionParseRequest, ExpressionParseReply, "Parse an expression"
)
DECISION_TREE = _public("decision-tree", DecisionTreeRequest, DecisionTreeReply, "Walk a decision tree")
RULE_ENGINE = _public("rule-engine", RuleEngineRequest, RuleEngineReply, "Find the rules that apply")

ERROR_HANDLE = _public("error-handle", ErrorHandleRequest, ErrorHandleReply, "Decide about an error")
ERROR_RECOVER = _public("error-recover", ErrorRecoverRequest, ErrorRecoverReply, "Order a recovery")
ERROR_ESCALATE = _public("error-escalate", ErrorEscalateRequest, ErrorEscalateReply, "Escalate an error")
ERROR_ANALYZE = _public("error-analyze", ErrorAnalyzeRequest, ErrorAnalyzeReply, "Sum up errors")
CIRCUIT_BREAKER = _public(
    "circuit-breaker", CircuitBreakerRequest, CircuitBreakerReply, "Use a circuit breaker"
)
RECOVERY_STRATEGY = _public(
    "recovery-strategy", RecoveryStrategyRequest, RecoveryStrategyReply, "Preview a recovery"
)
ERROR_PATTERNS = _public("error-patterns", ErrorPatternsRequest, ErrorPatternsReply, "The known patterns")

METRICS_GET = _public("metrics-get", MetricsGetRequest, MetricsGetReply, "Read metrics")
METRICS_AGGREGATE = _public(
    "metrics-aggregate", MetricsAggregateRequest, MetricsAggregateReply, "Metrics in steps of time"
)
ALERT_CREATE = _public("alert-create", AlertCreateRequest, AlertCreateReply, "Raise an alert")
ALERT_LIST = _public("alert-list", AlertListRequest, AlertListReply, "List alerts")
ALERT_UPDATE = _public(
    "alert-update", AlertUpdateRequest, AlertUpdateReply, "Acknowledge or resolve an alert"
)
HEALTH_CHECK = _public("health-check", HealthCheckRequest, HealthCheckReply, "Check the agents")
PERFORMANCE_REPORT = _public(
    "performance-report", PerformanceReportRequest, PerformanceReportReply, "Report on performance"
)
DASHBOARD_DATA = _public("dashboard-data", DashboardDataRequest, DashboardDataReply, "Data for dashboards")

CONTRACTS: Mapping[str, Contract] = {
    contract.id: contract for contract in list(globals().values()) if isinstance(contract, Contract)
}
"""Every contract by its capability's id."""

RENDERS_TEMPLATES = frozenset(
    contract.id
    for contract in (
        TASK_EXECUTE, TASK_API_CALL, TASK_DATA_TRANSFORM, TASK_SUBPROCESS, TASK_CUSTOM, TASK_VALIDATION,
        TASK_FILE_OPERATION, CONDITION_EVALUATE, CONDITION_BATCH_EVALUATE, DECISION_TREE, RULE_ENGINE,
    )
)  # fmt: skip
"""Capabilities whose agents fill templates themselves when a request carries an attempt. For all others the engine
has the parameters filled first (`template-render`)."""

EVENT_LOG_ADVANCED = "log.advanced"
"""Hint {offset}: the newest committed offset."""
EVENT_INBOX_FILLED = "inbox.filled"
"""Hint {instance_id, owner}: something lies in the inbox of an instance."""
EVENT_INSTANCE_OVERDUE = "instance.overdue"
"""Hint {instance_id, owner}: the time at which this instance was to be looked at is over."""
EVENT_ORPHANS_CHANGED = "orphans.changed"
"""Hint {count}: a sweep found other orphans than the one before it."""
EVENT_INSTANCES_CLAIMABLE = "instances.claimable"
"""Hint {}: unfinished instances have no live owner."""
EVENT_AGENT_JOINED = "agent.joined"
EVENT_AGENT_LEFT = "agent.left"
"""From the router, {agent_id, session_id, capabilities}."""
EVENT_ERROR_ESCALATED = "error.escalated"
EVENT_STATE_UPDATED = "state.updated"
EVENT_ALERT_CHANGED = "alert.changed"
EVENT_TASK_PROGRESS = "task.progress"


@cache
def schema_of(struct: type) -> dict[str, Any]:
    """Return the JSON Schema of a struct, self-contained, as announced at registration.

    It is made once: never change it.
    """
    (schema,), components = msgspec.json.schema_components((struct,), ref_template="#/$defs/{name}")
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    root = dict(components.pop(name)) if name else dict(schema)
    if components:
        root["$defs"] = components
    return root
