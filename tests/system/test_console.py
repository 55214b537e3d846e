"""The console in Chromium, end to end: what its buttons do to the relay, and what the page says about it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.support.browser import Tab, chromium
from tests.support.stage import Stage
from tests.support.system import Api
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(400)

STEP_MS = 60_000
HELD = re.compile("pacing|paused")
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True}
# Everything that can be operated and has neither a label, nor a text, nor a name said for it.
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, [role=img], [tabindex]")]
  .filter((one) => one.checkVisibility())
  .filter((one) => !(one.labels?.length || one.textContent.trim() || one.ariaLabel
    || one.getAttribute("aria-labelledby")))
  .map((one) => one.outerHTML)"""
OVERFLOW = "() => document.documentElement.scrollWidth - window.innerWidth"
# A page that may do anything tells here what its policy has stopped.
VIOLATIONS = "addEventListener('securitypolicyviolation', (e) => console.error(`CSP: ${e.blockedURI}`));"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the module."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def api(scene: Stage) -> Api:
    """A node, and a worker behind it."""
    api = scene.api()
    scene.worker()
    return api


@pytest.fixture
def opened(browser: Browser, api: Api) -> Iterator[Callable[..., Tab]]:
    """Opens the page; at the end nothing was complained of, and nobody else was asked."""
    tabs = []

    def made(**options: Any) -> Tab:
        tab = Tab(browser, f"http://127.0.0.1:{api.port}/", **options)
        tab.page.evaluate(f"() => {{ {VIOLATIONS} }}")
        tabs.append(tab)
        return tab

    yield made
    for tab in tabs:
        assert tab.errors == []
        assert tab.foreign == []
        assert tab.page.evaluate(NAMELESS) == []
        tab.close()


def begin(tab: Tab, tokens: int, rate: int) -> str:
    """Start a response by the form; its id. Its first reader is open, and text has come."""
    page = tab.page
    expect(page.get_by_label("Model")).to_have_value("simulated", timeout=STEP_MS)
    page.get_by_label("Tokens", exact=True).fill(str(tokens))
    page.get_by_label("Tokens/s").fill(str(rate))
    page.get_by_role("button", name="Start").click()
    expect(reader(tab, 1).get_by_label("Text received")).to_contain_text("e", timeout=STEP_MS)
    return page.locator("#response-id").inner_text()


def reader(tab: Tab, number: int) -> Locator:
    """The box of a reader."""
    return tab.page.get_by_role("article", name=f"Reader {number}")


def slide(box: Locator, to: int) -> None:
    """Move a reader's slider."""
    box.get_by_role("slider", name="Reading speed").fill(str(to))


def fact(box: Locator, name: str) -> str:
    """What the page says in one of its facts."""
    return box.locator(f".{name}").inner_text()


def test_a_slow_reader_is_seen_paced_and_let_go_again(opened: Callable[..., Tab], api: Api) -> None:
    """The slider slows the source: level, notices and lag say so; at full speed it ends with its digest."""
    tab = opened()
    made = begin(tab, tokens=6000, rate=300)
    box = reader(tab, 1)
    slide(box, 30)
    expect(box.get_by_label("Notices")).to_contain_text(HELD, timeout=STEP_MS)
    expect(tab.page.locator("#fact-level")).to_contain_text(re.compile("[123] "), timeout=STEP_MS)
    wait_until(lambda: api.status(made)["level"] >= 1, "the status says so too")
    wait_until(lambda: fact(box, "state").split(" ")[0] in ("slow", "stalled"), "the reader is called slow")
    wait_until(lambda: fact(box, "lag") != "0 B", "it lags")
    assert box.locator("polyline").get_attribute("points")
    slide(box, 100)
    expect(box.get_by_label("Notices")).to_contain_text("digest verified", timeout=2 * STEP_MS)
    expect(tab.page.locator("#fact-status")).to_have_text("completed", timeout=STEP_MS)


def test_a_frozen_reader_holds_nobody_and_reads_on(opened: Callable[..., Tab], api: Api) -> None:
    """One is frozen and stalls at its window, a second reads on; thawed, the first has the whole text too."""
    tab = opened()
    made = begin(tab, tokens=2400, rate=120)
    first = reader(tab, 1)
    first.get_by_role("button", name="Freeze").click()
    tab.page.get_by_role("button", name="Open a reader").click()
    second = reader(tab, 2)
    expect(first.locator(".state")).to_contain_text("stalled", timeout=STEP_MS)
    wait_until(lambda: int(fact(second, "position")) > int(fact(first, "position")) + 2048, "it is ahead")
    expect(second.get_by_label("Notices")).to_contain_text("digest verified", timeout=STEP_MS)
    first.get_by_role("button", name="Read on").click()
    expect(first.get_by_label("Notices")).to_contain_text("digest verified", timeout=STEP_MS)
    texts = [box.get_by_label("Text received").text_content() for box in (first, second)]
    assert texts[0] == texts[1] == api.call("GET", f"/v1/streams/{made}/text").body.decode()


