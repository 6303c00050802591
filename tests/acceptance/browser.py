"""Chromium as an operator's browser: log in by role, see that a page is accessible, take its pictures for the docs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from tests.acceptance.site import Site

PASSWORD = "a long walk in the park"
#: Group -> user name.
ROLES = {"viewer": "vera", "operator": "otto", "administrator": "ada"}
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_MAKE_USERS = """
from django.contrib.auth.models import Group, User
for group, name in {roles!r}.items():
    user = User.objects.create_user(name, password={password!r}, is_staff=True, first_name=name.title())
    user.groups.add(Group.objects.get(name=group))
"""
#: Where `SCREENSHOTS=docs/images make test-browser` puts them.
_FOLDER = os.environ.get("SCREENSHOTS")
DESK, PHONE = ViewportSize(width=1360, height=850), ViewportSize(width=390, height=844)
Kind = tuple[str, Literal["light", "dark"], ViewportSize]
PICTURES: tuple[Kind, ...] = (
    ("light", "light", DESK),
    ("dark", "dark", DESK),
    ("phone", "light", PHONE),
)
#: Each scheme and each size once; a page has the same colours on a desk and on a phone.
LOOKS: tuple[Kind, ...] = (("desk", "light", DESK), ("phone", "dark", PHONE))


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. Without one the test is skipped on a developer's machine, and fails in CI."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        message = "no Chromium on this machine: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    # A machine may be busy with other tests.
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Operators:
    """The people of a site, each with a browser window of their own."""

    def __init__(self, *, site: Site, browser: Browser) -> None:
        self._site = site
        self._browser = browser
        site.manage("shell", "-c", _MAKE_USERS.format(roles=ROLES, password=PASSWORD))

    def log_in(self, role: str) -> Page:
        """A window in which this role has logged in by the form, as a person does."""
        context = self._browser.new_context(base_url=self._site.url, viewport=DESK, reduced_motion="reduce")
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.goto("/admin/")
        page.get_by_label("Username").fill(ROLES[role])
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url("**/admin/")
        return page


def look(page: Page, name: str, *, reload: bool = False) -> None:
    """Assert that the page is accessible as it is, in light at a desk and in dark on a phone, and take its pictures.

    `reload` is for what is not drawn anew while it is out of sight, such as the lines of a long log.
    """
    found: list[str] = []
    for _, scheme, size in LOOKS:
        _show(page, scheme=scheme, size=size, reload=reload)
        where = f"{name}, {scheme}, {size['width']} px"
        found += [f"{where}: {violation}" for violation in _violations(page)]
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > size["width"]:
            found.append(f"{where}: the page is {wide} px wide")
    for kind, scheme, size in PICTURES if _FOLDER else ():
        _show(page, scheme=scheme, size=size, reload=reload)
        page.screenshot(path=Path(_FOLDER or ".") / f"{name}-{kind}.png")
    _show(page, scheme="light", size=DESK, reload=reload)
    assert not found, "\n".join(found)


def _show(page: Page, *, scheme: Literal["light", "dark"], size: ViewportSize, reload: bool) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(size)
    # The admin reads the scheme when it loads.
    if reload:
        page.reload()
        page.wait_for_timeout(600)
    else:
        page.evaluate("dark => document.documentElement.classList.toggle('dark', dark)", scheme == "dark")
    # A colour on its way from one scheme to the other has the contrast of neither.
    page.add_style_tag(content="*, ::before, ::after { transition: none !important; animation: none !important }")
    page.wait_for_timeout(150)


def _violations(page: Page) -> Iterator[str]:
    result: Any = Axe().run(page, options={"resultTypes": ["violations"]})
    for violation in result.response["violations"]:
        if violation["impact"] in ("serious", "critical"):
            nodes = "; ".join(node["html"][:200] for node in violation["nodes"][:5])
            yield f"{violation['id']} ({violation['help']}): {nodes}"
