"""Personal tokens: everybody makes, sees and revokes their own; who administers them sees everybody's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.widgets import UnfoldAdminTextInputWidget

from workers_app import admin_words, personal_tokens
from workers_app.admin_operations import OperationsAdmin
from workers_app.audit import Actor
from workers_app.models import PersonalToken
from workers_app.operations import Operation

_SHOWN_ONCE = "personal token"
_LONGEST_NAME = 100
_MOST_DAYS = 3650

REVOKE = Operation(
    name="revoke_personal_token",
    label="Revoke",
    help="The token opens nothing from now on; scripts that use it are refused.",
    icon="key_off",
    # Of those who see everybody's; nobody needs it for their own.
    permission="workers_app.change_personaltoken",
    call=personal_tokens.revoke,
)


class PersonalTokenForm(forms.Form):
    name = forms.CharField(
        max_length=_LONGEST_NAME,
        help_text="What it is for, such as nightly maintenance script.",
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off"}),
    )
    days = forms.IntegerField(
        label="Valid for (days)",
        required=False,
        initial=90,
        min_value=1,
        max_value=_MOST_DAYS,
        help_text="Empty: until it is revoked.",
        widget=UnfoldAdminTextInputWidget(attrs={"inputmode": "numeric", "autocomplete": "off"}),
    )


class PersonalTokenAdmin(OperationsAdmin):
    operations = (REVOKE,)
    record_kind = "personal token"
    fields = ("what", "owner", "key", "condition", "made", "used", "expires")
    change_list_template = "workers_app/tokens/list.html"
    list_display = ("what", "owner", "key", "condition", "made", "used", "expires")
    list_display_links = None
    list_per_page = 50
    list_select_related = ("user",)
    search_fields = ("name", "=key", "user__username")
    ordering = ("-created_at",)
    sortable_by = ()

    def get_urls(self) -> list[URLPattern]:
        made = self.admin_site.admin_view(self.made_view)
        return [path("made/<int:token_id>/", made, name="personal_token_made"), *super().get_urls()]

    # Whoever may log in may have tokens, which can do nothing that they cannot.

    def has_module_permission(self, request: HttpRequest) -> bool:
        return True

    def has_view_permission(self, request: HttpRequest, obj: PersonalToken | None = None) -> bool:
        return obj is None or obj.user_id == request.user.pk or administers(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return True

    def permitted(self, request: HttpRequest, operation: Operation) -> bool:
        # The list of what they may see is the list of what they may revoke.
        return True

    def offered(self, operation: Operation, subject: PersonalToken) -> bool:
        return subject.revoked_at is None

    def get_queryset(self, request: HttpRequest) -> QuerySet[PersonalToken]:
        tokens: QuerySet[PersonalToken] = super().get_queryset(request)
        return tokens if administers(request) else tokens.filter(user=request.user)  # type: ignore[misc]

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Make a token for oneself; never for somebody else."""
        form = PersonalTokenForm(request.POST if request.method == "POST" else None)
        if form.is_valid():
            days = form.cleaned_data["days"]
            token, text = personal_tokens.issue(
                user=request.user,  # type: ignore[arg-type]
                name=form.cleaned_data["name"],
                by=Actor.of_request(request),
                valid_for=timedelta(days=days) if days else None,
            )
            request.session[_SHOWN_ONCE] = [token.pk, text]
            return HttpResponseRedirect(reverse("admin:personal_token_made", args=[token.pk]))
        return self._page(request, "workers_app/tokens/form.html", {"title": "New personal token", "form": form})

    def made_view(self, request: HttpRequest, token_id: int) -> HttpResponse:
        """The token, once; reloaded, the page says that it was shown."""
        token = get_object_or_404(PersonalToken, pk=token_id, user_id=request.user.pk)
        made_id, text = request.session.get(_SHOWN_ONCE) or (None, "")
        if made_id == token.pk:
            del request.session[_SHOWN_ONCE]
        context = {
            "title": f"Personal token: {token.name}",
            "token": token,
            "text": text if made_id == token.pk else "",
            "origin": request.build_absolute_uri("/").rstrip("/"),
        }
        return self._page(request, "workers_app/tokens/made.html", context)

    def _page(self, request: HttpRequest, template: str, context: dict[str, Any]) -> TemplateResponse:
        site = self.admin_site.each_context(request)
        return TemplateResponse(request, template, {**site, "media": self.media, **context})

    @admin.display(description="for")
    def what(self, token: PersonalToken) -> str:
        return token.name

    @admin.display(description="whose")
    def owner(self, token: PersonalToken) -> str:
        return token.user.get_username()

    @admin.display(description="use")
    def condition(self, token: PersonalToken) -> SafeString:
        expired = token.expires_at is not None and token.expires_at <= timezone.now()
        words = "revoked" if token.revoked_at else "expired" if expired else "usable"
        tone = "good" if words == "usable" else "quiet"
        return format_html('<span class="ec-tone ec-tone--{}">{}</span>', tone, words)

    @admin.display(description="made")
    def made(self, token: PersonalToken) -> SafeString:
        return admin_words.moment(token.created_at)

    @admin.display(description="last used")
    def used(self, token: PersonalToken) -> SafeString:
        return admin_words.moment(token.last_used_at, never="never")

    @admin.display(description="expires")
    def expires(self, token: PersonalToken) -> SafeString:
        return admin_words.moment(token.expires_at, never="never")


def administers(request: HttpRequest) -> bool:
    return request.user.has_perms(("workers_app.view_personaltoken", "workers_app.change_personaltoken"))
