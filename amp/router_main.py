"""`python -m amp.router`: the router alone, in a process of its own."""

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence

from amp import crash
from amp.errors import AmpError
from amp.router import DEFAULT_MAX_FRAME_BYTES, Router, RouterLimits
from amp.security import Credentials
from amp.transports.websocket import LOST_AFTER_SECONDS

logger = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8079
API_KEY_VARIABLE = "AMP_MESH__API_KEY"
JWT_SECRET_VARIABLE = "AMP_MESH_JWT_SECRET"  # noqa: S105  # the variable's name, not a secret
GC_YOUNG_OBJECTS = 10_000
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 1


class _WithFacts(logging.Formatter):
    """Writes a record's facts behind its message, as JSON values, so that no agent's name can break the line."""

    _STANDARD = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime"))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of the standard library
        facts = {name: value for name, value in vars(record).items() if name not in self._STANDARD}
        shown = (f"{name}={json.dumps(value, default=str)}" for name, value in facts.items())
        return " ".join((super().formatMessage(record), *shown))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m amp.router", description="The switchboard of an AMP/1.0 mesh."
    )
    parser.add_argument("--host", default=DEFAULT_HOST, help=f"address to listen on (default {DEFAULT_HOST})")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"0 takes a free one (default {DEFAULT_PORT})"
    )
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY[=AGENT_ID]",
        help=f"let only clients with a key in, optionally one agent each; also ${API_KEY_VARIABLE}",
    )
    parser.add_argument("--max-frame-bytes", type=int, default=DEFAULT_MAX_FRAME_BYTES)
    parser.add_argument(
        "--lost-after-seconds",
        type=float,
        default=LOST_AFTER_SECONDS,
        help=f"a client that is silent for so long is lost (default {LOST_AFTER_SECONDS:g})",
    )
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return parser


def credentials_of(given: Sequence[str], environment: "os._Environ[str] | dict[str, str]") -> Credentials:
    """Return the credentials from `KEY[=AGENT_ID]` arguments and the environment."""
    keys: dict[str, str | None] = {}
    for text in given:
        key, _, agent_id = text.partition("=")
        keys[key] = agent_id or None
    if environment.get(API_KEY_VARIABLE):
        keys[environment[API_KEY_VARIABLE]] = None
    return Credentials(api_keys=keys, jwt_secret=environment.get(JWT_SECRET_VARIABLE) or None)


async def serve(router: Router, host: str, port: int) -> None:
    """Run the router until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await router.start_http(host, port)
    gc.collect()
    gc.freeze()  # what the imports made stays; walking it again and again costs a busy router its time
    gc.set_threshold(GC_YOUNG_OBJECTS)
    logger.info(
        "router_ready %s", f"ws://{host}:{router.port}/amp/v1/ws", extra={"host": host, "port": router.port}
    )
    try:
        await stopped.wait()
    finally:
        await router.stop()
        logger.info("router_stopped")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse arguments, run, exit with 0 after a signal, 1 when the address is taken, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    output = logging.StreamHandler()
    output.setFormatter(_WithFacts("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=options.log_level, handlers=[output])
    try:
        crash.arm_from_environment()
        credentials = credentials_of(options.api_key, os.environ)
        limits = RouterLimits(
            max_frame_bytes=options.max_frame_bytes, lost_after_seconds=options.lost_after_seconds
        )
        router = Router(limits=limits, credentials=credentials)
        _run(router, options.host, options.port)
    except ValueError as error:
        sys.stderr.write(f"amp.router: {error}\n")
        sys.exit(EXIT_USAGE)
    except AmpError as error:
        sys.stderr.write(f"amp.router: {error.message}\n")
        sys.exit(EXIT_USAGE)
    except OSError as error:
        sys.stderr.write(f"amp.router: cannot listen on {options.host}:{options.port}: {error.strerror}\n")
        sys.exit(EXIT_UNAVAILABLE)


def _run(router: Router, host: str, port: int) -> None:
    try:
        import uvloop
    except ImportError:  # not on every platform
        asyncio.run(serve(router, host, port))
    else:
        uvloop.run(serve(router, host, port))
