"""The pages in a real Chromium: what a person sees, does and never suffers."""

import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, Route, async_playwright, expect

from orchestration import contracts
from orchestration import events as e
from orchestration.status import InstanceStatus
from runtime.clock import SystemClock
from runtime.settings import WebSettings
from tests.web import scenes
from tests.web.fake_mesh import FakeMesh
from web import vendor
from web.server.application import WebApplication
from web.server.fold import fold, new_document

CHROMIUM = os.environ.get("AMP_CHROMIUM", "/usr/bin/chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 360, "height": 740}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no Chromium at {CHROMIUM}; set AMP_CHROMIUM"),
    pytest.mark.skipif(not vendor.is_current(), reason=f"the libraries are missing; run {vendor.COMMAND}"),
]

ALL_PAGES = (
    "/", "/workflows", "/workflows/order-fulfilment", "/workflows/order-fulfilment?tab=source",
    "/workflows/order-fulfilment?tab=instances", "/workflows/order-fulfilment?start=1", "/instances",
    "/instances?status=failed", "/instances?text=nothing-like-this", "/instances/ins_01KORDERRUNNING",
    "/instances/ins_01KORDERFAILED?task=charge_card", "/instances/ins_01KORDERDONE?task=reserve_south",
    "/instances/ins_01KORDERRETRY", "/instances/ins_01KORDERPAUSED", "/instances/ins_01KREPORTSTOPPED",
    "/instances/ins_01KREPORTPENDING", "/instances/ins_01KORDERFAILED?tab=events",
    "/instances/ins_01KORDERDONE?tab=io", "/instances/nothing", "/nowhere", "/instances/ins_01KORDERUNKNOWN",
    "/instances/ins_01KORDERUNKNOWN?task=charge_card", "/instances/ins_01KORDERUNKNOWN?task=summarise",
)  # fmt: skip


@pytest.fixture
def mesh() -> FakeMesh:
    return scenes.build(datetime.now(UTC))


@pytest.fixture
async def base(mesh: FakeMesh) -> AsyncIterator[str]:
    player = scenes.Player(mesh, task_seconds=0.15)
    app = WebApplication(WebSettings(port=0), mesh, clock=SystemClock(), random=Random(1))
    port = await app.start(install_libraries=False)
    yield f"http://127.0.0.1:{port}"
    await player.stop()
    await app.stop()


