"""Operations as the admin shows them: a menu for each row and on each page, a bulk action, dialogs and their forms.

What an operation does, and whether it can be done, is decided behind `Operation.call`; never here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model, QuerySet
from django.forms.widgets import Script
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import escape
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import capfirst
from unfold.admin import ModelAdmin, checkbox
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget, UnfoldBooleanWidget

from workers_app.audit import Actor
from workers_app.errors import Refusal
from workers_app.operations import MOST_SLOTS, InvalidParameter, Kind, Operation, Parameter
from workers_app.outcomes import Outcome

#: As many subjects as one request changes; a larger selection is done in turns.
MOST_AT_ONCE = 10_000
#: As many names as a confirmation lists.
NAMES_SHOWN = 50
#: Sent by operations.js, which wants a dialog's content where others want a page.
DIALOG_HEADER = "X-Dialog"


_PLACEHOLDERS = {
    Kind.MOMENT: "2h, 90m or 2026-11-22 18:00 (UTC)",
    Kind.QUEUES: "press, laser",
    Kind.SLOTS: f"1 to {MOST_SLOTS}",
}


def _widget(kind: Kind) -> forms.Widget:
    # Slots too are text: a browser sends "3x" in a number field as nothing, and nothing means something.
    widget: forms.Widget = (
        UnfoldAdminTextareaWidget(attrs={"rows": 3})
        if kind is Kind.COMMENT
        else UnfoldAdminTextInputWidget(attrs={"placeholder": _PLACEHOLDERS[kind], "autocomplete": "off"})
    )
    return widget


class ParameterField(forms.CharField):
    """A parameter as people type it, read as every other face reads it."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter
        super().__init__(
            label=capfirst(parameter.name.replace("_", " ")),
            help_text=parameter.help,
            required=parameter.required,
            widget=_widget(parameter.kind),
        )

    def clean(self, value: Any) -> Any:
        try:
            return self.parameter.read(value)
        except InvalidParameter as invalid:
            raise ValidationError(f"{self.label} {invalid.detail}.") from None


