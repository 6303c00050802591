"""What a refresh of the home page does to somebody who reads it, in Chromium; the answers it gets are given here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.acceptance.browser import chromium

SCRIPT = Path(__file__).parents[2] / "edgecontrol/static/edgecontrol/live.js"
ADDRESS = "http://fleet.test/"
PAGE = """
<!DOCTYPE html><html><body>
<button type="button" data-live-pause hidden>Pause</button>
<p data-live-trouble role="status"></p>
<div style="height: 3000px">above</div>
<div data-live="/figures/" data-live-seconds="5">{part}</div>
<div style="height: 3000px">below</div>
<script type="module" src="/live.js"></script>
</body></html>
"""
PART = """
<p>As of <time data-live-as-of>{at}</time></p>
<ul>{items}</ul>
<p><a id="waiting" href="#">{waiting}</a> wait</p>
<details><summary>As a table</summary><table><tr><td>{waiting}</td></tr></table></details>
"""
ITEM = '<li id="of-{0}"><a href="#">{0}</a></li>'


class Fleet:
    """The control plane as the browser meets it."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Callable[[Route], None] = lambda route: route.fulfill(content_type="text/html", body=self.part)
        self.show("12:00:00 UTC", waiting=3, items=["mill", "press"])

    def show(self, at: str, *, waiting: int, items: list[str]) -> None:
        self.part = PART.format(at=at, waiting=waiting, items="".join(ITEM.format(item) for item in items))

    def __call__(self, route: Route) -> None:
        if route.request.url.endswith("live.js"):
            route.fulfill(content_type="text/javascript", body=SCRIPT.read_text())
        elif route.request.url.endswith("/figures/"):
            self.asked += 1
            self.answer(route)
        else:
            route.fulfill(content_type="text/html", body=PAGE.format(part=self.part))


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, fleet: Fleet) -> Iterator[Page]:
    page = browser.new_page()
    page.set_default_timeout(10_000)
    page.clock.install()
    page.route("**/*", fleet)
    page.goto(ADDRESS)
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    yield page
    page.close()


def pass_seconds(page: Page, seconds: int) -> None:
    for _ in range(0, seconds, 5):
        page.clock.run_for(5000)
        # Requests come in their order: what was asked in this time has come when this one is answered.
        page.evaluate("fetch('/live.js').then(answer => answer.text())")


def hide(page: Page, hidden: bool) -> None:
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_a_refresh_changes_the_figures_and_leaves_the_reader_alone(page: Page, fleet: Fleet) -> None:
    page.locator("summary").click()
    page.get_by_role("link", name="press").focus()
    page.evaluate("scrollBy(0, 40)")
    scrolled = page.evaluate("scrollY")
    fleet.show("12:00:05 UTC", waiting=4, items=["gpu", "laser", "press"])
    pass_seconds(page, 5)
    expect(page.locator("time")).to_have_text("12:00:05 UTC")
    expect(page.locator("#waiting")).to_have_text("4")
    assert page.locator("li").all_inner_texts() == ["gpu", "laser", "press"]
    expect(page.get_by_role("link", name="press")).to_be_focused()
    expect(page.locator("details")).to_have_attribute("open", "")
    expect(page.locator("td")).to_have_text("4")
    assert page.evaluate("scrollY") == scrolled


def test_it_goes_on_every_five_seconds(page: Page, fleet: Fleet) -> None:
    for second in (5, 10, 15):
        fleet.show(f"12:00:{second:02} UTC", waiting=0, items=[])
        pass_seconds(page, 5)
        expect(page.locator("time")).to_have_text(f"12:00:{second:02} UTC")
    assert fleet.asked == 3


def test_a_refresh_that_fails_is_said_and_then_forgotten(page: Page, fleet: Fleet) -> None:
    works, trouble = fleet.answer, page.get_by_role("status")
    fleet.answer = lambda route: route.abort()
    pass_seconds(page, 5)
    expect(trouble).to_have_text(
        "Not fresh: the control plane does not answer. This is as of 12:00:00 UTC; trying again."
    )
    expect(page.locator("#waiting")).to_have_text("3")
    fleet.answer = lambda route: route.fulfill(status=503, body="<h1>busy</h1>")
    pass_seconds(page, 10)
    expect(trouble).to_contain_text("the control plane answers 503")
    fleet.answer = works
    fleet.show("12:00:35 UTC", waiting=1, items=[])
    pass_seconds(page, 20)
    expect(page.locator("time")).to_have_text("12:00:35 UTC")
    expect(trouble).to_be_empty()


def test_whoever_was_logged_out_is_told_and_asked_no_more(page: Page, fleet: Fleet) -> None:
    fleet.answer = lambda route: route.fulfill(status=302, headers={"Location": "/admin/login/"})
    pass_seconds(page, 5)
    trouble = page.get_by_role("status")
    expect(trouble).to_contain_text("You have been logged out. This is as of 12:00:00 UTC.")
    expect(trouble.get_by_role("link", name="Load the page again")).to_be_visible()
    pass_seconds(page, 60)
    assert fleet.asked == 1


def test_a_hidden_tab_asks_nothing_and_is_fresh_at_once_when_it_is_seen_again(page: Page, fleet: Fleet) -> None:
    hide(page, True)
    pass_seconds(page, 30)
    assert fleet.asked == 0
    fleet.show("12:01:00 UTC", waiting=0, items=[])
    hide(page, False)
    expect(page.locator("time")).to_have_text("12:01:00 UTC")


def test_the_reader_can_stop_it_and_let_it_go_on(page: Page, fleet: Fleet) -> None:
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    expect(pause).to_have_attribute("aria-pressed", "true")
    pass_seconds(page, 30)
    assert fleet.asked == 0
    fleet.show("12:01:00 UTC", waiting=0, items=[])
    pause.click()
    expect(page.locator("time")).to_have_text("12:01:00 UTC")
