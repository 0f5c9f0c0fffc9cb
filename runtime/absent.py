"""Imports a library without what it would take along for features that no process here uses.

Some libraries import others whenever those are installed: structlog takes rich and greenlet, httpx a command line of
its own with click, rich and pygments. That is 4 to 6 MB in each process. Others insist on a module and use it only in
functions that nobody here calls: prometheus_client has two HTTP servers and an HTTP client.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def absent(*names: str) -> Iterator[None]:
    """Have `import` fail for these modules inside the block, as if they were not installed.

    Those that are loaded already stay. Afterwards everybody can import them as ever.
    """
    with _instead(dict.fromkeys(names)):
        yield


@contextmanager
def hollow(modules: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    """Have `import` find hollow modules inside the block, which hold what is given for each and nothing else.

    Those that are loaded already stay. Afterwards everybody can import the real ones as ever; only what was imported
    inside keeps the hollow ones, and must not be asked for what it would need them for.
    """
    with _instead({name: _hollow_module(name, content) for name, content in modules.items()}):
        yield


def empty_classes(*names: str) -> dict[str, type]:
    """Return a class for each name, for modules whose classes are only inherited from or never made."""
    return {name: type(name, (), {}) for name in names}


@contextmanager
def _instead(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    unwanted = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(unwanted)  # type: ignore[arg-type]  # None makes `import` raise ImportError
    try:
        yield
    finally:
        for name in unwanted:
            del sys.modules[name]


def _hollow_module(name: str, content: Mapping[str, object]) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module
