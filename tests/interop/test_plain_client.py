"""What any AMP client may expect of a mesh, seen by one that shares no code with it."""

import asyncio
import hashlib
import hmac
import importlib.util
import json
import sys
import time
from pathlib import Path

import httpx
import pytest

HERE = Path(__file__).parent


def _load(name):
    spec = importlib.util.spec_from_file_location(f"interop_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


plain = _load("plain_client")
PlainClient, RemoteError, envelope, result_of = (
    plain.PlainClient,
    plain.RemoteError,
    plain.envelope,
    plain.result_of,
)

pytestmark = pytest.mark.processes


async def upper(parameters):
    return {"text": parameters["text"].upper()}


async def fail(parameters):
    raise ValueError("no")


async def never(parameters):
    await asyncio.sleep(60)


@pytest.mark.parametrize("path", ["/amp/v1/ws", "/ws", "/"])
async def test_every_socket_path_takes_a_client(port, path):
    async with PlainClient(f"path-{len(path)}", f"ws://127.0.0.1:{port}{path}") as client:
        assert "agents" in await client.request("discovery", {"query": {}}, to="registry")
        assert not client.violations


@pytest.mark.parametrize("shape", ["specification", "reference"])
async def test_registration_in_both_shapes_makes_the_agent_reachable(url, shape):
    async with (
        PlainClient(f"worker-{shape}", url, handlers={f"text-upper-{shape}": upper}) as worker,
        PlainClient("asker", url) as asker,
    ):
        assert (await worker.register(shape=shape))["registered"] is True
        by_capability = await asker.request(f"text-upper-{shape}", {"text": "a"})
        by_agent = await asker.request(f"text-upper-{shape}", {"text": "b"}, to=f"worker-{shape}")
        assert (by_capability["text"], by_agent["text"]) == ("A", "B")
        assert not worker.violations
        assert not asker.violations


async def test_agent_without_capabilities_gets_addressed_requests(url):
    async with (
        PlainClient("quiet", url, handlers={"secret": upper}) as quiet,
        PlainClient("asker", url) as asker,
    ):
        await quiet.request("discovery", {"query": {}}, to="registry")
        assert (await asker.request("secret", {"text": "x"}, to="quiet"))["text"] == "X"


async def test_each_error_code_comes_at_once(url):
    async with (
        PlainClient("errors", url, handlers={"fails": fail, "hangs": never}) as worker,
        PlainClient("asker", url) as asker,
    ):
        await worker.register()
        began = time.monotonic()
        with pytest.raises(RemoteError) as nobody:
            await asker.request("fails", {}, to="nobody-here")
        with pytest.raises(RemoteError) as unknown:
            await asker.request("no-such-capability", {})
        with pytest.raises(RemoteError) as not_offered:
            await asker.request("no-such-capability", {}, to="errors")
        with pytest.raises(RemoteError) as failed:
            await asker.request("fails", {})
        with pytest.raises(RemoteError) as wrong_kind:
            result_of(await asker.exchange(envelope("asker", "question", {})))
        with pytest.raises(RemoteError) as version:
            result_of(
                await asker.exchange(
                    envelope("asker", "request", {"capability": "fails"}, protocol="AMP/2.0")
                )
            )
        with pytest.raises(RemoteError) as identity:
            result_of(await asker.exchange(envelope("somebody-else", "request", {"capability": "fails"})))
        with pytest.raises(RemoteError) as parameters:
            await asker.request("registration", {"agent": {"id": 7}}, to="registry")
        with pytest.raises(RemoteError) as large:
            await asker.request("fails", {"text": "x" * 1_100_000})
        assert time.monotonic() - began < 2
        assert nobody.value.code == "AGENT_NOT_FOUND"
        assert unknown.value.code == not_offered.value.code == "CAPABILITY_NOT_FOUND"
        assert "fails" in unknown.value.details["available_capabilities"]
        assert failed.value.code == "EXECUTION_ERROR"
        assert wrong_kind.value.code == "UNSUPPORTED_MESSAGE_TYPE"
        assert version.value.code == "INVALID_SCHEMA"
        assert version.value.details["supported"] == ["AMP/1.0", "AIP/1.0"]
        assert identity.value.code == "AUTHENTICATION_FAILED"
        assert parameters.value.code == "INVALID_PARAMETERS"
        assert large.value.code == "INSUFFICIENT_RESOURCES"
        assert not asker.violations


async def test_agent_that_vanishes_fails_its_requests_at_once(url):
    async with PlainClient("asker", url) as asker:
        asked_for = asyncio.Event()

        async def hang(parameters):
            asked_for.set()
            await never(parameters)

        worker = PlainClient("vanishing", url, handlers={"hangs": hang})
        await worker.connect()
        await worker.register()
        asked = asyncio.create_task(asker.request("hangs", {}))
        await asyncio.wait_for(asked_for.wait(), 5)
        began = time.monotonic()
        worker._socket.transport.abort()
        with pytest.raises(RemoteError) as lost:
            await asked
        assert lost.value.code == "NETWORK_ERROR"
        assert lost.value.details["agent_id"] == "vanishing"
        assert time.monotonic() - began < 1
        await worker.close()


async def test_events_reach_everybody_else_or_one(url):
    async with (
        PlainClient("one", url) as one,
        PlainClient("two", url) as two,
        PlainClient("three", url) as three,
    ):
        for client in (one, two, three):
            await client.request("discovery", {"query": {}}, to="registry")
        await one.publish("greeting", text="hi")
        for client in (two, three):
            message = await asyncio.wait_for(client.events.get(), 5)
            assert message["payload"] == {"event_type": "greeting", "text": "hi"}
        await one.publish("whisper", to="three", text="psst")
        assert (await asyncio.wait_for(three.events.get(), 5))["payload"]["event_type"] == "whisper"
        await two.request("discovery", {"query": {}}, to="registry")
        assert one.events.empty()
        assert two.events.empty()


async def test_hundred_requests_at_once_all_get_their_own_answer(url):
    async def slow_upper(parameters):
        await asyncio.sleep(0.01)
        return await upper(parameters)

    async with (
        PlainClient("busy", url, handlers={"upper": slow_upper}) as worker,
        PlainClient("asker", url) as asker,
    ):
        await worker.register()
        answers = await asyncio.gather(*(asker.request("upper", {"text": f"t{n}"}) for n in range(100)))
        assert [each["text"] for each in answers] == [f"T{n}" for n in range(100)]


def _broken(**changes):
    value = envelope("hostile", "request", {"capability": "x", "parameters": {}})
    value["message"].update(changes)
    return json.dumps({**value, "message": {k: v for k, v in value["message"].items() if v is not None}})


MALFORMED = {
    "no json": "{not json",
    "empty": "",
    "a number": "42",
    "an array": "[1, 2, 3]",
    "a welcome": '{"type": "welcome"}',
    "no source": _broken(source=None),
    "source without id": _broken(source={}),
    "id is a number": _broken(id=7),
    "payload is text": _broken(payload="text"),
    "wrong header": _broken(headers={"priority": "high"}),
    "too deep": _broken(payload={"a": json.loads("[" * 60 + "]" * 60)}),
    "no protocol": json.dumps({"message": json.loads(_broken())["message"]}),
    "binary": b"\x00\x01\x02",
    "far too deep": '{"protocol":"AMP/1.0","message":' + "[" * 100_000 + "]" * 100_000 + "}",
    "event without type": _broken(type="event", payload={}),
    "reply without correlation": _broken(type="response", payload={"status": "success"}),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_frame_gets_its_error_and_the_connection_lives(url, name):
    async with PlainClient("hostile", url) as client:
        await client.send_raw(MALFORMED[name])
        assert await client.request("discovery", {"query": {}}, to="registry")
        assert client.stray[0]["payload"]["error"]["code"] == "INVALID_SCHEMA"
        assert not client.violations


async def test_client_that_reconnects_without_announcing_itself_keeps_its_capabilities(url):
    async with PlainClient("asker", url) as asker:
        worker = PlainClient("returning", url, handlers={"come-back": upper})
        await worker.connect()
        await worker.register()
        await worker.close()
        with pytest.raises(RemoteError):
            await asker.request("come-back", {"text": "a"})
        await worker.connect()
        await worker.publish("i.am.back")
        await asker.events.get()
        assert (await asker.request("come-back", {"text": "a"}))["text"] == "A"
        await worker.close()


async def test_newer_socket_replaces_the_older(url):
    async with PlainClient("twin", url) as older, PlainClient("twin", url) as newer:
        await older.publish("first")
        await older.request("discovery", {"query": {}}, to="registry")
        assert await newer.request("discovery", {"query": {}}, to="registry")
        await asyncio.wait_for(older.closed(), 5)


async def test_router_restart_is_survived_by_connecting_again(request):
    conftest = _load("conftest")
    process, port = conftest.start_router()
    client = PlainClient("survivor", f"ws://127.0.0.1:{port}/ws", handlers={"survive": upper})
    try:
        await client.connect()
        await client.register()
        process.kill()
        await asyncio.wait_for(client.closed(), 5)
        await client.close()
        conftest.stop_router(process)
        process, _ = conftest.start_router(port=port)
        await client.connect()
        await client.register()
        assert (await client.request("survive", {"text": "x"}, to="survivor"))["text"] == "X"
    finally:
        await client.close()
        conftest.stop_router(process)


async def test_version_spellings_of_the_specification_are_taken(url):
    async with PlainClient("old", url, handlers={"old-upper": upper}) as client:
        await client.register()
        for protocol in ("AIP/1.0", "AMP/1.3"):
            value = envelope(
                "old", "request", {"capability": "old-upper", "parameters": {"text": "v"}}, protocol=protocol
            )
            assert result_of(await client.exchange(value))["text"] == "V"


async def test_signed_message_of_a_reference_client_is_taken_and_forwarded(url):
    def signed(value, key):
        text = json.dumps(value["message"], sort_keys=True)
        digest = hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()
        value["message"]["headers"]["signature"] = {"algorithm": "HMAC-SHA256", "value": digest}
        return value

    async with PlainClient("signer", url, handlers={"sign-upper": upper}) as client:
        await client.register()
        payload = {"capability": "sign-upper", "parameters": {"text": "é"}}
        good = signed(envelope("signer", "request", payload, signature=None), "default-key")
        assert result_of(await client.exchange(good))["text"] == "É"
        forged = signed(envelope("signer", "request", payload, signature=None), "another key")
        with pytest.raises(RemoteError) as refused:
            result_of(await client.exchange(forged))
        assert refused.value.code == "AUTHENTICATION_FAILED"


async def test_discovery_negotiation_delegation_and_versions(url):
    async with (
        PlainClient("skilled", url, handlers={"skill-upper": upper}) as worker,
        PlainClient("asker", url) as asker,
    ):
        await worker.register()

        async def ask(payload, **where):
            return result_of(await asker.exchange(envelope("asker", "request", payload, **where)))

        for payload in (
            {"query": {"capabilities": ["skill-upper"], "constraints": {"max_latency_ms": 500}}},
            {"capability": "discovery", "parameters": {"query": {"capability_pattern": "skill-*"}}},
        ):
            found = await ask(payload, to="registry", capability="discovery")
            assert [each["identity"]["id"] for each in found["agents"]] == ["skilled"]
            assert set(found["agents"][0]) >= {"identity", "capabilities", "endpoints", "health"}
        wanted = {"capabilities": ["skill-upper", "flying"], "estimated_tokens": 10}
        offered = await ask({"negotiation_type": "capability_check", "requirements": wanted}, to="skilled")
        assert (offered["accepted"], offered["missing"]) == (False, ["flying"])
        delegated = await ask(
            {
                "delegation": {
                    "parent_task_id": "p1",
                    "subtask": {
                        "capability": "skill-upper",
                        "parameters": {"text": "d"},
                        "completion_callback": "http://127.0.0.1:9/never-called",
                    },
                }
            }
        )
        assert delegated["text"] == "D"
        version = {"id": "skill-upper", "version_constraint": ">=1.0.0 <2.0.0", "preferred_version": "1.0"}
        assert (await ask({"capability_request": version, "parameters": {"text": "w"}}))["text"] == "W"
        version["version_constraint"] = ">=2.0.0"
        with pytest.raises(RemoteError) as missing:
            await ask({"capability_request": version, "parameters": {"text": "w"}})
        assert missing.value.details["available_versions"] == ["1.0"]


async def test_http_binding_posts_polls_and_invokes(url, base):
    async with (
        PlainClient("http-worker", url, handlers={"http-upper": upper}) as worker,
        httpx.AsyncClient(base_url=base) as http,
    ):
        await worker.register()
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/amp/v1/messages/poll")).status_code == 204
        value = envelope(
            "poller",
            "request",
            {"capability": "http-upper", "parameters": {"text": "p"}},
            capability="http-upper",
        )
        for _ in range(2):  # the reference client repeats a post after a server error
            posted = await http.post("/amp/v1/messages", json=value)
            assert (posted.status_code, posted.json()) == (200, {"message_id": value["message"]["id"]})
        messages = await _poll(http)
        assert [result_of(each["message"])["text"] for each in messages] == ["P"]
        assert (await http.get("/amp/v1/messages/poll")).status_code == 204
        missing = envelope("poller", "request", {"capability": "nothing", "parameters": {}})
        await http.post("/amp/v1/messages", json=missing)
        (message,) = await _poll(http)
        assert message["message"]["payload"]["error"]["code"] == "CAPABILITY_NOT_FOUND"
        for path in ("/amp/v1/invoke", "/aip/v1/invoke"):
            value["message"]["id"] += "x"
            answer = (await http.post(path, json=value)).json()
            assert result_of(answer["message"])["text"] == "P"
            assert answer["message"]["headers"]["correlation_id"] == value["message"]["id"]
        refused = await http.post(
            "/amp/v1/messages", content="{", headers={"Content-Type": "application/json"}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "INVALID_SCHEMA")


async def test_agent_can_live_on_http_alone_below_its_own_base_path(url, base):
    async with (
        PlainClient("asker", url) as asker,
        httpx.AsyncClient(base_url=f"{base}/agents/slow-one") as http,
    ):
        assert (await http.get("/health")).status_code == 200
        registration = {"agent": {"id": "slow-one"}, "capabilities": [{"id": "slow-upper"}]}
        await http.post("/amp/v1/messages", json=envelope("slow-one", "request", registration, to="registry"))
        assert result_of((await _poll(http))[0]["message"])["registered"] is True
        asked = asyncio.create_task(asker.request("slow-upper", {"text": "z"}))
        (incoming,) = await _poll(http)
        payload = {"status": "success", "result": {"text": "Z"}, "metadata": {}}
        reply = envelope(
            "slow-one", "response", payload, to="asker", correlation_id=incoming["message"]["id"]
        )
        await http.post("/amp/v1/messages", json=reply)
        assert (await asked)["text"] == "Z"


async def _poll(http):
    for _ in range(200):
        answer = await http.get("/amp/v1/messages/poll")
        if answer.status_code == 200:
            return answer.json()["messages"]
        await asyncio.sleep(0.02)
    raise AssertionError("nothing came back")


async def test_registry_over_rest(base):
    async with httpx.AsyncClient(base_url=base) as http:
        body = {
            "identity": {"id": "rest-agent", "name": "r", "framework": "f"},
            "capabilities": [{"id": "rest-cap"}],
        }
        created = await http.post("/agents", json=body)
        assert created.status_code == 201
        assert created.json()["capabilities"][0]["id"] == "rest-cap"
        assert (await http.get("/agents/rest-agent")).json()["identity"]["id"] == "rest-agent"
        assert (await http.get("/agents/search", params={"capability": "rest-cap"})).json() == {"agents": []}
        assert (await http.delete("/agents/rest-agent")).status_code == 200
        assert (await http.get("/agents/rest-agent")).status_code == 404


async def test_web_pages_are_refused(base, url):
    async with httpx.AsyncClient(base_url=base) as http:
        value = envelope("page", "request", {"capability": "discovery", "parameters": {}}, to="registry")
        for headers in (
            {"Origin": "http://evil.example"},
            {"Host": "evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            assert (await http.post("/amp/v1/invoke", json=value, headers=headers)).status_code == 403
        plain_text = {"Content-Type": "text/plain"}
        assert (
            await http.post("/amp/v1/invoke", content=json.dumps(value), headers=plain_text)
        ).status_code == 415


async def test_api_key_is_demanded_when_the_router_has_one():
    conftest = _load("conftest")
    process, port = conftest.start_router("--api-key", "s3cret-key", "--api-key", "bound-key=only-me")
    try:
        url = f"ws://127.0.0.1:{port}/ws"
        with pytest.raises(Exception, match="401"):
            await PlainClient("nobody", url).connect()
        async with PlainClient("anyone", url, api_key="s3cret-key") as client:
            assert await client.request("discovery", {"query": {}}, to="registry")
        async with PlainClient("impostor", url, api_key="bound-key") as client:
            with pytest.raises(RemoteError) as refused:
                await client.request("discovery", {"query": {}}, to="registry")
            assert refused.value.code == "AUTHENTICATION_FAILED"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/metrics")).status_code == 401
            with_key = await http.get("/metrics", headers={"Authorization": "Bearer s3cret-key"})
            assert "amp_router_requests" in with_key.text
    finally:
        conftest.stop_router(process)


async def test_the_example_agent_serves_its_capability(url, port):
    example = Path(__file__).parents[2] / "examples" / "external_agent.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(example), url, stdout=asyncio.subprocess.PIPE
    )
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 15)
        assert b"registered" in line
        async with PlainClient("asker", url) as asker:
            assert (await asker.request("text-uppercase", {"text": "abc"}))["text"] == "ABC"
            with pytest.raises(RemoteError) as wrong:
                await asker.request("text-uppercase", {"text": 5})
            assert wrong.value.code == "INVALID_PARAMETERS"
    finally:
        process.terminate()
        await process.wait()
