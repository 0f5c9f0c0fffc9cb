-- The log, the rows that sum it up, and everything else the state manager keeps. Times are microseconds since 1970, UTC.

CREATE TABLE events (
    offset INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    type TEXT NOT NULL,
    at INTEGER NOT NULL,
    data TEXT NOT NULL,
    UNIQUE (instance_id, seq)
);

CREATE TABLE instances (
    instance_id TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    workflow_version TEXT NOT NULL,
    workflow_name TEXT NOT NULL,
    definition_hash TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    completed_at INTEGER,
    updated_at INTEGER,
    wake_at INTEGER,
    wake_reason TEXT NOT NULL,
    task_counts TEXT NOT NULL,
    current_tasks TEXT NOT NULL,
    error_code TEXT NOT NULL,
    error_message TEXT NOT NULL,
    started_by TEXT NOT NULL,
    owner TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL
);
CREATE INDEX instances_created ON instances (created_at, instance_id);
CREATE INDEX instances_workflow ON instances (workflow_id, created_at, instance_id);
CREATE INDEX instances_status ON instances (status);
CREATE INDEX instances_open ON instances (owner, created_at) WHERE status IN ('pending', 'running', 'paused');

CREATE TABLE inbox (
    inbox_id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    data TEXT NOT NULL,
    at INTEGER NOT NULL
);
CREATE INDEX inbox_instance ON inbox (instance_id, inbox_id);

-- Outlives the entry it names, so that a repeat after the entry was consumed is still known as one.
CREATE TABLE inbox_keys (
    instance_id TEXT NOT NULL,
    dedupe_key TEXT NOT NULL,
    inbox_id INTEGER NOT NULL,
    PRIMARY KEY (instance_id, dedupe_key)
) WITHOUT ROWID;

CREATE TABLE leases (
    owner TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    lease_microseconds INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE definitions (
    hash TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    version TEXT NOT NULL,
    name TEXT NOT NULL,
    content TEXT NOT NULL,
    source TEXT NOT NULL,
    format TEXT NOT NULL,
    created_at INTEGER NOT NULL
);

-- The content in force for each version of a workflow; the highest revision of a workflow is its newest.
CREATE TABLE definition_versions (
    workflow_id TEXT NOT NULL,
    version TEXT NOT NULL,
    hash TEXT NOT NULL REFERENCES definitions (hash),
    revision INTEGER NOT NULL,
    PRIMARY KEY (workflow_id, version)
) WITHOUT ROWID;
CREATE INDEX definition_versions_newest ON definition_versions (workflow_id, revision);

CREATE TABLE workflow_states (
    workflow_instance_id TEXT PRIMARY KEY,
    state_data TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
);
CREATE INDEX workflow_states_updated ON workflow_states (updated_at, workflow_instance_id);

CREATE TABLE state_history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    workflow_instance_id TEXT NOT NULL,
    state_data TEXT NOT NULL,
    version INTEGER NOT NULL,
    change_description TEXT NOT NULL,
    timestamp INTEGER NOT NULL
);
CREATE INDEX state_history_instance ON state_history (workflow_instance_id, version);

-- The top-level text values of every state, so that a query by one of them need not read every state.
CREATE TABLE context_data (
    workflow_instance_id TEXT NOT NULL,
    context_key TEXT NOT NULL,
    context_value TEXT NOT NULL,
    context_type TEXT NOT NULL,
    UNIQUE (workflow_instance_id, context_key)
);
CREATE INDEX context_data_value ON context_data (context_key, context_value);

CREATE TABLE contexts (
    context_id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    shared_memory TEXT NOT NULL,
    agent_memory TEXT NOT NULL,
    parent_context TEXT,
    root_context TEXT NOT NULL
);
CREATE INDEX contexts_expiry ON contexts (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE store_facts (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
