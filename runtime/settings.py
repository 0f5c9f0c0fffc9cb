"""The settings of every process: typed, layered, each read and obeyed by the code that owns its section.

Precedence: `AMP_*` environment over the YAML file over the defaults below. Unknown keys are refused with a
suggestion. A process's `main` loads them once and passes its section down; nothing else reads them.
"""

import difflib
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from orchestration.definition.yaml_source import read_yaml

DEFAULT_CONFIG_PATH = Path("config/agent_config.yaml")
CONFIG_PATH_VARIABLE = "AMP_CONFIG"
ENVIRONMENT_PREFIX = "AMP_"
NESTING = "__"
MAX_CONFIG_BYTES = 1024 * 1024
MAX_ALERT_RULES = 100

_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
"""What people write for what msgspec reads as true and false only."""

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=1024, le=1024**4)]


class SettingsError(Exception):
    """The settings cannot be used. The message names every problem, its place and the cure."""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A group of settings. What a type cannot say is checked by `__post_init__`, whose ValueError names the setting."""


S = TypeVar("S", bound=Section)


class MeshSettings(Section, frozen=True, kw_only=True):
    """Where the router is and how an agent behaves on the mesh."""

    router_url: str = "ws://127.0.0.1:8079/amp/v1/ws"
    host_router: bool = True
    """Host a router in this process when none answers at a loopback address."""
    api_key: str | None = None
    heartbeat_interval_seconds: Seconds = 30
    lost_after_seconds: Seconds = 8
    """A router or an agent that gives no sign of life for so long is lost; pings go out four times as often."""
    max_frame_bytes: Bytes = 8 * 1024 * 1024


class AgentSection(Section, frozen=True, kw_only=True):
    """What every agent's section has."""

    host: str = "127.0.0.1"
    port: Port
    agent_id: str
    drain_timeout_seconds: Seconds = 10


class WorkflowEngineSettings(AgentSection, frozen=True, kw_only=True):
    """Section `workflow_engine`."""

    port: Port = 8080
    agent_id: str = "workflow-engine"
    max_concurrent_workflows: Count = 50
    max_pending_workflows: Count = 100_000
    workflow_timeout_default: Seconds = 3600
    workflow_dirs: tuple[str, ...] = ("workflows",)
    load_workflows_on_start: bool = True
    question_timeout_seconds: Seconds = 5
    lease_seconds: Seconds = 15


class HttpSettings(Section, frozen=True, kw_only=True):
    """Section `task_executor.http`."""

    allowed_networks: tuple[str, ...] = ()
    """Networks or host:port pairs that are reachable although they are loopback or private."""
    max_response_bytes: Bytes = 512 * 1024
    max_redirects: Annotated[int, Meta(ge=0, le=20)] = 5
    connect_timeout_seconds: Seconds = 10
    max_connections: Count = 100
    verify_tls: bool = True


class SubprocessSettings(Section, frozen=True, kw_only=True):
    """Section `task_executor.subprocess`."""

    allowed_commands: tuple[str, ...] = ()
    max_output_bytes: Bytes = 256 * 1024
    memory_limit_bytes: Bytes = 1024 * 1024 * 1024
    cpu_limit_seconds: Seconds = 3600


class FileSettings(Section, frozen=True, kw_only=True):
    """Section `task_executor.files`."""

    root: str = "files"
    """A relative path is below `data_dir`."""
    max_file_bytes: Bytes = 900 * 1024


class SpoolSettings(Section, frozen=True, kw_only=True):
    """Section `task_executor.spool`: results that are kept until their engine has recorded them."""

    max_bytes: Bytes = 256 * 1024 * 1024
    max_files: Count = 10_000


class TaskExecutorSettings(AgentSection, frozen=True, kw_only=True):
    """Section `task_executor`."""

    port: Port = 8081
    agent_id: str = "task-executor-1"
    max_concurrent_tasks: Count = 10
    task_timeout_default: Seconds = 300
    max_result_bytes: Bytes = 768 * 1024
    custom_handlers_module: str | None = None
    custom_handlers_path: str | None = None
    http: HttpSettings = HttpSettings()
    subprocess: SubprocessSettings = SubprocessSettings()
    files: FileSettings = FileSettings()
    spool: SpoolSettings = SpoolSettings()


class StateManagerSettings(AgentSection, frozen=True, kw_only=True):
    """Section `state_manager`."""

    port: Port = 8082
    agent_id: str = "state-manager"
    use_redis: bool = False
    redis_url: str = "redis://localhost:6379"
    cache_ttl: Seconds = 300
    cache_entries: Count = 10_000
    max_state_bytes: Bytes = 768 * 1024


