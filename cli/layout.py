"""Which processes a mesh is made of: settings and options in, process specifications out. It starts nothing."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cli.errors import CommandError, ExitCode
from runtime.children import ChildSpec
from runtime.settings import AgentSection, Settings, SettingsError, load_settings

MAX_SCALE = 50
MAX_PORT = 65_535
STOP_MARGIN_SECONDS = 5.0
"""What an agent gets on top of its drain time before it is killed."""


@dataclass(frozen=True, slots=True)
class Role:
    """An agent: its settings section, which is its package too, and whether several may run side by side."""

    section: str
    many: bool
    start_stage: int
    stop_stage: int


ROLES: Mapping[str, Role] = {
    "state": Role("state_manager", many=False, start_stage=1, stop_stage=3),
    "engine": Role("workflow_engine", many=True, start_stage=2, stop_stage=1),
    "executor": Role("task_executor", many=True, start_stage=2, stop_stage=2),
    "condition": Role("condition_evaluator", many=True, start_stage=2, stop_stage=2),
    "error": Role("error_handler", many=True, start_stage=2, stop_stage=2),
    "monitor": Role("monitor_agent", many=False, start_stage=2, stop_stage=2),
}
ROUTER_START, ROUTER_STOP = 0, 4
DASHBOARD_START, DASHBOARD_STOP = 2, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshOptions:
    """What a person asked for on the command line."""

    port: int | None = None
    port_offset: int = 0
    agents: str = "all"
    scale: tuple[str, ...] = ()
    data_dir: Path | None = None
    config: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The processes of a mesh and where it is reached. `fixed_ports` must be free: nothing else can be used instead."""

    children: tuple[ChildSpec, ...]
    dashboard_url: str
    fixed_ports: tuple[tuple[str, str, int], ...]


def plan_mesh(
    options: MeshOptions, *, environment: Mapping[str, str], free_port: Callable[[], int]
) -> Layout:
    """Return the processes to start.

    Args:
        free_port: Finds a port for the router or the dashboard when the settings say 0.

    Raises: CommandError when the settings or the options cannot be used.
    """
    settings = _settings(options, environment, free_port)
    counts = agent_counts(options.agents, options.scale)
    shared = _environment(settings, options)
    router, web = urlsplit(settings.mesh.router_url), settings.web
    shown = "localhost" if _reachable(web.host) in ("127.0.0.1", "localhost") else _in_url(web.host)
    return Layout(
        children=(
            _router(settings, shared),
            *(spec for name, count in counts.items() for spec in _agents(name, count, settings, shared)),
            _dashboard(settings, shared),
        ),
        dashboard_url=f"http://{shown}:{web.port}",
        fixed_ports=(
            ("the router", router.hostname or "", router.port or 0),
            ("the dashboard", web.host, web.port),
        ),
    )


def agent_counts(agents: str, scale: Sequence[str]) -> dict[str, int]:
    """Return how many processes of each role are wanted, by the short names of `ROLES`.

    Raises: CommandError naming what is not understood.
    """
    names = [name.strip() for name in agents.split(",") if name.strip()]
    wanted = list(ROLES) if "all" in names or not names else [_role(name) for name in names]
    counts = {name: 1 for name in ROLES if name in wanted}
    for text in scale:
        name, equals, number = text.partition("=")
        if not equals or not number.isdigit() or not 1 <= int(number) <= MAX_SCALE:
            raise CommandError(
                f"--scale {text}: write ROLE=N with N from 1 to {MAX_SCALE}, such as executor=3",
                ExitCode.USAGE,
            )
        role = _role(name.strip())
        if int(number) > 1 and not ROLES[role].many:
            raise CommandError(f"--scale {text}: there is one {role} on a machine", ExitCode.USAGE)
        counts[role] = int(number)
    return {name: counts[name] for name in ROLES if name in counts}


def _role(name: str) -> str:
    """Return the short name of a role given by its short name, its section or its agent's name."""
    text = name.replace("-", "_")
    for short, role in ROLES.items():
        if text in (short, role.section):
            return short
    raise CommandError(f"there is no agent {name!r}; there are {', '.join(ROLES)}", ExitCode.USAGE)


