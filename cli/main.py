"""The command line, declared. Each command imports its work when it is called, so that `amp --help` is quick."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli import db
from cli.errors import CommandError, ExitCode

app = typer.Typer(
    name="amp",
    help="Define, run and watch workflows on a mesh of agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(db.app, name="db")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file.  [default: $AMP_CONFIG, else config/agent_config.yaml]"),
]
DEFAULT_SERVER = "http://localhost:8090"
ServerOption = Annotated[str, typer.Option("--server", metavar="URL", help="Address of the dashboard.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Folder for everything durable.")]


@app.command()
def up(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the dashboard.")] = None,
    port_offset: Annotated[
        int, typer.Option("--port-offset", min=-65535, max=65535, help="Shift every port by this much.")
    ] = 0,
    agents: Annotated[
        str, typer.Option(help="all, or some of engine,executor,state,condition,error,monitor.")
    ] = "all",
    scale: Annotated[
        list[str] | None, typer.Option(metavar="ROLE=N", help="How many of a role, such as executor=3.")
    ] = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the dashboard in a browser.")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Run the hello-world workflow once all is ready.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="With --demo: end after the greeting.")] = False,
) -> None:
    """Start the router, the six agents and the dashboard, and keep them running until Ctrl-C."""
    from cli.layout import MeshOptions
    from cli.up import MeshRequest, become

    options = MeshOptions(
        port=port,
        port_offset=port_offset,
        agents=agents,
        scale=tuple(scale or ()),
        data_dir=data_dir,
        config=config,
    )
    become(MeshRequest(options=options, open_browser=open_browser, demo=demo or once, once=once))


@app.command()
def run(
    workflow: Annotated[
        str, typer.Argument(metavar="FILE", help="Definition, YAML or JSON; - for standard input.")
    ],
    values: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=VALUE", help="One input; repeat for more."),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option("--inputs", "-f", metavar="FILE", help="Inputs as JSON or YAML; - for standard input."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Run it on this dashboard's mesh instead of in this process."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Stop waiting after this long, such as 90, 90s, 5m, 2h."),
    ] = None,
    idempotency_key: Annotated[
        str,
        typer.Option(metavar="KEY", help="Start it once, however often the command is repeated with it."),
    ] = "",
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
) -> None:
    """Run a workflow to its end and print its outputs. Without --server the whole mesh runs in this process."""
    from cli.run import RunRequest, run_workflow

    request = RunRequest(
        workflow=workflow,
        values=tuple(values or ()),
        inputs=inputs,
        server=server,
        as_json=as_json,
        timeout=timeout,
        idempotency_key=idempotency_key,
        data_dir=data_dir,
        config=config,
    )
    raise typer.Exit(run_workflow(request))


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Definitions, YAML or JSON.")],
    strict: Annotated[bool, typer.Option("--strict", help="Take warnings for errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check definitions and show every problem with its place."""
    from cli.validate import validate_files

    raise typer.Exit(validate_files(files, strict=strict, as_json=as_json))


@app.command()
def sim(
    workflow: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="Definition, YAML or JSON.  [default: generated workflows]"),
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=VALUE", help="One input; repeat for more."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds to run.  [default: 100]")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed; alone, the only one.")] = None,
    faults: Annotated[
        str | None,
        typer.Option(metavar="KIND,...", help="Which faults may happen, or none.  [default: all kinds]"),
    ] = None,
    plant: Annotated[str, typer.Option(help="A bug to plant: answer-before-commit.")] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes.  [default: one a core]")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Write every log line of one seed's run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON line a seed.")] = False,
) -> None:
    """Run workflows on a simulated mesh whose agents are killed, cut off and delayed, and check every promise."""
    from cli.sim import SimRequest, simulate

    request = SimRequest(
        file=workflow,
        values=tuple(values or ()),
        seed=seed,
        seeds=seeds,
        faults=faults,
        plant=plant,
        jobs=jobs,
        trace=trace,
        as_json=as_json,
    )
    raise typer.Exit(simulate(request))


@app.command()
def schema() -> None:
    """Print the JSON Schema of workflow definitions."""
    from cli.validate import print_schema

    print_schema()


@app.command()
def why(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="Id of an instance.")],
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="Id of one of its tasks.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what an instance or one of its tasks waits for, who holds it, and until when."""
    from cli.why import explain

    raise typer.Exit(explain(server, instance, task, as_json=as_json))


@app.command()
def orphans(
    server: ServerOption = DEFAULT_SERVER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List unfinished instances that nothing will wake; exit code 1 when there are any."""
    from cli.why import list_orphans

    raise typer.Exit(list_orphans(server, as_json=as_json))


@app.command()
def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print the version."""
    from cli.version import print_version

    print_version(as_json=as_json)


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        app()
    except CommandError as error:
        sys.stderr.write(f"amp: {error}\n")
        sys.exit(error.exit_code)
    sys.exit(ExitCode.OK)
