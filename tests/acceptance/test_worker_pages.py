"""What the scripts of the worker pages do, in Chromium: dialogs by keyboard, lists that renew themselves, tabs."""

from __future__ import annotations

import re

import psycopg
import pytest
from playwright.sync_api import Page, expect

from tests.acceptance.browser import Operators
from tests.acceptance.site import Site

pytestmark = pytest.mark.timeout(300)


def tell(site: Site, statement: str) -> None:
    with psycopg.connect(site.database_url, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type]


@pytest.fixture
def page(site: Site, operators: Operators) -> Page:
    tell(site, "INSERT INTO edgecontrol.worker (name) VALUES ('press-1'), ('press-2'), ('press-3')")
    return operators.log_in("administrator")


def test_the_scripts_of_the_worker_pages(page: Page, site: Site) -> None:
    a_dialog_by_keyboard(page)
    a_list_that_renews_itself(page, site=site)
    tabs(page)
    a_control_plane_that_does_not_answer(page)


def a_dialog_by_keyboard(page: Page) -> None:
    """From the button to the message without a mouse; a mistake is shown at its field and nothing typed is lost."""
    page.goto("/admin/workers_app/worker/")
    button = page.get_by_role("button", name="Actions for press-2")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Request maintenance")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Request maintenance: press-2")
    comment = dialog.get_by_label("Comment")
    expect(comment).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Request maintenance")).to_be_focused()
    page.keyboard.press("Enter")
    expect(comment).to_be_focused()
    page.keyboard.type("new disk")
    page.keyboard.press("Tab")
    page.keyboard.type("soon")
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("Until must be a span")).to_be_visible()
    expect(dialog.get_by_label("Until")).to_be_focused()
    expect(comment).to_have_value("new disk")
    dialog.get_by_label("Until").fill("2h")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Request maintenance: 1 done.")).to_be_visible()
    expect(page.get_by_text("new disk")).to_be_visible()
    expect(page).to_have_url(re.compile("/worker/$"))


def a_list_that_renews_itself(page: Page, *, site: Site) -> None:
    """Cells change in place; what is ticked stays ticked, and nobody moves."""
    row = page.locator("tr.data-row", has_text="press-1")
    row.get_by_role("checkbox").check()
    tell(site, "UPDATE edgecontrol.worker SET state = 'idle', reported = 'idle' WHERE name = 'press-1'")
    tell(site, "DELETE FROM edgecontrol.worker WHERE name = 'press-3'")
    tell(site, "INSERT INTO edgecontrol.worker (name) VALUES ('a-new-one')")
    expect(row.get_by_text("idle", exact=True)).to_be_visible(timeout=20_000)
    expect(row.get_by_role("checkbox")).to_be_checked()
    expect(page.locator("tr.data-row").first).to_contain_text("press-1")
    expect(page.locator("tr.ec-left")).to_contain_text("press-3")
    page.get_by_text("1 more by now.").get_by_role("link").click()
    expect(page.locator("tr.data-row").first).to_contain_text("a-new-one")


def tabs(page: Page) -> None:
    """One part at a time; its name stands in the address, and the arrow keys lead from one to the next."""
    page.get_by_role("link", name="press-1").click()
    expect(page.get_by_role("tabpanel", name="History")).to_be_visible()
    page.get_by_role("tab", name="Facts").click()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Tokens")).to_be_focused()
    expect(page.get_by_text("It has no token, so no agent can speak for it.")).to_be_visible()
    page.reload()
    expect(page.get_by_role("tabpanel", name="Tokens")).to_be_visible()
    expect(page.get_by_role("tabpanel", name="History")).to_be_hidden()
    page.get_by_role("tab", name="Figures").click()
    expect(page.get_by_text("No figures in this span of time")).to_be_visible()


def a_control_plane_that_does_not_answer(page: Page) -> None:
    """What was typed is still there when it answers again."""
    page.get_by_role("button", name="Actions", exact=True).click()
    page.get_by_role("menuitem", name="Set concurrency").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Concurrency").fill("3")
    page.route("**/set_worker_concurrency/", lambda route: route.abort())
    dialog.get_by_role("button", name="Set concurrency").click()
    expect(dialog.get_by_role("alert")).to_contain_text("cannot be reached")
    page.unroute("**/set_worker_concurrency/")
    expect(dialog.get_by_label("Concurrency")).to_have_value("3")
    dialog.get_by_role("button", name="Set concurrency").click()
    expect(page.get_by_text("Set concurrency: 1 done.")).to_be_visible()
