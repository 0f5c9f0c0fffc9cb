"""pydantic without plugins, which it looks for among all installed packages: 2 MB, and nobody asked for them.

Who imports pydantic later gets the same.
"""

from collections.abc import Sequence
from typing import Any

from runtime.absent import hollow


def no_entry_points(*, group: str) -> Sequence[Any]:
    """Return that no package offers anything."""
    return ()


try:
    with hollow({"importlib.metadata": {"entry_points": no_entry_points}}):
        import pydantic.plugin._loader
except ImportError:  # a release that looks for them elsewhere
    import pydantic

__all__ = ["pydantic"]