class Visitor:
    """A page, and everything on it that should never happen."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.foreign: list[str] = []
        self.violations: list[str] = []
        self.errors: list[str] = []
        self.dialogs: list[str] = []

    async def begin(self) -> None:
        await self.page.route("**/*", self._only_own)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.dialogs.append(dialog.message))
        self.page.on("console", self._console)

    async def _only_own(self, route: Route) -> None:
        if route.request.url.startswith((self.base, "data:")):
            await route.continue_()
        else:
            self.foreign.append(route.request.url)
            await route.abort()

    def _console(self, message: Any) -> None:
        if "Content Security Policy" in message.text:
            self.violations.append(message.text)
        elif message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    async def open(self, path: str) -> None:
        await self.page.goto(self.base + path)
        await expect(self.page.get_by_text("Live", exact=True)).to_be_attached()
        await expect(self.page.locator(".skeleton")).to_have_count(0)

    def check(self) -> None:
        assert self.foreign == []
        assert self.violations == []
        assert self.errors == []
        assert self.dialogs == []


@pytest.fixture
async def visitors(base: str) -> AsyncIterator[Any]:
    made: list[Visitor] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))

        async def visit(size: dict[str, int] = DESKTOP, scheme: str = "light", **more: Any) -> Visitor:
            context = await browser.new_context(viewport=size, color_scheme=scheme, **more)  # type: ignore[arg-type]
            visitor = Visitor(await context.new_page(), base)
            await visitor.begin()
            made.append(visitor)
            return visitor

        yield visit
        for visitor in made:
            visitor.check()
        await browser.close()


async def test_instance_started_elsewhere_appears_and_moves_live(
    visitors: Any, base: str, mesh: FakeMesh
) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/")
    response = await page.request.post(
        f"{base}/api/workflows/hello-world-workflow/start",
        data={"inputs": {"name": "Ada"}, "instance_id": "ins_live"},
    )
    assert response.status == 201
    row = page.locator(".active-row").filter(has_text="Hello World")
    await expect(row).to_be_visible()
    await expect(page.locator("a[href='/instances/ins_live']").first).to_be_visible()
    await expect(row).to_have_count(0)
    await expect(
        page.locator("tr", has=page.locator("a[href='/instances/ins_live']")).locator(".state")
    ).to_have_text("Completed")


async def test_graph_and_list_follow_an_instance(visitors: Any, mesh: FakeMesh) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/instances/ins_01KORDERRUNNING")
    node = page.locator("[data-task=reserve_south]")
    await expect(node).to_have_class("node state-running ")
    place = await node.get_attribute("transform")
    now = datetime.now(UTC)
    outputs = {"south": {"reserved": 1}}
    mesh.emit(
        "ins_01KORDERRUNNING", e.TaskCompleted(at=now, task_id="reserve_south", attempt=1, outputs=outputs)
    )
    await expect(node).to_have_class("node state-completed ")
    assert await node.get_attribute("transform") == place
    await node.click()
    await expect(page).to_have_url(f"{visitor.base}/instances/ins_01KORDERRUNNING?task=reserve_south")
    await expect(page.locator("[data-task-panel=reserve_south]")).to_contain_text("reserved")


async def test_failed_instance_says_what_failed_and_why(visitors: Any) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/instances/ins_01KORDERFAILED")
    await expect(page.locator(".failure")).to_contain_text("503 Service Unavailable")
    await expect(page.locator(".failure")).to_contain_text("5 tasks skipped as a consequence")
    await page.get_by_role("button", name="Charge the card", exact=True).click()
    panel = page.locator("[data-task-panel=charge_card]")
    await expect(panel.locator(".attempts li")).to_have_count(3)
    await expect(panel).to_contain_text("escalate")
    await page.get_by_role("tab", name="Inputs & outputs").click()
    await expect(page.get_by_text("card_token")).to_be_visible()
    await expect(page.get_by_text("tok_very_secret")).to_have_count(0)


async def test_a_person_settles_what_nobody_knows(visitors: Any, mesh: FakeMesh) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/instances/ins_01KORDERUNKNOWN?task=charge_card")
    await expect(page.locator(".instance-head .reason")).to_contain_text(
        "Nobody knows whether attempt 1 of charge_card"
    )
    panel = page.locator("[data-task-panel=charge_card]")
    await expect(panel.locator(".state")).to_have_text("Outcome unknown")
    await expect(panel.locator("[data-reason=outcome_unknown_needs_person]")).to_be_visible()
    await panel.get_by_role("button", name="Complete").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("5 tasks wait for it")
    await dialog.get_by_label("Outputs").fill("[1]")
    await dialog.get_by_role("button", name="Complete task").click()
    await expect(dialog).to_contain_text("must be an object")
    await dialog.get_by_label("Outputs").fill('{"payment": {"id": "pay_7"}}')
    await dialog.get_by_role("button", name="Complete task").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(panel.locator(".state")).to_have_text("Completed")
    await expect(panel).to_contain_text("pay_7")
    await expect(panel.get_by_role("button", name="Retry")).to_have_count(0)
    await expect(page.locator(".instance-head .reason")).not_to_contain_text("Nobody knows")


async def test_the_reason_follows_what_happens(visitors: Any, mesh: FakeMesh) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/instances/ins_01KORDERRUNNING?task=notify")
    reason = page.locator(".instance-head .reason")
    await expect(reason).to_contain_text("reserve_south runs since")
    panel = page.locator("[data-task-panel=notify]")
    await expect(panel).to_contain_text("notify waits for summarise, which waits for reserve_south")
    await expect(panel.get_by_role("button", name="Retry")).to_be_disabled()
    await expect(panel).to_contain_text("Retry is not possible: task notify is pending")
    mesh.emit("ins_01KORDERRUNNING", e.InstancePaused(at=datetime.now(UTC), reason="lunch"))
    await expect(reason).to_contain_text("is paused: lunch; it goes on when somebody resumes it")


async def test_orphans_are_told_on_the_overview(visitors: Any, mesh: FakeMesh) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/")
    await expect(page.locator(".orphans")).to_have_count(0)
    mesh.orphans = [
        contracts.Orphan(
            instance_id="ins_01KORDERRETRY", workflow_id="order-fulfilment", status=InstanceStatus.RUNNING,
            code="no_owner", reason="no engine owns it",
        )
    ]  # fmt: skip
    mesh.publish("orphans.changed", {"count": 1})
    banner = page.locator(".orphans")
    await expect(banner).to_contain_text("1 instance has nobody to wake it")
    assert await violations(page) == []
    await banner.get_by_role("link").click()
    await expect(page).to_have_url(f"{visitor.base}/instances/ins_01KORDERRETRY")


async def test_start_form_is_made_from_the_schema(visitors: Any, mesh: FakeMesh) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/workflows/order-fulfilment")
    await page.get_by_role("button", name="Start").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_label("order_id")).to_be_focused()
    await expect(dialog.get_by_label("country")).to_have_value("DE")
    await expect(dialog.get_by_label("card_token")).to_have_attribute("type", "password")
    await dialog.get_by_label("amount").fill("lots")
    await dialog.get_by_role("button", name="Start").click()
    await expect(dialog.get_by_text("This must be a number.")).to_be_visible()
    await dialog.get_by_label("amount").fill("12.5")
    await dialog.get_by_role("button", name="Start").click()
    await expect(dialog.get_by_text("'order_id' is required")).to_be_visible()
    await expect(dialog.get_by_label("order_id")).to_have_attribute("aria-invalid", "true")
    await dialog.get_by_label("order_id").fill("A-1")
    await dialog.get_by_label("items").fill('[{"sku": 1}]')
    await dialog.get_by_role("tab", name="JSON").click()
    await expect(dialog.locator("#inputs-json")).to_have_value(
        json.dumps(
            {
                "order_id": "A-1",
                "amount": 12.5,
                "express": False,
                "customer": {"country": "DE"},
                "items": [{"sku": 1}],
            },
            indent=2,
        )
    )
    await dialog.get_by_role("button", name="Start").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Order fulfilment")
    await expect(page.locator(".instance-head .state")).to_have_text("Completed")
    assert any(row.instance_id.startswith("ins_0") for row in mesh.rows.values())


async def test_pause_resume_and_stop_state_their_effect(visitors: Any, mesh: FakeMesh) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/instances/ins_01KORDERRUNNING")
    state = page.locator(".instance-head .state")
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_role("dialog")).to_contain_text("1 running task will finish")
    await page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    await expect(state).to_have_text("Paused")
    await page.get_by_role("button", name="Resume").click()
    await expect(state).to_have_text("Running")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.get_by_role("dialog")).to_contain_text("2 waiting tasks")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(page.get_by_role("button", name="Stop")).to_be_focused()
    await page.get_by_role("button", name="Stop").click()
    await page.get_by_role("button", name="Stop instance").click()
    await expect(state).to_have_text("Cancelled")
    await expect(page.get_by_role("button", name="Pause")).to_have_count(0)


async def test_keyboard_alone_reaches_a_task_and_comes_back(visitors: Any) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/instances/ins_01KORDERDONE")
    await page.keyboard.press("Tab")
    await expect(page.get_by_text("Skip to content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    node = page.locator("[data-task=charge_card]")
    await expect(node).to_be_visible()
    for _ in range(30):
        await page.keyboard.press("Tab")
        if await node.evaluate("node => node === document.activeElement"):
            break
    await page.keyboard.press("Enter")
    await expect(page.locator("[data-task-panel=charge_card]")).to_be_visible()
    await page.go_back()
    await expect(page).not_to_have_url(f"{visitor.base}/instances/ins_01KORDERDONE?task=charge_card")


async def test_filters_live_in_the_address(visitors: Any) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/instances")
    await page.locator(".chip", has_text="Failed").click()
    await expect(page).to_have_url(f"{visitor.base}/instances?status=failed")
    await expect(page.locator("tbody tr")).to_have_count(1)
    await page.go_back()
    await expect(page.locator("tbody tr")).to_have_count(22)
    await page.get_by_label("Find instances").fill("nothing like this")
    await page.get_by_role("button", name="Clear filters").click()
    await expect(page.locator("tbody tr")).to_have_count(22)


async def test_unknown_address_is_a_real_404(visitors: Any, base: str) -> None:
    visitor = await visitors()
    response = await visitor.page.goto(f"{base}/nowhere")
    assert response.status == 404
    await expect(visitor.page.get_by_text("There is no page")).to_be_visible()


async def test_lost_server_is_said_and_found_again(visitors: Any, base: str) -> None:
    visitor = await visitors()
    page = visitor.page
    server: list[Any] = []

    async def between(route: Any) -> None:
        server.append((route, route.connect_to_server()))

    await page.route_web_socket("**/api/ws", between)
    await visitor.open("/instances/ins_01KORDERRUNNING")
    await expect(page.locator(".instance-head .reason")).to_contain_text("runs since")
    first, behind = server[0]
    await behind.close()
    await first.close()
    await expect(page.get_by_text("Reconnecting")).to_be_visible()
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    await expect(page.locator("[data-task=reserve_south]")).to_be_visible()


async def test_hostile_text_stays_text(visitors: Any, mesh: FakeMesh) -> None:
    attack = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'{{7*7}}javascript:alert(3)"
    definition = {
        "id": "hostile", "name": attack, "description": attack, "tags": [attack],
        "input_schema": {"type": "object", "properties": {attack: {"type": "string", "description": attack}}},
        "tasks": [{"id": "t", "name": attack, "type": attack, "parameters": {attack: attack}, "outputs": ["x"]}],
    }  # fmt: skip
    mesh.define(definition, source=attack)
    mesh.create("hostile", "ins_hostile", {attack: attack}, at=datetime.now(UTC))
    now = datetime.now(UTC)
    error = e.ErrorInfo(code=attack, message=attack, details={attack: attack})
    mesh.emit(
        "ins_hostile", e.InstanceAdmitted(at=now), e.TaskStarted(at=now, task_id="t", attempt=1, token="t"),
        e.AttemptFailed(at=now, task_id="t", attempt=1, error=error), e.TaskFailed(at=now, task_id="t", error=error),
        e.InstanceFailed(at=now, error=error, task_id="t"),
    )  # fmt: skip
    visitor = await visitors()
    page = visitor.page
    for path in (
        "/", "/workflows", "/workflows/hostile", "/workflows/hostile?tab=source", "/workflows/hostile?start=1",
        "/instances", "/instances/ins_hostile?task=t", "/instances/ins_hostile?tab=events",
        "/instances/ins_hostile?tab=io",
    ):  # fmt: skip
        await visitor.open(path)
        await expect(page.get_by_text("onerror=alert").first).to_be_attached()
        assert await page.locator("img").count() == 0


async def violations(page: Page) -> list[Any]:
    results = await Axe().run(page)
    return [
        (violation["id"], [node["html"][:160] for node in violation["nodes"][:3]])
        for violation in results.response["violations"]
    ]


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_is_accessible(visitors: Any, scheme: str, part: int) -> None:
    visitor = await visitors(scheme=scheme, reduced_motion="reduce")
    for path in ALL_PAGES[part::2]:
        await visitor.open(path)
        assert await violations(visitor.page) == [], path


async def test_another_sites_page_starts_and_hears_nothing(visitors: Any, base: str, mesh: FakeMesh) -> None:
    visitor = await visitors()
    page = visitor.page
    foreign = "http://foreign.example/"
    await page.route(
        f"{foreign}**", lambda route: route.fulfill(body="<h1>hi</h1>", content_type="text/html")
    )
    await page.goto(foreign)
    before = len(mesh.rows)
    heard = await page.evaluate(
        """async (base) => {
            const start = `${base}/api/workflows/hello-world-workflow/start`;
            const body = JSON.stringify({ inputs: { name: "x" } });
            const tries = [
                fetch(start, { method: "POST", mode: "no-cors", body }),
                fetch(start, { method: "POST", body, headers: { "Content-Type": "application/json" } }),
                fetch(`${base}/api/instances`).then((response) => response.text()),
                new Promise((resolve, reject) => {
                    const socket = new WebSocket(base.replace("http", "ws") + "/api/ws", "amp.ui.v1");
                    socket.onmessage = (message) => resolve(message.data);
                    socket.onclose = () => reject(new Error("closed"));
                }),
            ];
            const ends = await Promise.allSettled(tries);
            return ends.map((end) => (end.status === "fulfilled" ? (end.value.type ?? end.value) : "refused"));
        }""",
        base,
    )
    assert heard[0] in ("opaque", "refused")
    assert heard[1:] == ["refused", "refused", "refused"]
    assert len(mesh.rows) == before
    visitor.errors.clear()  # the browser's own complaints about what was refused


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_fits_a_phone(visitors: Any, scheme: str) -> None:
    visitor = await visitors(size=PHONE, scheme=scheme, has_touch=True, reduced_motion="reduce")
    for path in (*ALL_PAGES, "/instances/ins_01KORDERRUNNING?tab=graph"):
        await visitor.open(path)
        assert await visitor.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


async def test_phone_pages_are_accessible(visitors: Any) -> None:
    visitor = await visitors(size=PHONE, has_touch=True, reduced_motion="reduce")
    for path in ("/", "/workflows", "/instances", "/instances/ins_01KORDERRUNNING?tab=graph", ALL_PAGES[10]):
        await visitor.open(path)
        assert await violations(visitor.page) == [], path


async def test_theme_is_remembered(visitors: Any) -> None:
    visitor = await visitors()
    page = visitor.page
    await visitor.open("/")
    await page.get_by_role("button", name="Theme: system").click()
    await page.get_by_role("button", name="Theme: light").click()
    await page.reload()
    await expect(page.locator("html")).to_have_attribute("data-theme", "dark")


KINDS = (
    "workflow.started", "workflow.admitted", "workflow.paused", "workflow.resumed", "workflow.completed",
    "workflow.failed", "workflow.cancelled", "workflow.output_mismatched", "condition.evaluated", "task.started",
    "task.completed", "task.attempt_failed", "task.attempt_lost", "task.retrying", "error.handled", "task.failed",
    "task.outcome_unknown", "task.reconciling",
    "task.skipped", "task.cancelled", "task.reset", "state.updated", "task.late_result", "workflow.dreamt",
)  # fmt: skip


def some_event(random: Random, seq: int) -> dict[str, Any]:
    """Return an event of any kind, with any of its fields present or absent."""
    fields: dict[str, Any] = {
        "task_id": random.choice("abcdz"),
        "attempt": random.randint(1, 3),
        "inputs": {"n": random.random()},
        "trigger": "cli",
        "reason": random.choice(["", "dependency_failed", "dependencies_skipped", "why"]),
        "detail": "because",
        "reconcile": random.choice("abz"),
        "resume_at": "t9",
        "due_at": "t8",
        "outputs": {"x": random.choice([1, None, "text", [1, 2]])},
        "primary": random.choice([None, 7, {"k": 1}]),
        "primary_output": random.choice(["", "x", "y"]),
        "metadata": {"executor_id": "e-1"},
        "error": {"code": "C", "message": "m"},
        "agent_id": random.choice(["", "e-2"]),
        "problems": ["p"],
        "result": random.choice([True, False]),
        "expression": "n > 1",
        "details": {"d": 1},
        "action": "skip",
        "severity": "low",
        "escalated": True,
        "delay_seconds": 1.5,
    }
    kept = {
        key: value for key, value in fields.items() if key in ("task_id", "attempt") or random.random() < 0.7
    }
    return {"seq": seq, "at": f"t{seq}", "type": random.choice(KINDS), **kept}


async def test_browser_and_server_fold_alike(visitors: Any) -> None:
    definition = {
        "tasks": [
            {"id": "a"}, {"id": "b", "depends_on": ["a"]}, {"id": "c", "depends_on": ["b"]},
            {"id": "d", "depends_on": ["a", "c"]},
        ]
    }  # fmt: skip
    seeds = range(300)
    cases = [
        [some_event(random, seq) for seq in sorted(random.choices(range(1, 60), k=40))]
        for random in map(Random, seeds)
    ]
    expected = []
    for case in cases:
        document: Any = new_document("ins_1", definition)
        for event in case:
            fold(document, event)
        expected.append(document)
    visitor = await visitors()
    await visitor.open("/")
    begin = json.loads(json.dumps(new_document("ins_1", definition)))
    folded = await visitor.page.evaluate(
        """async ([begin, cases]) => {
            const main = document.querySelector("script[type=module]").src;
            const { fold } = await import(new URL("core/fold.js", main).href);
            return cases.map((events) => fold(begin, events));
        }""",
        [begin, cases],
    )
    for seed, ours, theirs in zip(seeds, expected, folded, strict=True):
        assert theirs == json.loads(json.dumps(ours)), f"seed {seed}"
