"""A real router in a process of its own, on a port the system chose."""

import re
import subprocess
import sys

import pytest

READY = re.compile(r"router_ready ws://127\.0\.0\.1:(\d+)/")


def start_router(*arguments, port=0):
    process = subprocess.Popen(
        [sys.executable, "-m", "amp.router", "--port", str(port), *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        found = READY.search(line)
        if found:
            return process, int(found[1])
    raise RuntimeError("the router did not start")


def stop_router(process):
    process.terminate()
    process.wait(timeout=10)
    process.stderr.close()


@pytest.fixture(scope="module")
def port():
    process, number = start_router()
    yield number
    stop_router(process)


@pytest.fixture
def url(port):
    return f"ws://127.0.0.1:{port}/amp/v1/ws"


@pytest.fixture
def base(port):
    return f"http://localhost:{port}"
