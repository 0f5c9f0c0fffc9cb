"""Which version of the product this is, without zipfile, email and csv: the standard way costs 1.4 MB a process."""

import sys
from functools import cache
from pathlib import Path

DISTRIBUTION = "amp_workflow_orchestration"


@cache
def product_version() -> str:
    """Return the installed version, or `dev` when the product is not installed.

    Source: PEP 376, the folder {distribution}-{version}.dist-info beside what is installed.
    """
    for place in sys.path:
        for folder in Path(place or ".").glob(f"{DISTRIBUTION}-*.dist-info"):
            return folder.name.removesuffix(".dist-info").rpartition("-")[2]
    return "dev"
