"""SIGKILL while the store is made, while ended instances are removed, and while an executor brings back its results."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
import pytest_asyncio

from orchestration import contracts
from tests.chaos.checker import Store
from tests.chaos.mesh import eventually
from tests.chaos.scene import HIT_SECONDS, Scene, running_scene
from tests.chaos.workload import PARCEL

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

OLD_MICROSECONDS = 40 * 86_400 * 1_000_000
KEPT_DAYS = 30
PARCELS = 6

_MAKE_OLD = "UPDATE instances SET completed_at = completed_at - ? WHERE instance_id = ?"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    orders = {"state": "store.migration.before_commit:1"}
    async with running_scene(
        tmp_path_factory.mktemp("upkeep"), engines=1, executors=1, first_orders=orders
    ) as scene:
        yield scene


async def test_a_store_whose_making_was_cut_off_is_made_again(scene: Scene) -> None:
    assert [death.point for death in scene.mesh.deaths] == ["store.migration.before_commit"]
    async with scene.work():
        pass


async def test_results_that_wait_in_a_spool_arrive_once_although_their_delivery_is_cut_off(
    scene: Scene,
) -> None:
    mesh = scene.mesh
    spool = mesh.data / "spool"
    async with scene.work((PARCEL,) * PARCELS):
        await eventually(lambda: len(scene.customer.asked) >= PARCELS, HIT_SECONDS, "parcels are under way")
        await asyncio.sleep(0.4)
        mesh.kill("engine-1", hold=True)
        mesh.kill("state", hold=True)
        await eventually(
            lambda: sum(1 for _ in spool.rglob("*.result")) >= 2,
            HIT_SECONDS,
            "two results are in the spool",
        )
        life = await mesh.rearm("executor-1", "executor.recovery.between:1")
        mesh.release("state")
        await scene.hit(life, "executor.recovery.between")
        mesh.release("engine-1")


async def test_removing_old_instances_is_done_as_a_whole(scene: Scene) -> None:
    mesh = scene.mesh
    await scene.last_look()
    old, kept = scene.instances, scene.customer.asked.keys() - set(scene.instances)
    life = mesh.kill("state", hold=True)
    await life.ended.wait()
    with closing(sqlite3.connect(mesh.database)) as database, database:
        database.executemany(_MAKE_OLD, [(OLD_MICROSECONDS, name) for name in old])
    mesh.release("state")
    life = await mesh.rearm("state", "store.purge.before_commit:1")
    request = contracts.PurgeRequest(older_than_days=KEPT_DAYS)
    asking = asyncio.create_task(scene.ask(contracts.STATE_PURGE.id, request, contracts.PurgeReply))
    await scene.hit(life, "store.purge.before_commit")
    await asking

    def removed() -> bool:
        with Store(mesh.database) as store:
            return {row.instance_id for row in store.rows()} == kept

    await eventually(removed, HIT_SECONDS, "old instances are gone, others are not")
    with Store(mesh.database) as store:
        assert not store.stray_events()
    scene.forget(old)
