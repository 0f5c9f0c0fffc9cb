"""`amp version`."""

import json
import platform
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

PACKAGE = "amp-workflow-orchestration"
PROTOCOL = "AMP/1.0"


def product_version() -> str:
    """Return the installed version, or the checkout's."""
    try:
        return installed_version(PACKAGE)
    except PackageNotFoundError:
        project = Path(__file__).resolve().parent.parent / "pyproject.toml"
        return str(tomllib.loads(project.read_text("utf-8"))["project"]["version"])


def print_version(*, as_json: bool) -> None:
    """Write the version of the product, the protocol and the interpreter to standard output."""
    facts = {"amp": product_version(), "protocol": PROTOCOL, "python": platform.python_version()}
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        sys.stdout.write("amp {amp} (protocol {protocol}, Python {python})\n".format(**facts))
