"""The operator's own task handlers and transformations: found once, at start, in the module that the settings name.

Only settings name modules; nothing that comes over the mesh is ever imported.
"""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.settings import SettingsError

MAX_REGISTERED = 1000
MODULE_NAME = "amp_custom_handlers"

CustomHandler = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""Takes parameters and context; returns the result, or an awaitable of it."""
Transformation = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], Any]
"""Takes data, config and context; returns the new data. Never asynchronous."""


class CustomHandlers:
    """The registered handlers and transformations, by name. A module's `register(executor)` receives this object."""

    def __init__(self) -> None:
        self._handlers: dict[str, CustomHandler] = {}
        self._transformations: dict[str, Transformation] = {}

    def register_handler(self, name: str, handler: CustomHandler) -> None:
        """Offer `handler` as custom task `name`. Raises ValueError when the name is taken or it is no function."""
        _register(self._handlers, "handler", name, handler)

    def register_transformation(self, name: str, transformation: Transformation) -> None:
        """Offer `transformation` as custom operation `name`. Raises ValueError as `register_handler` does."""
        _register(self._transformations, "transformation", name, transformation)

    def handler(self, name: str) -> CustomHandler | None:
        """Return the handler of a custom task, or None."""
        return self._handlers.get(name)

    @property
    def transformations(self) -> Mapping[str, Transformation]:
        """The registered transformations by name."""
        return self._transformations

    @property
    def names(self) -> list[str]:
        """The names of the handlers, sorted."""
        return sorted(self._handlers)


def _register(table: dict[str, Any], kind: str, name: object, function: object) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a {kind} must be text, got {name!r}")
    if not callable(function):
        raise ValueError(f"{kind} {name!r} cannot be called")
    if name in table:
        raise ValueError(f"{kind} {name!r} is registered twice")
    if len(table) >= MAX_REGISTERED:
        raise ValueError(f"more than {MAX_REGISTERED} {kind}s are registered")
    table[name] = function


def load_custom_handlers(module: str | None, path: str | None) -> CustomHandlers:
    """Return what the module registers by its HANDLERS and TRANSFORMS dictionaries or by `register(executor)`.

    Raises: SettingsError when both or a module that cannot be loaded are named.
    """
    found = CustomHandlers()
    if module is None and path is None:
        return found
    if module is not None and path is not None:
        raise SettingsError("task_executor: give custom_handlers_module or custom_handlers_path, not both")
    place = f"task_executor.custom_handlers_{'module' if module is not None else 'path'}"
    try:
        loaded = importlib.import_module(module) if module is not None else _load_file(Path(path or ""))
        _take(found, loaded)
    except SettingsError:
        raise
    except Exception as error:  # boundary: the operator's own code
        named = module if module is not None else path
        raise SettingsError(
            f"{place}: {named!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return found


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SettingsError(f"task_executor.custom_handlers_path: {str(path)!r} is no file")
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"task_executor.custom_handlers_path: {str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[MODULE_NAME]
        raise
    return module


def _take(found: CustomHandlers, module: ModuleType) -> None:
    for attribute, register in (
        ("HANDLERS", found.register_handler),
        ("TRANSFORMS", found.register_transformation),
    ):
        table = getattr(module, attribute, None)
        if table is None:
            continue
        if not isinstance(table, Mapping):
            raise ValueError(f"{attribute} must be a dictionary of functions by name")
        for name, function in table.items():
            register(name, function)
    register_all = getattr(module, "register", None)
    if register_all is not None:
        register_all(found)
    elif not hasattr(module, "HANDLERS") and not hasattr(module, "TRANSFORMS"):
        raise ValueError("the module has neither HANDLERS nor TRANSFORMS nor register(executor)")


def closest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known name, or what is known, or an empty text."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:100], names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names[:20])}" if names else ""
