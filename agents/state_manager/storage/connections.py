"""How a SQLite file is opened for reading only. It opens nothing by itself."""

from pathlib import Path
from urllib.parse import quote


def read_only_uri(path: Path, *, immutable: bool = False) -> str:
    """Return the URI that opens a file for reading only."""
    return f"file:{quote(str(path))}?mode=ro" + ("&immutable=1" if immutable else "")