class ConditionEvaluatorSettings(AgentSection, frozen=True, kw_only=True):
    """Section `condition_evaluator`."""

    port: Port = 8083
    agent_id: str = "condition-evaluator"
    cache_ttl: Seconds = 60
    cache_entries: Count = 10_000
    safe_evaluation: bool = True
    max_tree_depth: Count = 20
    max_tree_nodes: Count = 1000
    max_expression_length: Count = 10_000
    evaluation_timeout: Seconds = 10

    def __post_init__(self) -> None:
        if not self.safe_evaluation:
            raise ValueError("safe_evaluation: can only be true")


class ErrorHandlerSettings(AgentSection, frozen=True, kw_only=True):
    """Section `error_handler`."""

    port: Port = 8084
    agent_id: str = "error-handler"
    max_retry_attempts: Annotated[int, Meta(ge=0, le=100)] = 3
    retry_delay_seconds: Seconds = 5
    pause_duration_seconds: Seconds = 300
    escalation_timeout: Seconds = 300
    max_records_per_instance: Count = 1000


class AlertRuleSettings(Section, frozen=True, kw_only=True):
    """One of `monitor_agent.alert_rules`: an alert that is open while its condition is true.

    `condition` is an expression over the last hour's metrics of each workflow, or of the system.
    """

    alert_type: Annotated[str, Meta(min_length=1, max_length=100)]
    severity: Literal["info", "warning", "error", "critical"] = "warning"
    title: Annotated[str, Meta(min_length=1, max_length=200)]
    description: Annotated[str, Meta(max_length=2000)] = ""
    condition: Annotated[str, Meta(min_length=1, max_length=2000)]
    scope: Literal["workflow", "system"] = "workflow"


class MonitorAgentSettings(AgentSection, frozen=True, kw_only=True):
    """Section `monitor_agent`."""

    port: Port = 8085
    agent_id: str = "monitor-agent"
    metrics_retention_hours: Count = 168
    alert_check_interval: Seconds = 60
    health_check_interval: Seconds = 30
    max_alerts: Count = 1000
    alert_rules: tuple[AlertRuleSettings, ...] = ()

    def __post_init__(self) -> None:
        if len(self.alert_rules) > MAX_ALERT_RULES:
            raise ValueError(f"alert_rules: at most {MAX_ALERT_RULES}, not {len(self.alert_rules)}")


class CircuitBreakerSettings(Section, frozen=True, kw_only=True):
    """Section `circuit_breaker`."""

    failure_threshold: Count = 5
    timeout_seconds: Seconds = 300
    half_open_max_calls: Count = 3


class DatabaseSettings(Section, frozen=True, kw_only=True):
    """Section `database`. A relative path is below `data_dir`."""

    sqlite_path: str = "workflow_state.db"
    redis_enabled: bool = False
    redis_url: str = "redis://localhost:6379"
    backup_interval_hours: Annotated[float, Meta(ge=0, le=8760)] = 24
    backups_kept: Count = 7
    reserve_megabytes: Annotated[int, Meta(ge=0, le=10_240)] = 64
    retention_days: Annotated[float, Meta(ge=0, le=36_500)] = 30

    def __post_init__(self) -> None:
        if 0 < self.retention_days < 1:
            raise ValueError("retention_days: at least 1 day, or 0 to keep everything")


class WebSettings(Section, frozen=True, kw_only=True):
    """Section `web`."""

    host: str = "127.0.0.1"
    port: Port = 8090
    agent_id: str = "web-dashboard"
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    max_body_bytes: Bytes = 1024 * 1024
    max_live_clients: Count = 500
    request_timeout_seconds: Seconds = 30