class OperationForm(forms.Form):
    """The parameters of an operation; and, for a grave one on several subjects, the word that all of them are meant."""

    def __init__(self, *args: Any, operation: Operation, subjects: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in operation.parameters:
            self.fields[parameter.name] = ParameterField(parameter)
        self.operation = operation
        if operation.grave and subjects > 1:
            self.fields["all_of_them"] = forms.BooleanField(
                label=f"Yes, all {subjects}",
                widget=UnfoldBooleanWidget(),
                error_messages={"required": f"Tick this when you mean all {subjects}."},
            )

    def values(self) -> dict[str, Any]:
        return {parameter.name: self.cleaned_data[parameter.name] for parameter in self.operation.parameters}

    def refuse(self, refusal: Refusal) -> None:
        """Show why the operation was refused, at the field that it names if it names one."""
        name, _, detail = refusal.detail.partition(": ")
        at_field = isinstance(refusal, InvalidParameter) and name in self.fields
        self.add_error(name if at_field else None, f"{capfirst(name)} {detail}." if at_field else refusal.detail)


@dataclass(frozen=True, kw_only=True)
class MenuItem:
    operation: Operation
    url: str


# What each row of a list has is drawn by a template once, with holes for what is the row's own: drawn anew for each
# of fifty rows, the menus and boxes take half of the time of a page.
_HOLE = re.compile(r"hole-([a-z0-9]+)-")
_CHECKBOX = str(checkbox.render(ACTION_CHECKBOX_NAME, "hole-value-"))


@lru_cache(maxsize=256)
def _menu(operations: tuple[Operation, ...], label: str) -> str:
    items = [MenuItem(operation=operation, url=f"hole-url{at}-") for at, operation in enumerate(operations)]
    context = {"items": items, "subject": "hole-subject-", "mark": "hole-mark-", "label": label}
    return render_to_string("workers_app/operations/menu.html", context)


class OperationsAdmin(ModelAdmin):  # type: ignore[misc]
    """Read-only pages of what `operations` are done to.

    Each operation stands in the menu of each row, in the menu on the object's page and among the list's actions,
    for those who have its permission. Subclasses may overrule `permitted`, `offered` and `initial`.
    """

    operations: tuple[Operation, ...] = ()
    #: What the record of changes calls these subjects; empty for those that it does not know.
    record_kind = ""
    change_form_template = "workers_app/operations/change_form.html"

    class Media:
        css = {"all": ["workers_app/operations.css", "workers_app/pages.css"]}
        js = [Script("workers_app/operations.js", type="module")]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # What may be changed are operations, each with its own permission.
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    # -- what subclasses may overrule ---------------------------------------

    def permitted(self, request: HttpRequest, operation: Operation) -> bool:
        """Whether this person may do it at all, to whatever they can see."""
        return request.user.has_perm(operation.permission)

    def offered(self, operation: Operation, subject: Any) -> bool:
        """Whether the operation is worth showing in this subject's menu; one that is hidden still works."""
        return True

    def initial(self, operation: Operation, subject: Any) -> dict[str, Any]:
        """What the fields of the dialog for one subject hold at first."""
        return {}

    # -- where operations are shown -------------------------------------------

    def allowed_operations(self, request: HttpRequest) -> list[Operation]:
        return [operation for operation in self.operations if self.permitted(request, operation)]

    def operation_items(self, operations: Sequence[Operation], subject: Any) -> list[MenuItem]:
        """The entries of a subject's menu."""
        return [
            MenuItem(operation=operation, url=reverse(self._url_name(operation), args=[quote(subject.pk)]))
            for operation in operations
            if self.offered(operation, subject)
        ]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        if IS_POPUP_VAR in request.GET:
            return {}
        actions: dict[str, Any] = super().get_actions(request)
        for operation in self.allowed_operations(request):
            actions[operation.name] = (partial(_chosen, operation=operation), operation.name, operation.label)
        return actions

    def get_list_display(self, request: HttpRequest) -> Sequence[Any]:
        columns = super().get_list_display(request)
        allowed = self.allowed_operations(request)
        return [*columns, self._menu_column(allowed)] if allowed else columns

    def _menu_column(self, operations: Sequence[Operation]) -> Callable[[Any], SafeString]:
        # Made for each request: a ModelAdmin is shared by all threads, and knows nobody's permissions.
        def operations_menu(subject: Any) -> SafeString:
            items = self.operation_items(operations, subject)
            return self.menu(items, subject) if items else mark_safe("")

        operations_menu.short_description = "Actions"  # type: ignore[attr-defined]
        return operations_menu

    def menu(self, items: Sequence[MenuItem], subject: Any, *, label: str = "") -> SafeString:
        """A button that opens the operations; without a label it is three dots."""
        # The same with every reading of the page, and fit for an attribute whatever the key is.
        mark = hashlib.sha256(f"{label}{subject.pk}".encode()).hexdigest()[:12]
        values = {"subject": str(subject), "mark": mark} | {f"url{at}": item.url for at, item in enumerate(items)}
        menu = _menu(tuple(item.operation for item in items), label)
        return mark_safe(_HOLE.sub(lambda hole: escape(values[hole[1]]), menu))  # noqa: S308 - each value is escaped

    @admin.display(description=ModelAdmin.action_checkbox.short_description)
    def action_checkbox(self, obj: Model) -> SafeString:
        return mark_safe(_CHECKBOX.replace("hole-value-", escape(str(obj.pk))))  # noqa: S308 - unfold's own HTML

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        subject = kwargs.get("obj")
        if subject is not None:
            items = self.operation_items(self.allowed_operations(request), subject)
            context["operations_menu"] = self.menu(items, subject, label="Actions") if items else ""
            context["record_url"] = self._record_url(request, subject.pk)
        return super().render_change_form(request, context, *args, **kwargs)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The record of changes, which also knows what was done by commands, scripts and machines."""
        return HttpResponseRedirect(self._record_url(request, unquote(object_id)) or self._list_url())

    def _record_url(self, request: HttpRequest, key: Any) -> str:
        if not self.record_kind or not request.user.has_perm("workers_app.view_change"):
            return ""
        subject = {"subject_kind__exact": self.record_kind, "subject_id__exact": str(key)}
        return f"{reverse('admin:workers_app_change_changelist')}?{urlencode(subject)}"

    # -- doing it ----------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        return [*self._operation_urls(), *super().get_urls()]

    def _operation_urls(self) -> Iterator[URLPattern]:
        for operation in self.operations:
            name = self._url_name(operation).partition(":")[2]
            one = partial(self.one_view, operation=operation)
            many = partial(self.many_view, operation=operation)
            yield path(f"{operation.name}/", self.admin_site.admin_view(many), name=f"{name}_chosen")
            yield path(f"<path:object_id>/{operation.name}/", self.admin_site.admin_view(one), name=name)

    def _url_name(self, operation: Operation, suffix: str = "") -> str:
        return f"admin:{self.opts.app_label}_{self.opts.model_name}_{operation.name}{suffix}"

    def _list_url(self) -> str:
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")

    def _check(self, request: HttpRequest, operation: Operation) -> None:
        if not (self.has_view_permission(request) and self.permitted(request, operation)):
            raise PermissionDenied

    def one_view(self, request: HttpRequest, object_id: str, *, operation: Operation) -> HttpResponse:
        """The dialog for one subject, and what follows when it is sent."""
        self._check(request, operation)
        subject = self.get_object(request, unquote(object_id))
        if subject is None:
            return self._nothing_left(request)
        form = OperationForm(
            data=request.POST if request.method == "POST" else None,
            initial=self.initial(operation, subject),
            operation=operation,
            subjects=1,
        )
        if self._done(request, form, [subject.pk]):
            return self._go(request, self._landing(request, subject))
        next_url = request.POST.get("_next") or request.headers.get("Referer", "")
        return self._ask(request, form, names=[str(subject)], action=request.path, next_url=next_url)

    def choose(self, request: HttpRequest, queryset: QuerySet[Any], *, operation: Operation) -> HttpResponse:
        """Show which rows of the list were chosen, so that what is confirmed is what will be done."""
        self._check(request, operation)
        # One more tells whether there are more.
        ids = list(queryset.values_list("pk", flat=True)[: MOST_AT_ONCE + 1])
        total = queryset.count() if len(ids) > MOST_AT_ONCE else len(ids)
        form = OperationForm(operation=operation, subjects=min(total, MOST_AT_ONCE))
        return self._ask_for_many(request, form, ids[:MOST_AT_ONCE], total=total, next_url=request.get_full_path())

    def many_view(self, request: HttpRequest, *, operation: Operation) -> HttpResponse:
        """Do it to the subjects of the confirmed list."""
        self._check(request, operation)
        if request.method != "POST":
            return HttpResponseRedirect(self._list_url())
        ids = self._visible(request, request.POST.get("_chosen", ""))
        if not ids:
            return self._nothing_left(request)
        form = OperationForm(data=request.POST, operation=operation, subjects=len(ids))
        if self._done(request, form, ids):
            return self._go(request, self._landing(request, None))
        return self._ask_for_many(request, form, ids, total=len(ids), next_url=request.POST.get("_next", ""))

    def _visible(self, request: HttpRequest, chosen: str) -> list[Any]:
        """The keys among those that came with the form that this person may see and that still exist."""
        try:
            keys = [self.opts.pk.to_python(key) for key in json.loads(chosen)][:MOST_AT_ONCE]
        except (ValueError, TypeError, OverflowError, ValidationError):
            return []
        return list(self.get_queryset(request).filter(pk__in=keys).order_by("pk").values_list("pk", flat=True))

    def _done(self, request: HttpRequest, form: OperationForm, ids: Sequence[Any]) -> bool:
        """Do it if the form is complete, and leave a message of what came of it."""
        if not form.is_bound or not form.is_valid():
            return False
        try:
            outcome = form.operation.run(ids, by=Actor.of_request(request), **form.values())
        except Refusal as refusal:
            form.refuse(refusal)
            return False
        self._tell(request, form.operation, outcome)
        return True

    def _tell(self, request: HttpRequest, operation: Operation, outcome: Outcome) -> None:
        if not outcome.done and not outcome.skipped:
            self.message_user(request, f"{operation.label}: nothing was left to do it to.", messages.WARNING)
            return
        level = messages.WARNING if outcome.skipped else messages.SUCCESS
        self.message_user(request, outcome.sentence(operation.label), level)

    def _nothing_left(self, request: HttpRequest) -> HttpResponse:
        text = f"What you chose does not exist any more; this is the present list of {self.opts.verbose_name_plural}."
        self.message_user(request, text, messages.WARNING)
        return self._go(request, self._list_url())

    # -- pages ----------------------------------------------------------------------

    def _ask_for_many(
        self, request: HttpRequest, form: OperationForm, ids: Sequence[Any], *, total: int, next_url: str
    ) -> HttpResponse:
        first = list(ids[:NAMES_SHOWN])
        shown = sorted(self.get_queryset(request).filter(pk__in=first), key=lambda subject: first.index(subject.pk))
        return self._ask(
            request,
            form,
            names=[str(subject) for subject in shown],
            several=True,
            next_url=next_url,
            action=reverse(self._url_name(form.operation, "_chosen")),
            chosen=json.dumps([str(key) for key in ids]),
            number=len(ids),
            unnamed=len(ids) - len(shown),
            left_out=total - len(ids),
        )

    def _ask(
        self, request: HttpRequest, form: OperationForm, *, names: Sequence[str], next_url: str, **more: Any
    ) -> HttpResponse:
        context = {"operation": form.operation, "form": form, "names": names, "opts": self.opts, **more}
        context["next"] = self._own(request, next_url) or self._list_url()
        if DIALOG_HEADER in request.headers:
            return TemplateResponse(request, "workers_app/operations/dialog.html", context)
        context |= {
            **self.admin_site.each_context(request),
            "title": form.operation.label,
            "media": self.media + form.media,
        }
        return TemplateResponse(request, "workers_app/operations/page.html", context)

    def _landing(self, request: HttpRequest, subject: Model | None) -> str:
        """Where the person was; the list when there is no way back, such as to the page of what is gone."""
        wanted = self._own(request, request.POST.get("_next", ""))
        if subject is not None and not self.get_queryset(request).filter(pk=subject.pk).exists():
            page = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[quote(subject.pk)])
            wanted = "" if urlsplit(wanted).path == page else wanted
        return wanted or self._list_url()

    def _own(self, request: HttpRequest, url: str) -> str:
        """The address, if it is one of this site; anybody can write anything into a form."""
        own = url_has_allowed_host_and_scheme(url, {request.get_host()}, require_https=request.is_secure())
        return url if own else ""

    def _go(self, request: HttpRequest, url: str) -> HttpResponse:
        return JsonResponse({"go": url}) if DIALOG_HEADER in request.headers else HttpResponseRedirect(url)


def _chosen(
    admin: OperationsAdmin, request: HttpRequest, queryset: QuerySet[Any], *, operation: Operation
) -> HttpResponse:
    return admin.choose(request, queryset, operation=operation)
