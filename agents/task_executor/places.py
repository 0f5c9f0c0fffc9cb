"""Where tasks may work and where they may not: read from the settings once, at start."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from agents.task_executor.execution import VIEWS_OF_RESULT
from agents.task_executor.spool import HEAD_BYTES
from agents.task_executor.spool_folder import SPOOL
from runtime.settings import AgentSection, Settings, SettingsError, TaskExecutorSettings


def files_root(settings: Settings) -> Path:
    """Return the folder that tasks may work in, absolute.

    Raises: SettingsError when it would hold the product's own data.
    """
    data, root = Path(settings.data_dir).resolve(), settings.task_executor.files.root
    folder = (data / root).resolve()
    if data.is_relative_to(folder):
        raise SettingsError(
            f"task_executor.files.root: {root!r} holds the data folder {str(data)!r}; name a folder below or beside it"
        )
    spool = spool_root(settings)
    if folder.is_relative_to(spool) or spool.is_relative_to(folder):
        raise SettingsError(
            f"task_executor.files.root: {root!r} is the folder in which executors keep their results; name another one"
        )
    return folder


def spool_root(settings: Settings) -> Path:
    """Return the folder in which every executor of this data folder has a folder of its own, absolute."""
    return Path(settings.data_dir).resolve() / SPOOL


def record_bytes(section: TaskExecutorSettings) -> int:
    """Return how large the record of one ending can get, in bytes.

    Raises: SettingsError when the spool could not take a single one.
    """
    largest = section.max_result_bytes * VIEWS_OF_RESULT
    if section.spool.max_bytes < largest + HEAD_BYTES:
        raise SettingsError(
            f"task_executor.spool.max_bytes: {section.spool.max_bytes} cannot hold one result; it takes at least "
            f"{largest + HEAD_BYTES}, or a smaller task_executor.max_result_bytes"
        )
    return largest


def own_ports(settings: Settings) -> Iterator[int]:
    """Yield the ports of this product, which a task reaches only when a setting names them."""
    router_port = urlsplit(settings.mesh.router_url).port
    if router_port is not None:
        yield router_port
    for name in settings.__struct_fields__:
        section = getattr(settings, name)
        if isinstance(section, AgentSection) and section.port:
            yield section.port
    if settings.web.port:
        yield settings.web.port