def _settings(options: MeshOptions, environment: Mapping[str, str], free_port: Callable[[], int]) -> Settings:
    """Return the settings with the ports and folders that the options ask for."""
    try:
        settings = load_settings(options.config, environment=environment)
        overrides: dict[str, Any] = {}
        for role in ROLES.values():
            section: AgentSection = getattr(settings, role.section)
            overrides[role.section] = {"port": _shifted(section.port, options.port_offset)}
        router, web = urlsplit(settings.mesh.router_url), settings.web.port
        if router.hostname is None or router.port is None:
            raise CommandError(
                f"mesh.router_url {settings.mesh.router_url!r} names no host and port", ExitCode.USAGE
            )
        port = _shifted(router.port, options.port_offset) or free_port()
        overrides["mesh"] = {
            "router_url": urlunsplit(router._replace(netloc=f"{_in_url(router.hostname)}:{port}"))
        }
        port = _shifted(web, options.port_offset) if options.port is None else options.port
        overrides["web"] = {"port": port or free_port()}
        if options.data_dir is not None:
            overrides["data_dir"] = str(options.data_dir)
        return load_settings(options.config, environment=environment, overrides=overrides)
    except SettingsError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None


def _shifted(port: int, offset: int) -> int:
    """Return the port moved by `offset`; 0 stays 0, any free port.

    Raises: CommandError when no such port exists.
    """
    if port == 0:
        return 0
    moved = port + offset
    if not 1 <= moved <= MAX_PORT:
        raise CommandError(
            f"--port-offset {offset}: {port} would become {moved}, which is no port", ExitCode.USAGE
        )
    return moved


def _environment(settings: Settings, options: MeshOptions) -> dict[str, str]:
    """Return the settings that the command line changed, in the form that every process reads."""
    values = {
        "PYTHONUNBUFFERED": "1",
        "AMP_DATA_DIR": settings.data_dir,
        "AMP_MESH__ROUTER_URL": settings.mesh.router_url,
        "AMP_MESH__HOST_ROUTER": "false",
        "AMP_WEB__PORT": str(settings.web.port),
    }
    for role in ROLES.values():
        section: AgentSection = getattr(settings, role.section)
        values[f"AMP_{role.section.upper()}__PORT"] = str(section.port)
    if settings.mesh.api_key is not None:
        values["AMP_MESH__API_KEY"] = settings.mesh.api_key
    if options.config is not None:
        values["AMP_CONFIG"] = str(options.config.resolve())
    return values


def _agents(name: str, count: int, settings: Settings, shared: Mapping[str, str]) -> list[ChildSpec]:
    """Return the processes of one role. The first has the section's port and id, the others take free ones."""
    role = ROLES[name]
    section: AgentSection = getattr(settings, role.section)
    command = (sys.executable, "-m", f"agents.{role.section}")
    return [
        ChildSpec(
            name=name if count == 1 else f"{name}-{number}",
            command=command if number == 1 else (*command, "--port", "0"),
            environment=shared,
            stage=role.start_stage,
            stop_stage=role.stop_stage,
            stop_timeout_seconds=section.drain_timeout_seconds + STOP_MARGIN_SECONDS,
        )
        for number in range(1, count + 1)
    ]


def _router(settings: Settings, shared: Mapping[str, str]) -> ChildSpec:
    url, level = urlsplit(settings.mesh.router_url), settings.logging.level
    host, port = url.hostname or "", str(url.port)
    return ChildSpec(
        name="router",
        command=(
            *(sys.executable, "-m", "amp.router", "--host", host, "--port", port),
            *("--max-frame-bytes", str(settings.mesh.max_frame_bytes)),
            *("--lost-after-seconds", str(settings.mesh.lost_after_seconds)),
            *("--log-level", "ERROR" if level == "CRITICAL" else level),
        ),
        environment=shared,
        health_url=f"http://{_in_url(host)}:{port}/health",
        stage=ROUTER_START,
        stop_stage=ROUTER_STOP,
    )


def _dashboard(settings: Settings, shared: Mapping[str, str]) -> ChildSpec:
    web = settings.web
    return ChildSpec(
        name="dashboard",
        command=(sys.executable, _dashboard_script(), "--host", web.host, "--port", str(web.port)),
        environment=shared,
        health_url=f"http://{_in_url(_reachable(web.host))}:{web.port}/health",
        stage=DASHBOARD_START,
        stop_stage=DASHBOARD_STOP,
    )


def _dashboard_script() -> str:
    spec = importlib.util.find_spec("web")
    if spec is None or spec.origin is None:
        raise CommandError("the dashboard is not installed: there is no package `web`")
    return str(Path(spec.origin).parent / "app.py")


def _reachable(host: str) -> str:
    """Return the address under which a server bound to `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared, not bound


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
