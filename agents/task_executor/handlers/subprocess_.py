"""Task type `subprocess`: one program from the operator's allow-list, an argument list, never a shell.

This module decides what may run and how; `agents.task_executor.processes` runs it.
"""

import os
import shutil
from collections.abc import Mapping
from typing import Any

import msgspec

from agents.task_executor.errors import InvalidInput, NotFound, NotPermitted, TaskFailed, TimedOut
from agents.task_executor.files import FileRoot
from agents.task_executor.handlers.base import Outcome, TaskContext
from agents.task_executor.processes import Finished, Program, RunningTooLong, run_program
from agents.task_executor.program_records import ProgramRecords
from orchestration.contracts import SubprocessReply, SubprocessRequest
from runtime.settings import SettingsError, SubprocessSettings

MAX_ARGUMENTS = 1000
MAX_ARGUMENT_BYTES = 128 * 1024
"""Of all arguments and variables together, well below what the system takes."""
MAX_EXCERPT_CHARACTERS = 2000
HOME_FOLDER = "/nonexistent"
"""Programs read their own settings from their home: tasks must not be able to write there."""
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
REFUSED_VARIABLE_PREFIXES = (
    "LD_", "DYLD_", "GLIBC_", "MALLOC_", "NSS_", "PYTHON", "PERL", "RUBY", "GEM_", "BUNDLE_", "NODE_", "NPM_", "DENO_",
    "BASH_", "GIT_", "SSH_", "JAVA_", "JDK_", "DOTNET_", "CORECLR_", "LUA_", "PHP", "R_", "OPENSSL_", "SSL_", "CURL_",
    "XDG_", "LESS", "KRB5", "AWS_", "DOCKER_", "KUBE",
)  # fmt: skip
REFUSED_VARIABLES = frozenset(
    {
        "PATH", "HOME", "IFS", "ENV", "SHELL", "SHELLOPTS", "PS4", "ZDOTDIR", "PAGER", "EDITOR", "VISUAL", "BROWSER",
        "GCONV_PATH", "LOCPATH", "NLSPATH", "TERMINFO", "_JAVA_OPTIONS", "CLASSPATH", "MAKEFLAGS", "TMPDIR",
        "HOSTALIASES", "RESOLV_HOST_CONF", "GETCONF_DIR",
    }
)  # fmt: skip
"""They make a permitted program load or run something that is not on the list."""


class Subprocess:
    """Performs `subprocess` tasks. Raises SettingsError when an entry of the allow-list is a relative path."""

    request_type = SubprocessRequest

    def __init__(
        self, settings: SubprocessSettings, files: FileRoot, programs: ProgramRecords | None = None
    ) -> None:
        for entry in settings.allowed_commands:
            if "/" in entry and not entry.startswith("/"):
                raise SettingsError(
                    f"task_executor.subprocess.allowed_commands: {entry!r} must be a plain name or an absolute path"
                )
        self._settings = settings
        self._files = files
        self._programs = programs or ProgramRecords()

    async def run(self, request: SubprocessRequest, context: TaskContext) -> Outcome:
        """Return exit code and output. A non-zero exit fails the task unless `fail_on_exit` is false."""
        if request.timeout <= 0:
            raise InvalidInput("timeout: must be more than 0 seconds")
        path = self._program_path(request.command)
        refuse_injected_options(request.args, context.parameters)
        arguments = [request.command, *(_argument(value, index) for index, value in enumerate(request.args))]
        environment = {
            "PATH": SEARCH_PATH,
            "LANG": "C.UTF-8",
            "HOME": HOME_FOLDER,
            **_variables(request.env),
        }
        _check_sizes(arguments, environment)
        timeout_seconds = min(request.timeout, context.remaining_seconds())
        started = context.clock.monotonic()
        with self._files.opened_folder(request.cwd or "") as folder, self._programs.record() as record:
            program = Program(
                path=path,
                arguments=arguments,
                environment=environment,
                folder=folder,
                record=record,
                stdin=None if request.stdin is None else request.stdin.encode(),
            )
            try:
                finished = await run_program(program, self._settings, timeout_seconds=timeout_seconds)
            except RunningTooLong as late:
                raise TimedOut(
                    f"{request.command!r} ran longer than {timeout_seconds:g} seconds and was ended",
                    details=_facts(late.finished),
                ) from None
        reply = SubprocessReply(
            exit_code=finished.exit_code,
            stdout=_text(finished.stdout, finished.stdout_cut),
            stderr=_text(finished.stderr, finished.stderr_cut),
            success=finished.exit_code == 0,
            execution_time=round(context.clock.monotonic() - started, 6),
        )
        if request.fail_on_exit and not reply.success:
            raise TaskFailed(_ending(request.command, finished), details=_facts(finished), retryable=True)
        outputs = {"exit_code": reply.exit_code, "stdout": reply.stdout, "success": reply.success}
        return Outcome(result=reply, outputs=outputs, primary=reply.stdout)

    def _program_path(self, command: str) -> str:
        """Return the absolute path of a permitted program. An entry permits exactly the text it consists of."""
        allowed = self._settings.allowed_commands
        if command not in allowed:
            known = f"it allows {', '.join(sorted(allowed))}" if allowed else "it allows nothing"
            raise NotPermitted(
                f"command {command!r} is not in task_executor.subprocess.allowed_commands; {known}"
            )
        path = command if command.startswith("/") else shutil.which(command, path=SEARCH_PATH)
        if path is None or not os.access(path, os.X_OK) or os.path.isdir(path):
            raise NotFound(f"command {command!r} is allowed but not installed (looked in {SEARCH_PATH})")
        return path