class LoggingSettings(Section, frozen=True, kw_only=True):
    """Section `logging`. Without `format` lines are JSON when written to a file or pipe, readable on a terminal."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    format: str | None = None

    def __post_init__(self) -> None:
        if self.format is None:
            return
        try:
            logging.Formatter(self.format).format(logging.makeLogRecord({}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"format: {error}") from None


class Settings(Section, frozen=True, kw_only=True):
    """Everything, one attribute a section."""

    data_dir: str = "data"
    mesh: MeshSettings = MeshSettings()
    workflow_engine: WorkflowEngineSettings = WorkflowEngineSettings()
    task_executor: TaskExecutorSettings = TaskExecutorSettings()
    state_manager: StateManagerSettings = StateManagerSettings()
    condition_evaluator: ConditionEvaluatorSettings = ConditionEvaluatorSettings()
    error_handler: ErrorHandlerSettings = ErrorHandlerSettings()
    monitor_agent: MonitorAgentSettings = MonitorAgentSettings()
    circuit_breaker: CircuitBreakerSettings = CircuitBreakerSettings()
    database: DatabaseSettings = DatabaseSettings()
    web: WebSettings = WebSettings()
    logging: LoggingSettings = LoggingSettings()


def load_settings(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings from defaults, file, environment and `overrides`, each over the one before.

    Args:
        path: The YAML file; by default `AMP_CONFIG`, else `config/agent_config.yaml` when that exists.
        environment: By default the process's. `AMP_TASK_EXECUTOR__PORT=9001` sets `task_executor.port`.
        overrides: Nested values from the command line.

    Raises: SettingsError naming every problem.
    """
    environ = os.environ if environment is None else environment
    named = path or (Path(environ[CONFIG_PATH_VARIABLE]) if environ.get(CONFIG_PATH_VARIABLE) else None)
    values: dict[str, Any] = {}
    if named is not None:
        values = _read_file(named)
    elif DEFAULT_CONFIG_PATH.is_file():
        values = _read_file(DEFAULT_CONFIG_PATH)
    _merge(values, _from_environment(environ))
    _merge(values, dict(overrides or {}))
    return settings_from(values)


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Return the settings that these nested values name, with defaults for all others.

    Raises: SettingsError naming every problem.
    """
    problems: list[str] = []
    settings = _section(Settings, values, "", problems)
    if settings is None or problems:
        raise SettingsError("settings cannot be used:\n  " + "\n  ".join(problems))
    return settings


def _read_file(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise SettingsError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        document = read_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not UTF-8") from None
    if document.problems:
        described = "\n  ".join(problem.describe(str(path)) for problem in document.problems)
        raise SettingsError(f"not YAML that can be used:\n  {described}")
    if document.value is None:
        return {}
    if not isinstance(document.value, dict):
        raise SettingsError(f"{path}: the top level must be a mapping of sections")
    return document.value


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the nested values of the `AMP_SECTION__SETTING` variables.

    Variables without `__` are ours only when they name a setting of the top level; others are left alone.
    """
    values: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        parts = name.removeprefix(ENVIRONMENT_PREFIX).lower().split(NESTING)
        if not name.startswith(ENVIRONMENT_PREFIX) or (
            len(parts) == 1 and parts[0] not in Settings.__struct_fields__
        ):
            continue
        target = values
        for part in parts[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise SettingsError(f"{name}: {part} is a setting, not a section")
        target[parts[-1]] = _value_of(name, text)
    return values


def _value_of(name: str, text: str) -> Any:
    """Return a variable's text, read as YAML when it is a list or a mapping or null."""
    if text[:1] not in ("[", "{") and text not in ("null", "~"):
        return text
    document = read_yaml(text)
    if document.problems:
        raise SettingsError("\n  ".join(problem.describe(name) for problem in document.problems))
    return document.value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _section(kind: type[S], values: object, place: str, problems: list[str]) -> S | None:
    """Return a section made from values, or None after adding to `problems` what is wrong, each with its place."""
    if not isinstance(values, Mapping):
        problems.append(f"{place}: holds settings, `name: value`, not one value")
        return None
    inside = f"{place}." if place else ""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    before = len(problems)
    problems += [
        f"{inside}{name}: unknown setting{_suggestion(str(name), fields)}"
        for name in values
        if name not in fields
    ]
    problems += [
        f"{inside}{name}: is needed"
        for name, field in fields.items()
        if field.required and name not in values
    ]
    known = {
        name: _setting(field.type, values[name], f"{inside}{name}", problems)
        for name, field in fields.items()
        if name in values
    }
    if len(problems) > before:
        return None
    try:
        return kind(**known)
    except ValueError as error:
        problems.append(f"{inside}{error}")
        return None


def _setting(kind: Any, value: object, place: str, problems: list[str]) -> Any:
    """Return a value as its setting wants it, or None after adding to `problems`. Texts, as of variables, are read."""
    if _is_section(kind):
        return _section(kind, value, place, problems)
    if get_origin(kind) is tuple and _is_section(get_args(kind)[0]) and isinstance(value, (list, tuple)):
        kind = get_args(kind)[0]
        return tuple(_section(kind, item, f"{place}[{n}]", problems) for n, item in enumerate(value))
    if kind is bool and isinstance(value, str):
        value = _SWITCHES.get(value.lower(), value)
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        choices = f"; known here: {', '.join(get_args(kind))}" if get_origin(kind) is Literal else ""
        problems.append(f"{place}: {error}{choices}")
        return None


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _suggestion(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"
