"""What `amp db` does. While a state manager serves the store, changes go through it; reading is done directly."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgspec

from agents.state_manager import store_files
from agents.state_manager.backups import BACKUP_FOLDER, Backups
from agents.state_manager.errors import (
    InvalidRequest,
    StateManagerError,
    StoreInUse,
    StoreLost,
    StoreUnusable,
)
from agents.state_manager.retention import Retention
from agents.state_manager.storage.memory import MEMORY_PATH
from agents.state_manager.storage.sqlite import SqliteStorage
from agents.state_manager.store_clock import StoreClock
from agents.state_manager.verifier import Verified, Verifier
from amp.client import AgentIdentity, MeshClient
from amp.errors import AmpError
from amp.transports.websocket import WebSocketTransport
from cli.errors import CommandError, ExitCode
from cli.version import product_version
from orchestration import contracts
from orchestration.contracts import DefinitionRecord
from orchestration.definition.compile import load_plan
from orchestration.definition.plan import Plan
from runtime.clock import SystemClock
from runtime.ids import new_id
from runtime.settings import Settings, SettingsError, load_settings

CONNECT_SECONDS = 5.0
BACKUP_SECONDS = 3600.0
"""A large store takes its time to copy."""
PURGE_SECONDS = 3600.0

Reply = TypeVar("Reply")


class Work:
    """One `amp db` command on the store of these settings."""

    def __init__(self, *, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
        overrides = {} if data_dir is None else {"data_dir": str(data_dir)}
        try:
            self._settings: Settings = load_settings(config, overrides=overrides)
        except SettingsError as error:
            raise CommandError(str(error), ExitCode.USAGE) from None
        name = self._settings.database.sqlite_path
        if name == MEMORY_PATH:
            raise CommandError("database.sqlite_path is :memory:, so there is no file", ExitCode.USAGE)
        self._store = (Path(self._settings.data_dir) / name).absolute()
        self._folder = Path(self._settings.data_dir).absolute() / BACKUP_FOLDER
        self._as_json = as_json
        self._clock = SystemClock()

    # --- the commands --------------------------------------------------------------------------------------

    def status(self) -> int:
        """Print how the store stands."""
        self._must_exist(self._store)
        found = _refused(lambda: store_files.status_of(self._store))
        copies = sorted(path.name for path in self._folder.glob("*.db")) if self._folder.is_dir() else []
        self._print(
            {**msgspec.to_builtins(found), "backups": copies},
            [
                f"store      {found.path}",
                f"served     {'yes' if found.in_use else 'no'}",
                f"size       {found.size_bytes:,} bytes, write-ahead log {found.wal_bytes:,} bytes",
                f"schema     {found.schema}",
                f"log        {found.counts['events']:,} events, newest offset {found.last_offset:,}",
                f"instances  {_listed(found.instances)}",
                f"also       {_listed({key: value for key, value in found.counts.items() if key != 'events'})}",
                f"copies     {len(copies)}{f', newest by name {copies[-1]}' if copies else ''}",
                *([f"DAMAGED    {found.damaged}"] if found.damaged else []),
            ],
        )
        return ExitCode.FAILED if found.damaged else ExitCode.OK

    def verify(self, file: Path | None) -> int:
        """Print what is wrong with the store, or with a copy."""
        path = self._store if file is None else self._copy_named(file)
        self._must_exist(path)
        found = self._verified(path)
        lines = [_told(finding) for finding in found.findings]
        verdict = f"{len(found.findings)} findings" if found.findings else "nothing wrong"
        lines.append(f"{found.instances:,} instances, {found.events:,} events: {verdict}")
        self._print(msgspec.to_builtins(found), lines)
        return ExitCode.FAILED if found.findings else ExitCode.OK

    def backup(self, name: str) -> int:
        """Write a copy: by the state manager when one serves the store and answers, else by ourselves."""
        self._must_exist(self._store)
        done: dict[str, Any] | None = None
        if _refused(lambda: store_files.is_in_use(self._store)):
            request = contracts.StateBackupRequest(name=name)
            reply = self._ask(contracts.STATE_BACKUP, request, contracts.StateBackupReply, BACKUP_SECONDS)
            done = None if reply is None else {"backup": reply.backup, "size_bytes": reply.size_bytes}
        if done is None:
            done = self._copy(name)
        path = self._folder / str(done["backup"])
        self._print({**done, "path": str(path)}, [f"{path}: {done['size_bytes']:,} bytes"])
        return ExitCode.OK

    def restore(self, file: Path) -> int:
        """Verify a copy and make it the store."""
        source = self._copy_named(file)
        self._must_exist(source)

        def work() -> Path | None:
            with store_files.exclusively(self._store):
                prepared = store_files.copy_beside(source, self._store)
                try:
                    asyncio.run(store_files.bring_up_to_date(prepared, StoreClock(self._clock)))
                    findings = self._verified(prepared).findings
                    if findings:
                        raise CommandError(
                            f"{source} is not put in place: {len(findings)} findings, the first: {_told(findings[0])}"
                        )
                    return store_files.put_in_place(prepared, self._store, self._clock.now())
                finally:
                    store_files.discard(prepared)

        kept = _refused(work)
        lines = [f"{source} is the store now: {self._store}"]
        if kept is not None:
            lines.append(f"the store before is kept: {kept}")
        document = {
            "store": str(self._store),
            "restored": str(source),
            "kept": None if kept is None else str(kept),
        }
        self._print(document, lines)
        return ExitCode.OK

    def purge(self, days: float, *, dry_run: bool) -> int:
        """Remove what ended long ago: by the state manager when one serves the store, else by ourselves."""
        self._must_exist(self._store)
        if _refused(lambda: store_files.is_in_use(self._store)):
            request = contracts.PurgeRequest(older_than_days=days, dry_run=dry_run)
            found = self._ask(contracts.STATE_PURGE, request, contracts.PurgeReply, PURGE_SECONDS)
            if found is None:
                url = self._settings.mesh.router_url
                raise CommandError(f"the store is served, and {url} does not answer", ExitCode.UNREACHABLE)
        else:
            found = _run(self._purge_alone(days, dry_run=dry_run))
        verb = "would be removed" if dry_run else "removed"
        self._print(
            msgspec.to_builtins(found) | {"dry_run": dry_run},
            [
                f"{found.instances:,} instances with {found.events:,} events {verb}, ended before {found.ended_before}"
            ],
        )
        return ExitCode.OK

    # --- how it is done ------------------------------------------------------------------------------------

    def _verified(self, path: Path) -> Verified:
        engine, executor = self._settings.workflow_engine, self._settings.task_executor

        def compile_plan(record: DefinitionRecord) -> Plan:
            return load_plan(
                record.content,
                workflow_timeout_seconds=engine.workflow_timeout_default,
                task_timeout_seconds=executor.task_timeout_default,
            )

        return _refused(Verifier(path, compile_plan).run)

    def _copy(self, name: str) -> dict[str, Any]:
        storage = SqliteStorage(self._store, StoreClock(self._clock), lambda lost: None)
        backups = Backups(storage, self._folder, self._clock, interval_hours=0, kept=1)
        backup = _run(backups.create(name))
        return {"backup": backup.name, "size_bytes": backup.size_bytes}

    async def _purge_alone(self, days: float, *, dry_run: bool) -> contracts.PurgeReply:
        clock = StoreClock(self._clock)
        lost: list[StoreLost] = []
        storage = SqliteStorage(self._store, clock, lost.append)
        await storage.start()
        try:
            retention = Retention(storage, clock, days=days, forget=lambda ids: None)
            purged = await (retention.count(days) if dry_run else retention.purge(days))
        finally:
            await storage.stop()
        before = clock.now() - timedelta(days=days)
        return contracts.PurgeReply(instances=purged.instances, events=purged.events, ended_before=before)

    def _ask(
        self, contract: contracts.Contract, request: object, reply_type: type[Reply], seconds: float
    ) -> Reply | None:
        """Return the state manager's reply; None when the mesh does not answer. Raises CommandError when it refuses."""
        mesh = self._settings.mesh
        identity = AgentIdentity(
            id=f"amp-db-{new_id('cli', self._clock, Random())}",
            name="amp db",
            version=product_version(),
            framework="amp-cli",
            session_id=new_id("ses", self._clock, Random()),
        )
        client = MeshClient(
            identity,
            WebSocketTransport(mesh.router_url),
            api_key=mesh.api_key,
            now=self._clock.now,
            random=Random(),
            max_frame_bytes=mesh.max_frame_bytes,
        )

        async def ask() -> Reply | None:
            try:
                await client.start(wait_seconds=CONNECT_SECONDS)
                return await client.request(
                    contract.id, request, reply_type=reply_type, timeout_seconds=seconds
                )
            except AmpError as error:
                if error.code in _AWAY:
                    return None
                raise CommandError(
                    f"{error.code}: {error.message}", _exit_code(error.code, error.message)
                ) from None
            finally:
                await client.stop()

        return asyncio.run(ask())

    def _copy_named(self, file: Path) -> Path:
        """Return a file, or the copy of that name in the backup folder when there is no such file."""
        if file.exists() or len(file.parts) > 1:
            return file.absolute()
        name = file.name if file.suffix == ".db" else f"{file.name}.db"
        return self._folder / name

    def _must_exist(self, path: Path) -> None:
        if not path.is_file():
            raise CommandError(f"there is no store {path}", ExitCode.NOT_FOUND)

    def _print(self, document: dict[str, Any], lines: list[str]) -> None:
        print(json.dumps(document, indent=2) if self._as_json else "\n".join(lines))


