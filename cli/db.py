"""The commands `amp db`, declared. Each imports its work when it is called.

Exit codes: 0 done; 1 findings, or it could not be done; 2 wrong use; 4 no such store or file; 5 the store is in use, or
a name is taken; 7 the mesh does not answer.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="db",
    help="Look after the store: status, verify, backup, restore, purge.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file.  [default: $AMP_CONFIG, else config/agent_config.yaml]"),
]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Folder for everything durable.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def status(data_dir: DataDirOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show how the store stands: its size, what it holds, whether it is served, its copies."""
    from cli.db_work import Work

    raise typer.Exit(Work(config=config, data_dir=data_dir, as_json=as_json).status())


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A copy to verify instead of the store.")
    ] = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check everything in the store, also while it is served: each row against its events, gaps, damage."""
    from cli.db_work import Work

    raise typer.Exit(Work(config=config, data_dir=data_dir, as_json=as_json).verify(file))


@app.command()
def backup(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A plain name; by default one with the time.")
    ] = "",
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a consistent copy into the backup folder, also while the store is served."""
    from cli.db_work import Work

    raise typer.Exit(Work(config=config, data_dir=data_dir, as_json=as_json).backup(name))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A copy, or its name in the backup folder.")],
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a verified copy the store. Stop the state manager first; the store before is kept beside it."""
    from cli.db_work import Work

    raise typer.Exit(Work(config=config, data_dir=data_dir, as_json=as_json).restore(file))


@app.command()
def purge(
    older_than: Annotated[float, typer.Option("--older-than", min=1, metavar="DAYS", help="At least 1.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove instances that ended so many days ago, with their events, inboxes and states."""
    from cli.db_work import Work

    work = Work(config=config, data_dir=data_dir, as_json=as_json)
    raise typer.Exit(work.purge(older_than, dry_run=dry_run))
