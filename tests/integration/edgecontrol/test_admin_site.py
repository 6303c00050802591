"""The admin as a whole, as each role meets it: home page, navigation, search, login and the pages that say no."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from edgecontrol import dashboard
from edgecontrol.addresses import to
from edgecontrol.groups import ADMINISTRATOR, OPERATOR, VIEWER
from edgecontrol.throughput import Throughput
from jobs_app.models import Queue

Make = Callable[..., Any]
As = Callable[[str], Client]
HOME, FIGURES, SEARCH = "/admin/", "/admin/figures/", "/admin/search/"


@pytest.fixture(autouse=True)
def _nothing_known_yet(http: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "throughput", Throughput())
    monkeypatch.setattr(dashboard, "recent", dashboard.Recent())


@pytest.fixture
def log_in(http: None) -> As:
    """The browser of somebody in this group, or in none."""

    def log_in(group: str) -> Client:
        user = User.objects.create_user(f"{group or 'nobody'}-{uuid.uuid4()}", is_staff=True)
        user.groups.set(Group.objects.filter(name=group))
        client = Client()
        client.force_login(user)
        return client

    return log_in


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return unescape(answer.content.decode())


def words(html: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def entries(client: Client) -> dict[str, str]:
    """What the sidebar offers: title and address."""
    page = text(client.get(HOME))
    sidebar = page[page.index('id="nav-sidebar-apps"') : page.index('id="content"')]
    links = re.findall(r'<a href="([^"]+)"[^>]*>(.*?)</a>', sidebar, re.S)
    return {
        words(
            re.sub(r'<span class="(material-symbols|ec-badge).*', "", inside[inside.rindex("<span>") :], flags=re.S)
        ).strip(): address
        for address, inside in links
        if "<span>" in inside
    }


def found(client: Client, said: str) -> list[tuple[str, str]]:
    """What the search finds: what it is called and where it leads."""
    page = text(client.get(SEARCH, {"s": said, "extended": "1"}))
    return re.findall(r'href="([^"]+)".*?<span class="font-medium">(.*?)</span>', page, re.S)


def titles(client: Client, said: str) -> list[str]:
    return [title for _, title in found(client, said)]


def busy(make_worker: Make, make_job: Make) -> None:
    """One of everything that the home page can say."""
    make_worker("press-1", state="running", agent_version="0.0.1")
    make_worker("mill-1", state="unknown", heard_seconds_ago=500)
    soon = timezone.now()
    make_worker("laser-1", state="maintenance mode", requested="maintenance", requested_until=soon, queues=["laser"])
    Queue.objects.create(name="lab", paused=True, paused_by="anna", pause_comment="swap", paused_at=soon)
    make_job(queue="gpu", team_name="nobody")
    make_job(state="success")
    make_job(state="failed")
    make_job(state="lost")


class TestHome:
    def test_it_shows_the_figures_and_each_leads_to_a_page(
        self, ops: Client, make_worker: Make, make_job: Make
    ) -> None:
        busy(make_worker, make_job)
        page = text(ops.get(FIGURES))
        for said in ("1 worker host is silent", "gpu", "1 agent is older", "1 job was lost", "Waiting jobs", "Slots"):
            assert said in page
        links = set(re.findall(r'href="([^"]*)"', page))
        assert len(links) > 20
        for link in links:
            assert ops.get(link, follow=True).status_code == 200, link

    def test_the_page_holds_what_its_refresh_brings(self, ops: Client, make_worker: Make, make_job: Make) -> None:
        busy(make_worker, make_job)
        page, part = text(ops.get(HOME)), text(ops.get(FIGURES))
        assert f'data-live="{FIGURES}"' in page

        def timeless(html: str) -> str:
            return " ".join(re.sub(r"<time.*?</time>|\d+ s\b", "", html, flags=re.S).split())

        assert timeless(part) in timeless(page)
        assert "<html" not in part

    def test_all_is_well_is_said_when_nothing_is_wrong(self, ops: Client, make_worker: Make) -> None:
        make_worker(agent_version=dashboard.__version__)
        page = words(text(ops.get(FIGURES)))
        assert "All is well. 1 of 1 worker hosts is live, no queue is paused" in page

    def test_all_is_well_is_not_said_when_something_is_wrong(self, ops: Client, make_worker: Make) -> None:
        make_worker(state="unknown")
        assert "All is well" not in text(ops.get(FIGURES))

    def test_an_empty_fleet_says_how_to_begin(self, ops: Client, log_in: As) -> None:
        page = text(ops.get(HOME))
        assert "Connect the first machine" in page
        assert f'href="{to("connect_machine")}"' in page
        assert "All is well" not in page
        assert "Ask an operator" in text(log_in(VIEWER).get(HOME))

    def test_names_from_the_edge_are_text(self, ops: Client, make_worker: Make, make_job: Make) -> None:
        make_worker("<script>alert(1)</script>", state="unknown")
        make_job(queue="<b>gpu</b>")
        page = ops.get(FIGURES).content.decode()
        assert "<script>alert" not in page
        assert "<b>gpu" not in page
        assert "&lt;script&gt;alert" in page

    def test_a_viewer_sees_all_of_it(self, log_in: As, ops: Client, make_worker: Make, make_job: Make) -> None:
        busy(make_worker, make_job)
        ages = re.compile(r"<time.*?</time>", re.S)
        assert ages.sub("", text(log_in(VIEWER).get(FIGURES))) == ages.sub("", text(ops.get(FIGURES)))

    def test_somebody_without_rights_sees_a_polite_nothing(self, log_in: As, make_worker: Make, make_job: Make) -> None:
        busy(make_worker, make_job)
        nobody = log_in("")
        assert "There is nothing here for you yet" in text(nobody.get(HOME))
        for address in (HOME, FIGURES):
            page = text(nobody.get(address))
            assert "mill-1" not in page
            assert "silent" not in page
            assert "data-live=" not in page

    def test_figures_are_for_those_who_are_logged_in(self, http: None) -> None:
        answer = Client().get(FIGURES)
        assert answer.status_code == 302
        assert answer["Location"].startswith("/admin/login/")

    def test_it_costs_the_same_whatever_the_fleet(self, log_in: As, make_worker: Make, make_job: Make) -> None:
        viewer = log_in(VIEWER)

        def cost() -> int:
            with CaptureQueriesContext(connection) as queries:
                text(viewer.get(HOME))
            return len(queries)

        busy(make_worker, make_job)
        few = cost()
        for _ in range(20):
            make_worker(state="unknown")
            make_job(queue=f"queue-{uuid.uuid4()}")
        # Nine of the page, two of the navigation, and who it is: session, user, two kinds of rights.
        assert cost() == few <= 15

    def test_what_the_pages_load_is_served_by_ourselves(self, ops: Client) -> None:
        for address in (HOME, "/admin/login/", "/nothing"):
            page = (Client() if "login" in address else ops).get(address).content.decode()
            loaded = re.findall(r'<(?:link|script|img)\b[^>]*?(?:href|src)="([^"]+)"', page)
            assert loaded
            for file in loaded:
                assert file.startswith("/static/")
                assert finders.find(file.removeprefix("/static/")), file


class TestNavigation:
    FLEET = {"Home", "Worker hosts", "Jobs", "Queues", "Changes", "API docs", "Enrolment tokens"}

    @pytest.mark.parametrize(
        ("group", "also", "never"),
        [
            (VIEWER, set(), {"Connect a machine", "Users", "Groups"}),
            (OPERATOR, {"Connect a machine"}, {"Users", "Groups"}),
            (ADMINISTRATOR, {"Connect a machine", "Users", "Groups", "Personal tokens"}, set()),
        ],
    )
    def test_each_role_is_offered_what_it_may_see_and_every_entry_opens(
        self, log_in: As, group: str, also: set[str], never: set[str]
    ) -> None:
        client = log_in(group)
        offered = entries(client)
        assert self.FLEET | also <= set(offered)
        assert not never & set(offered)
        for address in offered.values():
            assert client.get(address).status_code == 200, address

    def test_somebody_without_rights_is_offered_no_list(self, log_in: As) -> None:
        assert not {"Worker hosts", "Jobs", "Queues", "Users", "Changes"} & set(entries(log_in("")))

    @pytest.mark.parametrize("address", ["/admin/auth/user/", "/admin/auth/group/", "/admin/workers_app/worker/"])
    def test_what_is_not_offered_is_not_open_either(self, log_in: As, address: str) -> None:
        assert log_in("").get(address).status_code == 403

    def test_silent_workers_and_waiting_jobs_are_counted_on_every_page(
        self, ops: Client, make_worker: Make, make_job: Make
    ) -> None:
        make_worker(state="unknown")
        make_job()
        make_job()
        page = words(text(ops.get("/admin/auth/group/")))
        assert "Worker hosts 1 silent" in page
        assert "Jobs 2 waiting" in page

    def test_one_entry_at_most_is_marked_as_the_place_where_one_is(self, ops: Client, make_worker: Make) -> None:
        def here(address: str) -> list[str]:
            page = text(ops.get(address))
            return re.findall(r'<a href="([^"]+)" class="[^"]*\bactive\b[^"]*"', page)

        connect, worker = to("connect_machine"), make_worker()
        tokens = to("workers_app_enrolmenttoken_changelist")
        assert here(HOME) == [HOME]
        assert here(connect) == [connect]
        assert here(tokens) == [tokens]
        assert here(f"/admin/workers_app/worker/{worker.pk}/change/") == ["/admin/workers_app/worker/"]
        assert here("/admin/password_change/") == []

    def test_a_heading_begins_with_the_list_and_leaves_names_as_they_are(self, ops: Client, make_worker: Make) -> None:
        worker = make_worker("laser-02")
        page = text(ops.get(f"/admin/workers_app/worker/{worker.pk}/change/"))
        heading = words(page[page.index("<h1") : page.index("</h1>")])
        assert heading.split() == ["Worker", "hosts", "chevron_right", "laser-02"]

    def test_the_keyboard_gets_past_the_navigation(self, ops: Client) -> None:
        for address in (HOME, "/admin/auth/user/"):
            page = text(ops.get(address))
            assert page.index('href="#content"') < page.index('id="nav-sidebar"')
            assert 'id="content"' in page

    def test_a_trial_cannot_be_taken_for_production(
        self, ops: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "Trial" in words(text(ops.get(HOME)))
        monkeypatch.setattr(settings.EDGECONTROL, "production", True)
        page = words(text(ops.get(HOME)))
        assert "Production" in page
        assert "Trial" not in page

    def test_moments_are_written_in_full_and_in_utc(self, ops: Client) -> None:
        user = User.objects.get(username="ops")
        page = text(ops.get(f"/admin/auth/user/{user.pk}/change/"))
        assert f"{user.date_joined:%Y-%m-%d %H:%M:%S} UTC" in page


class TestSearch:
    def test_it_finds_worker_hosts_and_queues_by_a_part_of_their_name(self, ops: Client, make_worker: Make) -> None:
        worker = make_worker("Press-North-7")
        Queue.objects.create(name="northern")
        assert found(ops, "NORTH") == [
            (f"/admin/workers_app/worker/{worker.pk}/change/", "Press-North-7"),
            ("/admin/jobs_app/queue/northern/change/", "northern"),
        ]
        make_worker("100%")
        assert titles(ops, "0%") == ["100%"]

    def test_it_finds_a_job_by_its_id(self, ops: Client, make_job: Make) -> None:
        job = make_job(dag_id="tour", task_id="hello")
        assert found(ops, f" {str(job.pk).upper()} ") == [
            (f"/admin/jobs_app/job/{job.pk}/change/", "tour.hello try 0"),
        ]
        assert found(ops, str(uuid.uuid4())) == []

    def test_it_finds_pages_lists_and_actions(self, ops: Client) -> None:
        assert "Connect a machine" in titles(ops, "connect")
        assert ("/admin/workers_app/worker/?silent=1", "Silent worker hosts") in found(ops, "silent")
        assert ("/admin/workers_app/worker/?state=maintenance+mode", "Worker hosts: maintenance mode") in found(
            ops, "mode maintenance"
        )
        assert "Request maintenance" in titles(ops, "request maint")
        assert "Change my password" in titles(ops, "password")

    def test_every_page_that_it_finds_opens(self, ops: Client) -> None:
        addresses = {address for letter in "aeiou" for address, _ in found(ops, letter)}
        assert len(addresses) > 5
        for address in addresses:
            assert ops.get(address, follow=True).status_code == 200, address

    def test_it_knows_at_once_what_is_new(self, ops: Client, make_worker: Make) -> None:
        make_worker("press-1")
        assert titles(ops, "press-") == ["press-1"]
        make_worker("press-2")
        assert titles(ops, "press-") == ["press-1", "press-2"]

    def test_it_shows_a_bounded_number_of_each_kind(self, ops: Client, make_worker: Make) -> None:
        for number in range(20):
            make_worker(f"mill-{number:02}")
        assert titles(ops, "mill-") == [f"mill-{number:02}" for number in range(8)]

    def test_it_shows_nobody_what_they_may_not_see(self, log_in: As, make_worker: Make, make_job: Make) -> None:
        make_worker("press-1")
        job, nobody = make_job(queue="press"), log_in("")
        assert titles(nobody, "press") == []
        assert titles(nobody, str(job.pk)) == []
        assert titles(nobody, "worker hosts") == []
        assert "Request maintenance" not in titles(log_in(VIEWER), "request maint")

    @pytest.mark.parametrize("said", ["", " ", "\0", "x" * 5000, "%", "'", "\\", "🦊", "<b>"])
    def test_it_takes_whatever_is_typed(self, ops: Client, make_worker: Make, said: str) -> None:
        make_worker("🦊 <b>")
        page = ops.get(SEARCH, {"s": said, "extended": "1"})
        assert page.status_code == 200
        assert "🦊 <b>" not in page.content.decode()

    def test_without_a_result_it_says_what_can_be_found(self, ops: Client) -> None:
        assert "Nothing found" in text(ops.get(SEARCH, {"s": "zzzzz"}))

    def test_it_is_for_those_who_are_logged_in(self, http: None) -> None:
        assert Client().get(SEARCH, {"s": "a"}).status_code == 302


class TestLogin:
    def test_a_login_without_a_goal_leads_home(self, http: None) -> None:
        User.objects.create_superuser("ops", password="secret-of-ops")
        answer = Client().post("/admin/login/", {"username": "ops", "password": "secret-of-ops"})
        assert (answer.status_code, answer["Location"]) == (302, HOME)

    def test_it_says_where_accounts_come_from(self, http: None) -> None:
        page = text(Client().get("/admin/login/"))
        assert "createsuperuser" in page
        assert "Users" in page


class TestRefusals:
    """Pages that say what is wrong and what to do; they need neither a session nor the database."""

    def test_an_unknown_address_has_a_page_of_ours(self, http: None) -> None:
        with CaptureQueriesContext(connection) as queries:
            answer = Client().get("/nothing/here")
        assert answer.status_code == 404
        assert "There is nothing here" in answer.content.decode()
        assert len(queries) == 0

    def test_what_one_may_not_do_says_who_can_help(self, log_in: As) -> None:
        answer = log_in(VIEWER).get("/admin/auth/user/add/")
        assert answer.status_code == 403
        assert "administrator" in answer.content.decode()

    def test_an_expired_form_says_that_nothing_was_changed(self, http: None) -> None:
        answer = Client(enforce_csrf_checks=True).post("/admin/login/", {"username": "x", "password": "y"})
        assert answer.status_code == 403
        assert "Nothing was changed" in answer.content.decode()

    def test_a_strange_host_name_says_which_setting_it_lacks_in(self, http: None) -> None:
        answer = Client().get("/admin/login/", headers={"Host": "evil.example.com"})
        assert answer.status_code == 400
        assert "EDGECONTROL_ALLOWED_HOSTS" in answer.content.decode()

    def test_a_failure_shows_no_trace_of_the_program(self, ops: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(may: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(dashboard, "home", fail)
        ops.raise_request_exception = False
        answer = ops.get(HOME)
        page = answer.content.decode()
        assert answer.status_code == 500
        assert "This page failed" in page
        assert "secret detail" not in page
        assert "Traceback" not in page