def refuse_injected_options(arguments: list[Any], parameters: Mapping[str, Any]) -> None:
    """Refuse an argument that only a template's value made into an option.

    Text that begins with `-` is allowed when the definition wrote the dash itself, or after an argument `--`.
    Numbers are no options. Raises: NotPermitted.
    """
    written = parameters.get("args")
    if not isinstance(written, list):
        return
    for index, (raw, value) in enumerate(zip(written, arguments, strict=False)):
        if raw == "--":
            return
        if isinstance(raw, str) and raw.startswith("{") and isinstance(value, str) and value.startswith("-"):
            raise NotPermitted(
                f"args[{index}]: the value of {raw!r} begins with '-' and would be taken for an option; "
                "put '--' before it, or write the dash in the definition"
            )


def _argument(value: Any, index: int) -> str:
    match value:
        case str():
            text = value
        case None:
            raise InvalidInput(f"args[{index}]: is null")
        case _:
            text = msgspec.json.encode(value).decode()
    if "\0" in text:
        raise InvalidInput(f"args[{index}]: contains a NUL character")
    return text


def _variables(variables: Mapping[str, Any]) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in variables.items():
        if not name.isidentifier() or not name.isascii():
            raise InvalidInput(f"env.{name}: a variable's name has letters, digits and underscores only")
        if name in REFUSED_VARIABLES or name.startswith(REFUSED_VARIABLE_PREFIXES):
            raise NotPermitted(f"env.{name}: this variable can make a permitted program run something else")
        if value is None:
            continue
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        if "\0" in text:
            raise InvalidInput(f"env.{name}: contains a NUL character")
        given[name] = text
    return given


def _check_sizes(arguments: list[str], environment: Mapping[str, str]) -> None:
    if len(arguments) > MAX_ARGUMENTS:
        raise InvalidInput(f"args: more than {MAX_ARGUMENTS - 1}")
    size = sum(len(text.encode()) for text in (*arguments, *environment, *environment.values()))
    if size > MAX_ARGUMENT_BYTES:
        raise InvalidInput(
            f"args and env: {size} bytes, at most {MAX_ARGUMENT_BYTES}; pass more through stdin or a file"
        )


def _text(content: bytes, cut: int) -> str:
    text = content.decode("utf-8", "replace")
    return f"{text}\n[{cut} more bytes cut]" if cut else text


def _ending(command: str, finished: Finished) -> str:
    if finished.exit_code < 0:
        return f"{command!r} was ended by signal {-finished.exit_code}"
    return f"{command!r} exited with code {finished.exit_code}"


def _facts(finished: Finished) -> dict[str, Any]:
    return {
        "exit_code": finished.exit_code,
        "stdout": finished.stdout.decode("utf-8", "replace")[-MAX_EXCERPT_CHARACTERS:],
        "stderr": finished.stderr.decode("utf-8", "replace")[-MAX_EXCERPT_CHARACTERS:],
    }