_AWAY = frozenset(
    {"NETWORK_ERROR", "TIMEOUT", "CAPABILITY_NOT_FOUND", "CAPABILITY_UNAVAILABLE", "AGENT_NOT_FOUND"}
)
"""Errors that say that nobody was there to ask."""


def _exit_code(code: str, message: str) -> ExitCode:
    if code != InvalidRequest.code:
        return ExitCode.FAILED
    return ExitCode.CONFLICT if "exists already" in message else ExitCode.USAGE


def _run(work: Coroutine[Any, Any, Reply]) -> Reply:
    return _refused(lambda: asyncio.run(work))


def _refused(work: Callable[[], Reply]) -> Reply:
    """Return what `work` returns; a refusal of the store becomes an exit code."""
    try:
        return work()
    except StoreInUse as error:
        raise CommandError(error.message, ExitCode.CONFLICT) from None
    except InvalidRequest as error:
        raise CommandError(error.message, _exit_code(error.code, error.message)) from None
    except StoreUnusable as error:
        raise CommandError(error.message) from None
    except StateManagerError as error:
        raise CommandError(f"{error.code}: {error.message}") from None


def _told(finding: Any) -> str:
    whose = finding.instance_id or "the store"
    return f"{whose}: {finding.field}: {finding.problem}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()) or "none"
