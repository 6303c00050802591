"""Connect a machine: make its enrolment token, show once how to use it, and say when the machine has come.

The token's text is on one page once, on its way there in the session, and nowhere else.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import RadioFilter
from unfold.widgets import UnfoldAdminTextInputWidget, UnfoldBooleanWidget

from workers_app import admin_words, agent_file, enrolment, operations, registry
from workers_app.admin_operations import OperationsAdmin, ParameterField
from workers_app.audit import Actor
from workers_app.errors import Refusal
from workers_app.models import EnrolmentToken, Worker
from workers_app.operations import Kind, Operation, Parameter

PERMISSION = "workers_app.add_enrolmenttoken"
#: Where the text of a token that was just made waits for the page that shows it.
_SHOWN_ONCE = "enrolment token"
_LONGEST_TEAM = 250

_QUEUES = Parameter(
    name="queues",
    kind=Kind.QUEUES,
    help="What its agent may ask for, separated by commas; empty: every queue.",
)


class ConnectForm(forms.Form):
    """A new machine's name and what it may serve, or the name of one that was set up anew."""

    name = forms.CharField(
        help_text="How it will be called here; any name of 1 to 253 characters that no other worker host has.",
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "press-7", "autocomplete": "off"}),
    )
    team_name = forms.CharField(
        label="Team",
        required=False,
        max_length=_LONGEST_TEAM,
        help_text="Only with Airflow's multi-team mode: whose jobs it runs.",
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off"}),
    )
    replace = forms.BooleanField(
        label="This machine was set up anew",
        required=False,
        help_text="It stays the same worker host, with its queues, team and history; its older tokens end.",
        widget=UnfoldBooleanWidget(),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["queues"] = ParameterField(_QUEUES)
        self.order_fields(["name", "queues", "team_name", "replace"])
        # Asked only where the name exists, or where it was asked before.
        self.known = bool(self["replace"].value())

    def make(self, *, by: Actor) -> tuple[EnrolmentToken, str] | None:
        """Make the token; None when the name will not do, which is then said at its field."""
        said = self.cleaned_data
        try:
            return enrolment.create(
                name=said["name"],
                by=by,
                allowed_queues=said["queues"],
                team_name=said["team_name"],
                replace=said["replace"],
            )
        except registry.NameTaken as taken:
            self.known = True
            self.add_error("name", taken.detail)
        except enrolment.KeepsItsOwn as keeps:
            self.add_error("queues" if said["queues"] else "team_name", keeps.detail)
        except Refusal as refusal:
            self.add_error("name", refusal.detail)
        return None


class UsableFilter(RadioFilter):  # type: ignore[misc]
    title = "use"
    parameter_name = "usable"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        return [("1", "Unused and still valid")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[EnrolmentToken]) -> QuerySet[EnrolmentToken]:
        return queryset.filter(enrolment.USABLE) if self.value() == "1" else queryset


class EnrolmentTokenAdmin(OperationsAdmin):
    operations = operations.ENROLMENTS
    record_kind = "enrolment"
    fields = ("machine", "condition", "key", "queues", "team_name", "made", "made_by", "expires")
    change_list_template = "workers_app/connect/list.html"
    list_display = ("machine", "condition", "queues", "team_name", "made", "made_by", "expires")
    list_display_links = None
    list_filter = (UsableFilter,)
    list_filter_submit = True
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    list_select_related = ("worker",)
    search_fields = ("name", "=key")
    search_help_text = "Part of a name, or a key"
    ordering = ("-created_at",)
    sortable_by = ()

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("connect/", view(self.connect_view), name="connect_machine"),
            path("connect/<int:token_id>/", view(self.made_view), name="machine_connecting"),
            path("connect/<int:token_id>/status/", view(self.status_view), name="machine_connecting_status"),
            *super().get_urls(),
        ]

    def offered(self, operation: Operation, subject: EnrolmentToken) -> bool:
        return status(subject) == "waiting"

    # -- connecting a machine ----------------------------------------------------

    def connect_view(self, request: HttpRequest) -> HttpResponse:
        """The form, and the token that comes of it, on a page of its own."""
        _check(request)
        if request.method == "POST":
            form = ConnectForm(request.POST)
            replaces = form.is_valid() and form.cleaned_data["replace"]
            if replaces and not request.user.has_perm(enrolment.REPLACE_PERMISSION):
                form.add_error("replace", "It ends the older tokens: ask somebody who may revoke tokens.")
            made = form.make(by=Actor.of_request(request)) if form.is_valid() else None
            if made:
                token, text = made
                request.session[_SHOWN_ONCE] = [token.pk, text]
                return HttpResponseRedirect(reverse("admin:machine_connecting", args=[token.pk]))
        else:
            form = ConnectForm(initial={name: request.GET.get(name, "") for name in ("name", "queues", "replace")})
        unused = EnrolmentToken.objects.filter(enrolment.USABLE).order_by("expires_at")
        context = {
            "title": "Connect a machine",
            "form": form,
            "minutes": int(enrolment.VALID_FOR.total_seconds() // 60),
            "unused": unused[:20] if request.user.has_perm("workers_app.view_enrolmenttoken") else [],
            "file": agent_file.look(),
            "file_name": agent_file.NAME,
        }
        return self._page(request, "workers_app/connect/form.html", context)

    def made_view(self, request: HttpRequest, token_id: int) -> HttpResponse:
        """What to do on the machine. Reloaded, it waits on but does not show the token again."""
        _check(request)
        token = get_object_or_404(EnrolmentToken.objects.select_related("worker"), pk=token_id)
        made_id, text = request.session.get(_SHOWN_ONCE) or (None, "")
        if made_id == token.pk:
            del request.session[_SHOWN_ONCE]
        url = settings.EDGECONTROL.public_url or request.build_absolute_uri("/").rstrip("/")
        file = agent_file.look()
        *fetch, enrol, run = enrolment.commands(url, file=file)
        context = {
            "title": f"Connect {token.name}",
            "token": token,
            "text": text if made_id == token.pk else "",
            "commands": {"fetch": fetch, "enrol": enrol, "run": run},
            "file": file,
            "file_name": agent_file.NAME,
            # The other way to the agent, where there are two.
            "packaged": enrolment.commands(url, file=None) if file else [],
            "expires_in": admin_words.left(token.expires_at) if token.expires_at else "",
            "queues": admin_words.queues(token.allowed_queues),
            "status_url": reverse("admin:machine_connecting_status", args=[token.pk]),
            "progress": _progress(request, token),
        }
        # No page of the admin is kept by a browser, so going back does not bring the token back either.
        return self._page(request, "workers_app/connect/made.html", context)

    def status_view(self, request: HttpRequest, token_id: int) -> JsonResponse:
        """How far the machine has come, for the page that waits."""
        _check(request)
        token = EnrolmentToken.objects.select_related("worker").filter(pk=token_id).first()
        if token is None:
            raise Http404
        return JsonResponse(_progress(request, token))

    def _page(self, request: HttpRequest, template: str, context: dict[str, Any]) -> TemplateResponse:
        site = self.admin_site.each_context(request)
        return TemplateResponse(request, template, {**site, "media": self.media, **context})

    # -- the list -----------------------------------------------------------------

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        may_connect = request.user.has_perm(PERMISSION)
        page: HttpResponse = super().changelist_view(request, {"may_connect": may_connect, **(extra_context or {})})
        return page

    @admin.display(description="machine")
    def machine(self, token: EnrolmentToken) -> SafeString:
        again = format_html('<small class="ec-sub">{}</small>', "set up anew") if token.replace else ""
        return format_html('<span class="ec-stack"><span>{}</span>{}</span>', token.name, again)

    @admin.display(description="use")
    def condition(self, token: EnrolmentToken) -> SafeString:
        now = status(token)
        tone = {"waiting": "busy", "enrolled": "good", "connected": "good"}.get(now, "quiet")
        words = format_html('<span class="ec-tone ec-tone--{}">{}</span>', tone, "used" if token.used_at else now)
        if token.worker is None:
            return words
        url = reverse("admin:workers_app_worker_change", args=[token.worker.pk])
        when = admin_words.moment(token.used_at)
        return format_html('{} <a class="ec-link" href="{}">{}</a> {}', words, url, token.worker.name, when)

    @admin.display(description="queues")
    def queues(self, token: EnrolmentToken) -> SafeString:
        return admin_words.queues(token.allowed_queues)

    @admin.display(description="made")
    def made(self, token: EnrolmentToken) -> SafeString:
        return admin_words.moment(token.created_at)

    @admin.display(description="by")
    def made_by(self, token: EnrolmentToken) -> str:
        return token.created_by

    @admin.display(description="valid")
    def expires(self, token: EnrolmentToken) -> SafeString:
        return (
            format_html("until {}", admin_words.moment(token.expires_at))
            if status(token) == "waiting"
            else admin_words.NOTHING
        )


def _check(request: HttpRequest) -> None:
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied


def status(token: EnrolmentToken) -> str:
    """waiting, enrolled (it has its token), connected (its agent has called), expired or revoked."""
    if token.used_at:
        heard = token.worker.last_heartbeat if token.worker else None
        return "connected" if heard and heard >= token.used_at else "enrolled"
    if token.revoked_at:
        return "revoked"
    return "expired" if token.expires_at and token.expires_at <= timezone.now() else "waiting"


def _progress(request: HttpRequest, token: EnrolmentToken) -> dict[str, str]:
    worker: Worker | None = token.worker if request.user.has_perm("workers_app.view_worker") else None
    page = reverse("admin:workers_app_worker_change", args=[worker.pk]) if worker else ""
    return {"status": status(token), "name": token.name, "url": page}