def test_a_cut_connection_resumes(opened: Callable[..., Tab]) -> None:
    """Cut twice, it comes back twice from where it was, and the text is whole."""
    tab = opened()
    begin(tab, tokens=1500, rate=100)
    box = reader(tab, 1)
    for count in (2, 3):
        box.get_by_role("button", name="Cut the connection").click()
        expect(box.locator(".connections")).to_have_text(str(count), timeout=STEP_MS)
    expect(box.get_by_label("Notices")).to_contain_text("done (stop)", timeout=STEP_MS)
    notices = box.get_by_label("Notices").inner_text()
    assert notices.count("connection cut; resuming") == 2


def test_cancel_and_the_list(opened: Callable[..., Tab], api: Api) -> None:
    """Cancelling ends it for its readers; the list has it, opens it again, and pressure is told."""
    tab = opened()
    made = begin(tab, tokens=5000, rate=50)
    tab.page.get_by_role("button", name="Cancel the generation").click()
    expect(reader(tab, 1).get_by_label("Notices")).to_contain_text("done (cancelled)", timeout=STEP_MS)
    api.wait_status(made, "cancelled")
    row = tab.page.get_by_role("row", name=made)
    expect(row).to_contain_text("cancelled", timeout=STEP_MS)
    expect(tab.page.get_by_role("status")).to_contain_text("pressure 0: calm", timeout=STEP_MS)
    row.get_by_role("button").click()
    expect(reader(tab, 1).get_by_label("Notices")).to_contain_text("done (cancelled)", timeout=STEP_MS)


def test_on_a_phone_nothing_is_wider_than_the_screen(opened: Callable[..., Tab]) -> None:
    """360 pixels: two readers and the list, and no scrolling sideways; fingers find the buttons."""
    tab = opened(**PHONE)
    begin(tab, tokens=400, rate=200)
    tab.page.get_by_role("button", name="Open a reader").click()
    expect(reader(tab, 2).get_by_label("Text received")).to_contain_text("e", timeout=STEP_MS)
    expect(tab.page.get_by_role("row")).to_have_count(2, timeout=STEP_MS)
    assert tab.page.evaluate(OVERFLOW) <= 0
    for button in reader(tab, 1).get_by_role("button").all():
        assert (button.bounding_box() or {"height": 0})["height"] >= 24  # WCAG 2.2, 2.5.8


def test_where_keys_are_needed_the_page_asks_for_one(scene: Stage, browser: Browser) -> None:
    """Without a key, and with a wrong one, it says so; with the right one it works, in this tab alone."""
    api = scene.api(api_keys="ann:key-of-ann-1")
    scene.worker()
    tab = Tab(browser, f"http://127.0.0.1:{api.port}/")
    page = tab.page
    expect(page.get_by_role("alert")).to_contain_text("asks for a key", timeout=STEP_MS)
    page.get_by_label("API key").fill("not-the-key-at-all")
    page.get_by_role("button", name="Use").click()
    expect(page.get_by_role("alert")).to_contain_text("key", timeout=STEP_MS)
    expect(page.get_by_label("API key")).to_be_visible(timeout=STEP_MS)
    page.get_by_label("API key").fill("key-of-ann-1")
    page.get_by_role("button", name="Use").click()
    expect(page.get_by_label("API key")).to_be_hidden(timeout=STEP_MS)
    begin(tab, tokens=100, rate=0)
    expect(reader(tab, 1).get_by_label("Notices")).to_contain_text("digest verified", timeout=STEP_MS)
    assert page.evaluate("() => [localStorage.length, document.cookie]") == [0, ""]
    assert [said for said in tab.errors if "401" not in said] == []
    tab.close()


def test_the_policy_stops_what_is_not_the_page_s_own(browser: Browser, api: Api) -> None:
    """A script in the page, one of another origin, and a request elsewhere: none of them runs."""
    tab = Tab(browser, f"http://127.0.0.1:{api.port}/")
    tab.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
        }"""
    )
    assert tab.page.evaluate("() => window.ran") is None
    elsewhere = "() => fetch('http://127.0.0.1:1/').then(() => 'sent', (error) => String(error))"
    assert "Failed to fetch" in tab.page.evaluate(elsewhere)
    assert len([said for said in tab.errors if "Content Security Policy" in said]) >= 2
    tab.close()


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_can_be_read(scheme: int) -> None:
    """4.5 to 1 or more on both grounds (WCAG 2.2, 1.4.3)."""
    css = (Path(__file__).parents[2] / "api/console/console.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
    for name in ("ink", "soft", "good", "warn", "bad"):
        for ground in ("ground", "panel"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5


def test_the_reference_shows_every_call_and_asks_no_other_host(browser: Browser, api: Api) -> None:
    """/docs works where there is no way out, and nobody else's code runs where a key may be typed in."""
    tab = Tab(browser, f"http://127.0.0.1:{api.port}/", path="docs")
    calls = tab.page.locator(".opblock-summary-path")
    expect(calls.filter(has_text=re.compile("^/v1/streams/{response_id}/events$"))).to_be_visible(
        timeout=STEP_MS
    )
    paths = api.call("GET", "/openapi.json").json["paths"]
    assert calls.count() == sum(len(methods) for methods in paths.values())
    assert tab.foreign == []
    assert tab.errors == []
    tab.close()


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
