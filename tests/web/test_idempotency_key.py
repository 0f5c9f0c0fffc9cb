"""The header Idempotency-Key of a start: one instance, the same body, and every wrong use refused."""

import aiohttp
import pytest

from tests.web.fake_mesh import FakeMesh

START = "/api/workflows/small/start"
BODY = {"inputs": {"name": "Ada"}}


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


async def test_a_repeated_start_gets_the_same_body_and_says_so(
    http: aiohttp.ClientSession, mesh: FakeMesh
) -> None:
    before = len(mesh.rows)
    async with http.post(START, json=BODY, headers=keyed("order-7")) as first:
        first_body = await first.read()
    async with http.post(START, json=BODY, headers=keyed("order-7")) as again:
        again_body = await again.read()
    assert (first.status, again.status) == (201, 201)
    assert first_body == again_body
    assert first.headers["Location"] == again.headers["Location"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(mesh.rows) == before + 1


async def test_another_request_with_the_key_is_refused(http: aiohttp.ClientSession) -> None:
    async with http.post(START, json=BODY, headers=keyed("order-7")):
        pass
    async with http.post(START, json={"inputs": {"name": "Bob"}}, headers=keyed("order-7")) as response:
        document = await response.json()
    assert (response.status, document["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "naïve"])
async def test_what_can_be_no_key_is_refused_and_starts_nothing(
    http: aiohttp.ClientSession, mesh: FakeMesh, key: str
) -> None:
    before = len(mesh.rows)
    async with http.post(START, json=BODY, headers=keyed(key)) as response:
        document = await response.json()
    assert (response.status, document["code"]) == (400, "invalid_idempotency_key")
    assert len(mesh.rows) == before


async def test_two_keys_in_one_request_are_refused(http: aiohttp.ClientSession) -> None:
    headers = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]
    async with http.post(START, json=BODY, headers=headers) as response:
        assert response.status == 400


async def test_a_key_beside_an_instance_id_is_refused(http: aiohttp.ClientSession) -> None:
    async with http.post(START, json={**BODY, "instance_id": "mine"}, headers=keyed("order-7")) as response:
        document = await response.json()
    assert response.status == 422
    assert document["errors"][0]["pointer"] == "/instance_id"
