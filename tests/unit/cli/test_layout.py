"""Which processes `amp up` starts, and where."""

import sys
from pathlib import Path
from typing import Any

import pytest

from cli.errors import CommandError, ExitCode
from cli.layout import Layout, MeshOptions, agent_counts, plan_mesh


def plan(environment: dict[str, str] | None = None, **options: Any) -> Layout:
    return plan_mesh(MeshOptions(**options), environment=environment or {}, free_port=lambda: 4321)


def by_name(layout: Layout) -> dict[str, Any]:
    return {child.name: child for child in layout.children}


def test_mesh_is_router_six_agents_and_dashboard() -> None:
    layout = plan()
    assert sorted(by_name(layout)) == [
        "condition", "dashboard", "engine", "error", "executor", "monitor", "router", "state",
    ]  # fmt: skip
    assert layout.dashboard_url == "http://localhost:8090"
    assert layout.fixed_ports == (("the router", "127.0.0.1", 8079), ("the dashboard", "127.0.0.1", 8090))


def test_router_and_store_start_first_and_stop_last() -> None:
    children = by_name(plan())
    assert children["router"].stage < children["state"].stage < children["engine"].stage
    stops = [children[name].stop_stage for name in ("dashboard", "engine", "executor", "state", "router")]
    assert stops == sorted(set(stops))


def test_offset_shifts_every_port() -> None:
    layout = plan(port_offset=100)
    environment = by_name(layout)["engine"].environment
    assert environment["AMP_MESH__ROUTER_URL"] == "ws://127.0.0.1:8179/amp/v1/ws"
    ports = {name: value for name, value in environment.items() if name.endswith("__PORT")}
    assert ports == {
        "AMP_WORKFLOW_ENGINE__PORT": "8180",
        "AMP_TASK_EXECUTOR__PORT": "8181",
        "AMP_STATE_MANAGER__PORT": "8182",
        "AMP_CONDITION_EVALUATOR__PORT": "8183",
        "AMP_ERROR_HANDLER__PORT": "8184",
        "AMP_MONITOR_AGENT__PORT": "8185",
        "AMP_WEB__PORT": "8190",
    }
    assert "8179" in by_name(layout)["router"].command
    assert by_name(layout)["router"].health_url == "http://127.0.0.1:8179/health"
    assert layout.dashboard_url == "http://localhost:8190"


def test_port_wins_over_the_offset() -> None:
    assert plan(port_offset=100, port=9000).dashboard_url == "http://localhost:9000"


def test_port_zero_is_replaced_by_a_free_one() -> None:
    layout = plan(
        {"AMP_MESH__ROUTER_URL": "ws://127.0.0.1:0/amp/v1/ws", "AMP_TASK_EXECUTOR__PORT": "0"}, port=0
    )
    assert [port for _, _, port in layout.fixed_ports] == [4321, 4321]
    assert by_name(layout)["executor"].environment["AMP_TASK_EXECUTOR__PORT"] == "0"


@pytest.mark.parametrize("offset", [60_000, -8090])
def test_offset_out_of_range_is_wrong_usage(offset: int) -> None:
    with pytest.raises(CommandError, match="is no port") as refused:
        plan(port_offset=offset)
    assert refused.value.exit_code == ExitCode.USAGE


def test_options_reach_the_processes_as_settings(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("task_executor: {port: 9001}")
    children = by_name(plan(config=config, data_dir=tmp_path / "data"))
    environment = children["executor"].environment
    assert environment["AMP_CONFIG"] == str(config)
    assert environment["AMP_DATA_DIR"] == str(tmp_path / "data")
    assert environment["AMP_TASK_EXECUTOR__PORT"] == "9001"
    assert environment["AMP_MESH__HOST_ROUTER"] == "false"


def test_agents_are_their_own_modules() -> None:
    children = by_name(plan())
    assert children["engine"].command == (sys.executable, "-m", "agents.workflow_engine")
    assert Path(children["dashboard"].command[1]).name == "app.py"


def test_scaled_role_takes_free_ports_after_the_first() -> None:
    children = by_name(plan(scale=("executor=3",)))
    assert "--port" not in children["executor-1"].command
    assert children["executor-2"].command[-2:] == ("--port", "0")
    assert children["executor-3"].command[-2:] == ("--port", "0")


@pytest.mark.parametrize(
    ("agents", "scale", "counts"),
    [
        ("engine,executor", (), {"engine": 1, "executor": 1}),
        ("workflow-engine", ("task_executor=2",), {"engine": 1, "executor": 2}),
        ("state", (), {"state": 1}),
        (
            "all",
            ("engine=2",),
            {"state": 1, "engine": 2, "executor": 1, "condition": 1, "error": 1, "monitor": 1},
        ),
    ],
)
def test_agents_and_scale_name_roles(agents: str, scale: tuple[str, ...], counts: dict[str, int]) -> None:
    assert agent_counts(agents, scale) == counts


@pytest.mark.parametrize(
    ("agents", "scale", "says"),
    [
        ("enginee", (), "there is no agent 'enginee'"),
        ("all", ("executor",), "write ROLE=N"),
        ("all", ("executor=0",), "write ROLE=N"),
        ("all", ("executor=51",), "write ROLE=N"),
        ("all", ("executor=x",), "write ROLE=N"),
        ("all", ("router=2",), "there is no agent 'router'"),
        ("all", ("state=2",), "there is one state"),
        ("all", ("monitor=2",), "there is one monitor"),
    ],
)
def test_wrong_roles_are_wrong_usage(agents: str, scale: tuple[str, ...], says: str) -> None:
    with pytest.raises(CommandError, match=says) as refused:
        agent_counts(agents, scale)
    assert refused.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"AMP_WEB__PRT": "1"}, "did you mean 'port'"),
        ({"AMP_MESH__ROUTER_URL": "nowhere"}, "names no host and port"),
    ],
)
def test_unusable_settings_are_wrong_usage(environment: dict[str, str], says: str) -> None:
    with pytest.raises(CommandError, match=says) as refused:
        plan(environment)
    assert refused.value.exit_code == ExitCode.USAGE
