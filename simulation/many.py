"""Many seeds on every core: each worker takes the next seeds, nothing is shared between them."""

import gc
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from simulation.faults import KINDS, Kind
from simulation.run import SeedReport, Subject, run_seed
from simulation.store import Plant

SEEDS_A_TURN = 8
"""How many seeds a worker takes at a time."""
FAST_FOLDER = Path("/dev/shm")  # noqa: S108 - agents keep files there that nobody reads, and only while a run lasts


@contextmanager
def working_folder() -> Iterator[Path]:
    """Give a folder for agents' files, in memory where the system has such a place."""
    parent = FAST_FOLDER if FAST_FOLDER.is_dir() and os.access(FAST_FOLDER, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="amp-sim-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_seeds(
    seeds: Iterable[int],
    *,
    subject: Subject | None = None,
    faults: Collection[Kind] = KINDS,
    plant: Plant = "",
    jobs: int | None = None,
) -> Iterator[SeedReport]:
    """Return the reports of seeds as they are ready, in any order.

    Args:
        jobs: How many processes work; by default one a core. With 1 nothing is forked.
    """
    workers = jobs or os.cpu_count() or 1
    with working_folder() as folder:
        gc.collect()
        gc.freeze()
        work = partial(_run, folder=folder, subject=subject, faults=tuple(faults), plant=plant)
        try:
            if workers == 1:
                yield from map(work, seeds)
                return
            with multiprocessing.get_context("fork").Pool(workers) as pool:
                yield from pool.imap_unordered(work, seeds, chunksize=SEEDS_A_TURN)
        finally:
            gc.unfreeze()


def _run(
    seed: int, *, folder: Path, subject: Subject | None, faults: Collection[Kind], plant: Plant
) -> SeedReport:
    own = folder / str(seed)
    own.mkdir()
    try:
        return run_seed(seed, folder=own, subject=subject, faults=faults, plant=plant)
    finally:
        shutil.rmtree(own, ignore_errors=True)
        gc.collect()
