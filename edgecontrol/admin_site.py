"""The admin as a whole: its home page, its navigation, what its search finds. No page of a model is made here."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.templatetags.static import static
from django.urls import URLPattern, path, reverse
from unfold.dataclasses import SearchResult
from unfold.sites import UnfoldAdminSite

from edgecontrol import __version__, dashboard
from edgecontrol.addresses import to
from jobs_app.models import Job, Queue
from jobs_app.operations import JOBS, QUEUES
from jobs_app.states import JobState
from workers_app.models import Worker
from workers_app.operations import WORKERS
from workers_app.states import Shown

_OPERATIONS = (
    (WORKERS, "worker hosts", "workers_app_worker_changelist"),
    (QUEUES, "queues", "jobs_app_queue_changelist"),
    (JOBS, "jobs", "jobs_app_job_changelist"),
)
#: Results of each kind that a search shows.
MOST_FOUND = 8
LONGEST_SEARCH = 253


class Site(UnfoldAdminSite):  # type: ignore[misc]
    """The admin with the fleet's figures on its home page and a search that is never stale."""

    index_title = "Fleet"
    index_template = "edgecontrol/home.html"

    def extra_urls(self) -> list[URLPattern]:
        return [path("figures/", self.admin_view(self.figures), name="figures")]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        home = dashboard.home(dashboard.permissions(request.user))
        page: TemplateResponse = super().index(request, {"home": home, **(extra_context or {})})
        return page

    def figures(self, request: HttpRequest) -> HttpResponse:
        """The changing part of the home page alone, for its refresh."""
        return TemplateResponse(request, "edgecontrol/figures.html", {"home": dashboard.recent.home(request.user)})

    def search(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Answer the command palette. In place of unfold's, which gives a person's results of five minutes ago."""
        results = found(request, request.GET.get("s", "").strip())
        return TemplateResponse(request, "edgecontrol/found.html", {"results": results})


def stylesheet(request: HttpRequest) -> str:
    return static("edgecontrol/fleet.css")


def access(request: HttpRequest) -> str:
    return static("edgecontrol/access.js")


def favicon(request: HttpRequest) -> str:
    return static("edgecontrol/favicon.svg")


def version(request: HttpRequest) -> str:
    return f"Control plane {__version__}"


def environment(request: HttpRequest) -> list[str]:
    """What kind of installation this is, so that nobody takes the one for the other."""
    return ["Production", "success"] if settings.EDGECONTROL.production else ["Trial", "warning"]


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """The sidebar: the pages that exist and that this person may see, with two figures."""
    return _groups(request, dashboard.glance(dashboard.permissions(request.user)))


def _groups(request: HttpRequest, figures: dashboard.Glance) -> list[dict[str, Any]]:
    groups = [
        ("", [_page("Home", "home", reverse("admin:index"))]),
        (
            "Fleet",
            [
                _list(request, "workers_app.Worker", "Worker hosts", "dns", badge=figures.silent, badge_says="silent"),
                _list(
                    request,
                    "jobs_app.Job",
                    "Jobs",
                    "assignment",
                    badge=figures.waiting,
                    badge_says="waiting",
                    badge_variant="info",
                ),
                _list(request, "jobs_app.Queue", "Queues", "low_priority"),
            ],
        ),
        (
            "Machines",
            [
                _page("Connect a machine", "add_link", to("connect_machine"))
                if request.user.has_perm(dashboard.CONNECT)
                else None,
                _list(request, "workers_app.EnrolmentToken", "Enrolment tokens", "vpn_key"),
            ],
        ),
        (
            "Reference",
            [
                _list(request, "workers_app.Change", "Changes", "history"),
                _page("API docs", "api", reverse("docs")),
            ],
        ),
        (
            "People",
            [
                _list(request, "auth.User", "Users", "person"),
                _list(request, "auth.Group", "Groups", "group"),
                _list(request, "workers_app.PersonalToken", "Personal tokens", "key"),
            ],
        ),
    ]
    links = [page["link"] for _, pages in groups for page in pages if page]
    # The longest beginning of this address: a page below a list may have an entry of its own.
    here = max((link for link in links if _leads_to(link, request.path)), key=len, default="")
    return [
        {"title": title, "items": [{**page, "active": page["link"] == here} for page in pages if page]}
        for title, pages in groups
        if any(pages)
    ]


def _leads_to(link: str, path: str) -> bool:
    return path == link or (path.startswith(link) and link != reverse("admin:index"))


def _page(title: str, icon: str, link: str, **more: Any) -> dict[str, Any] | None:
    return {"title": title, "icon": icon, "link": link, **more} if link else None


def _list(request: HttpRequest, label: str, title: str, icon: str, **more: Any) -> dict[str, Any] | None:
    """The list of a model's objects, if it has one and this person may see it."""
    model = apps.get_model(label)
    if not admin.site.is_registered(model):
        return None
    may = admin.site.get_model_admin(model).has_view_or_change_permission(request)
    return (
        _page(title, icon, to(f"{model._meta.app_label}_{model._meta.model_name}_changelist"), **more) if may else None
    )


def found(request: HttpRequest, text: str) -> list[SearchResult]:
    """Worker hosts and queues by a part of their name, a job by its id, pages by a part of their title."""
    if not text or "\0" in text or len(text) > LONGEST_SEARCH:
        return []
    may = dashboard.permissions(request.user)
    results = []
    if dashboard.SEE_WORKERS in may:
        workers = Worker.objects.filter(name__icontains=text).order_by("name").values_list("pk", "name", "state")
        results += [
            _result(name, f"Worker host, {state}", "dns", to("workers_app_worker_change", pk))
            for pk, name, state in workers[:MOST_FOUND]
        ]
    if dashboard.SEE_QUEUES in may:
        queues = Queue.objects.filter(name__icontains=text).order_by("name").values_list("name", "paused")
        results += [
            _result(name, "Queue, paused" if paused else "Queue", "low_priority", to("jobs_app_queue_change", name))
            for name, paused in queues[:MOST_FOUND]
        ]
    if dashboard.SEE_JOBS in may and (job := _job(text)):
        results.append(_result(str(job), f"Job, {job.state}", "assignment", to("jobs_app_job_change", job.pk)))
    pages = [page for page in _pages(request, may) if _says(f"{page.title} {page.description}", text)]
    return [result for result in results + pages[:MOST_FOUND] if result.link]


def _says(description: str, text: str) -> bool:
    return all(word in description.lower() for word in text.lower().split())


def _job(text: str) -> Job | None:
    try:
        key = UUID(text)
    except ValueError:
        return None
    return Job.objects.filter(pk=key).defer("workload", "token").first()


def _pages(request: HttpRequest, may: frozenset[str]) -> list[SearchResult]:
    pages = [
        _result(item["title"], group["title"] or "Page", item["icon"], item["link"])
        for group in _groups(request, dashboard.Glance())
        for item in group["items"]
    ]
    if dashboard.SEE_WORKERS in may:
        lists: list[tuple[str, dict[str, str]]] = [
            ("Silent worker hosts", {"silent": "1"}),
            ("Worker hosts with an outdated agent", {"outdated": "1"}),
            *((f"Worker hosts: {state}", {"state": state.value}) for state in Shown),
        ]
        pages += [
            _result(title, "Filtered list", "filter_list", to("workers_app_worker_changelist", **chosen))
            for title, chosen in lists
        ]
    if dashboard.SEE_JOBS in may:
        pages += [
            _result(
                f"Jobs: {state}",
                "Filtered list, waiting" if state is JobState.QUEUED else "Filtered list",
                "filter_list",
                to("jobs_app_job_changelist", state=state.value),
            )
            for state in JobState
        ]
    for operations, subjects, page in _OPERATIONS:
        pages += [
            _result(operation.label, f"Action on {subjects}: choose them in the list", operation.icon, to(page))
            for operation in operations
            if request.user.has_perm(operation.permission)
        ]
    return [*pages, _result("Change my password", "My account", "password", to("password_change"))]


def _result(title: str, description: str, icon: str, link: str) -> SearchResult:
    return SearchResult(title=title, description=description, link=link, icon=icon)
