"""Every SQL statement of the monitor's store. Values are always bound, never formatted in."""

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tallies (
    bucket INTEGER NOT NULL, workflow_id TEXT NOT NULL, task_id TEXT NOT NULL,
    started INTEGER NOT NULL, completed INTEGER NOT NULL, failed INTEGER NOT NULL, cancelled INTEGER NOT NULL,
    skipped INTEGER NOT NULL, retried INTEGER NOT NULL, lost INTEGER NOT NULL, errors INTEGER NOT NULL,
    timed INTEGER NOT NULL, seconds_sum REAL NOT NULL, seconds_min REAL, seconds_max REAL, last_at REAL,
    PRIMARY KEY (bucket, workflow_id, task_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (
    bucket INTEGER NOT NULL, workflow_id TEXT NOT NULL, task_id TEXT NOT NULL, code TEXT NOT NULL,
    count INTEGER NOT NULL, PRIMARY KEY (bucket, workflow_id, task_id, code)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS open_instances (instance_id TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS executions (
    instance_id TEXT PRIMARY KEY, started_at REAL NOT NULL, completed_at REAL NOT NULL, data BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS executions_started_at ON executions (started_at);
CREATE INDEX IF NOT EXISTS executions_completed_at ON executions (completed_at);
CREATE TABLE IF NOT EXISTS alerts (id TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
"""

GET_META = "SELECT value FROM meta WHERE key = ?"
SET_META = (
    "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)

ADD_TALLY = """
INSERT INTO tallies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (bucket, workflow_id, task_id) DO UPDATE SET
    started = started + excluded.started, completed = completed + excluded.completed,
    failed = failed + excluded.failed, cancelled = cancelled + excluded.cancelled,
    skipped = skipped + excluded.skipped, retried = retried + excluded.retried,
    lost = lost + excluded.lost, errors = errors + excluded.errors,
    timed = timed + excluded.timed, seconds_sum = seconds_sum + excluded.seconds_sum,
    seconds_min = min(coalesce(seconds_min, excluded.seconds_min), coalesce(excluded.seconds_min, seconds_min)),
    seconds_max = max(coalesce(seconds_max, excluded.seconds_max), coalesce(excluded.seconds_max, seconds_max)),
    last_at = max(coalesce(last_at, excluded.last_at), coalesce(excluded.last_at, last_at))
"""
ADD_FAILURE = """
INSERT INTO failures VALUES (?, ?, ?, ?, ?)
ON CONFLICT (bucket, workflow_id, task_id, code) DO UPDATE SET count = count + excluded.count
"""
PUT_OPEN = """
INSERT INTO open_instances VALUES (?, ?) ON CONFLICT (instance_id) DO UPDATE SET data = excluded.data
"""
DELETE_OPEN = "DELETE FROM open_instances WHERE instance_id = ?"
PUT_EXECUTION = """
INSERT INTO executions VALUES (?, ?, ?, ?)
ON CONFLICT (instance_id) DO UPDATE
SET started_at = excluded.started_at, completed_at = excluded.completed_at, data = excluded.data
"""
PUT_ALERT = "INSERT INTO alerts VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data"
DELETE_ALERT = "DELETE FROM alerts WHERE id = ?"

ALL_OPEN = "SELECT data FROM open_instances"
ALL_ALERTS = "SELECT data FROM alerts"
RECENT_EXECUTIONS = "SELECT data FROM executions ORDER BY started_at DESC LIMIT ?"

SUM_WORKFLOWS = """
SELECT workflow_id, task_id,
    sum(started), sum(completed), sum(failed), sum(cancelled), sum(skipped), sum(retried), sum(lost),
    sum(errors), sum(timed), sum(seconds_sum), min(seconds_min), max(seconds_max), max(last_at)
FROM tallies WHERE bucket >= ?1 AND task_id = '' AND (?2 = '' OR workflow_id = ?2) GROUP BY workflow_id
"""
SUM_TASKS = """
SELECT workflow_id, task_id,
    sum(started), sum(completed), sum(failed), sum(cancelled), sum(skipped), sum(retried), sum(lost),
    sum(errors), sum(timed), sum(seconds_sum), min(seconds_min), max(seconds_max), max(last_at)
FROM tallies
WHERE bucket >= ?1 AND task_id <> '' AND (?2 = '' OR workflow_id = ?2) AND (?3 = '' OR task_id = ?3)
GROUP BY workflow_id, task_id ORDER BY workflow_id, task_id LIMIT ?4
"""
SUM_BUCKETS = """
SELECT bucket,
    sum(started), sum(completed), sum(failed), sum(cancelled), sum(skipped), sum(retried), sum(lost),
    sum(errors), sum(timed), sum(seconds_sum), min(seconds_min), max(seconds_max), max(last_at)
FROM tallies WHERE bucket >= ?1 AND (task_id <> '') = ?2 AND (?3 = '' OR workflow_id = ?3) GROUP BY bucket
"""
COUNT_FAILURES = """
SELECT workflow_id, task_id, code, sum(count) FROM failures
WHERE bucket >= ?1 AND (?2 = '' OR workflow_id = ?2) AND (task_id <> '') = ?3
GROUP BY workflow_id, task_id, code ORDER BY sum(count) DESC LIMIT ?4
"""
COUNT_ERRORS = "SELECT coalesce(sum(errors), 0) FROM tallies WHERE bucket >= ?"

FORGET_TALLIES = "DELETE FROM tallies WHERE bucket < ?"
FORGET_FAILURES = "DELETE FROM failures WHERE bucket < ?"
FORGET_EXECUTIONS = "DELETE FROM executions WHERE completed_at < ?"
CUT_EXECUTIONS = """
DELETE FROM executions WHERE instance_id IN (
    SELECT instance_id FROM executions ORDER BY completed_at DESC LIMIT -1 OFFSET ?
)
"""
FORGET_ALL = (
    "DELETE FROM tallies",
    "DELETE FROM failures",
    "DELETE FROM open_instances",
    "DELETE FROM executions",
)
