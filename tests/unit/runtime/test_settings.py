"""Settings: layers, refusals, and the shipped file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from msgspec.structs import replace

from runtime.settings import Section, Settings, SettingsError, load_settings

SHIPPED = Path(__file__).resolve().parents[3] / "config" / "agent_config.yaml"


def load(tmp_path: Path, text: str = "", **environment: str) -> Settings:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return load_settings(file, environment=environment)


def refusal(tmp_path: Path, text: str = "", **environment: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text, **environment)
    return str(caught.value)


def leaves(section: type[Section], prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            yield from leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def given(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from given(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_shipped_file_names_every_setting_and_no_other() -> None:
    assert sorted(given(yaml.safe_load(SHIPPED.read_text()))) == sorted(leaves(Settings))


def test_shipped_file_differs_from_the_defaults_only_where_it_says_so() -> None:
    shipped, defaults = load_settings(SHIPPED, environment={}), Settings()
    assert shipped.state_manager.use_redis
    assert shipped.database.redis_enabled
    assert shipped.task_executor.http.allowed_networks == ("127.0.0.0/8", "::1/128")
    assert "echo" in shipped.task_executor.subprocess.allowed_commands
    executor = replace(
        shipped.task_executor, http=defaults.task_executor.http, subprocess=defaults.task_executor.subprocess
    )
    same = replace(
        shipped,
        state_manager=replace(shipped.state_manager, use_redis=False),
        database=replace(shipped.database, redis_enabled=False),
        task_executor=executor,
    )
    assert same == defaults


def test_environment_wins_over_the_file_and_overrides_win_over_both(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("task_executor: {port: 1, host: '::1', agent_id: one}")
    environment = {"AMP_TASK_EXECUTOR__PORT": "2", "AMP_TASK_EXECUTOR__HOST": "127.0.0.2"}
    settings = load_settings(file, environment=environment, overrides={"task_executor": {"port": 3}})
    assert (settings.task_executor.port, settings.task_executor.host) == (3, "127.0.0.2")
    assert settings.task_executor.agent_id == "one"


def test_configuration_variable_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("data_dir: elsewhere")
    assert load_settings(environment={"AMP_CONFIG": str(file)}).data_dir == "elsewhere"


def test_lists_in_the_environment_are_written_as_yaml(tmp_path: Path) -> None:
    settings = load(tmp_path, AMP_TASK_EXECUTOR__SUBPROCESS__ALLOWED_COMMANDS='["echo", "git"]')
    assert settings.task_executor.subprocess.allowed_commands == ("echo", "git")


def test_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path) == Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task_executor: {prot: 1}", "task_executor.prot: unknown setting; did you mean 'port'?"),
        ("task_executr: {port: 1}", "task_executr: unknown setting; did you mean 'task_executor'?"),
        ("task_executor: {http: {max_redirect: 1}}", "did you mean 'max_redirects'?"),
        ("web: {zzz: 1}", "web.zzz: unknown setting; known here: host"),
        ("task_executor: {port: 65536}", "task_executor.port"),
        ("task_executor: {port: many}", "task_executor.port"),
        ("condition_evaluator: {safe_evaluation: false}", "condition_evaluator.safe_evaluation"),
        ("logging: {level: LOUD}", "logging.level"),
        ("logging: {format: '%(nothing)s'}", "logging.format"),
        ("logging: {format: 'no fields'}", "logging.format"),
        ("web: 8090", "web: holds settings"),
        ("database: {retention_days: 0.5}", "database.retention_days: at least 1 day"),
        ("monitor_agent: {alert_rules: 1}", "monitor_agent.alert_rules: Expected `array`, got `int`"),
        ("monitor_agent: {alert_rules: [{titel: x}]}", "monitor_agent.alert_rules[0].titel: unknown setting"),
        ("monitor_agent: {alert_rules: [{title: x}]}", "monitor_agent.alert_rules[0].condition: is needed"),
        ("- a list", "the top level must be a mapping of sections"),
        ("web: {port: 1", "not YAML"),
        ("web: {port: 1, port: 2}", "port"),
        ("web: &a {port: 1}\nlogging: *a", "alias"),
    ],
)
def test_unusable_file_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(tmp_path, text)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "web: {port: -1, hots: x}", AMP_LOGGING__LEVEL="LOUD")
    assert "web.port" in message
    assert "web.hots" in message
    assert "logging.level" in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("AMP_TASK_EXECUTR__PORT", "did you mean 'task_executor'?"),
        ("AMP_TASK_EXECUTOR__PROT", "did you mean 'port'?"),
        ("AMP_TASK_EXECUTOR__PORT__X", "task_executor.port"),
    ],
)
def test_misspelt_variable_is_refused(tmp_path: Path, name: str, says: str) -> None:
    assert says in refusal(tmp_path, **{name: "1"})


def test_variables_of_other_purposes_are_left_alone(tmp_path: Path) -> None:
    assert load(tmp_path, AMP_TEST_REDIS="x", AMP_CHROMIUM="/usr/bin/chromium", PATH="/bin") == Settings()


def test_missing_named_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path / "none.yaml", environment={})


def test_too_large_file_is_refused(tmp_path: Path) -> None:
    assert "larger than" in refusal(tmp_path, "# " + "x" * 1024 * 1024)


def test_documentation_lists_every_setting() -> None:
    text = (SHIPPED.parents[1] / "docs" / "configuration.md").read_text()
    for section, field in ((path.rpartition(".")[0], path.rpartition(".")[2]) for path in leaves(Settings)):
        heading = f"## `{section}`\n" if section else "## Top level\n"
        table = text.partition(heading)[2].partition("\n## ")[0]
        assert f"| `{field}` | " in table, f"{section}.{field}"
