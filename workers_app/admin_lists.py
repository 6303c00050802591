"""What lists of the admin share: they remember how their reader last left them. Never for anybody else."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.views.main import ERROR_FLAG, ORDER_VAR, PAGE_VAR, SEARCH_VAR
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from unfold.admin import ModelAdmin

#: Of a list's address: where one is in it, not how one wants it.
_PASSING = (PAGE_VAR, ERROR_FLAG)
_LONGEST = 2000
#: Forgets, also where no browser says from which page a link was followed.
CLEAR = "_clear"


class RemembersList(ModelAdmin):  # type: ignore[misc]
    """A list that comes back with the filters, the order and the search that this person last used in it.

    Its bare address brings them back, unless it is followed from within the list: that clears them.
    """

    list_before_template = "workers_app/lists/remembered.html"

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.method == "GET" and IS_POPUP_VAR not in request.GET:
            if CLEAR in request.GET:
                request.session.pop(self._key, None)
                return HttpResponseRedirect(request.path)
            if wanted := self._remembered(request):
                return HttpResponseRedirect(f"{request.path}?{wanted}")
        context = {"remembered": self._described(request.GET), **(extra_context or {})}
        page: HttpResponse = super().changelist_view(request, context)
        return page

    @property
    def _key(self) -> str:
        return f"list:{self.opts.label_lower}"

    def _remembered(self, request: HttpRequest) -> str:
        """What to bring back now; what is asked for is noted instead."""
        stored = request.session.get(self._key, "")
        if not request.GET and urlsplit(request.headers.get("Referer", "")).path != request.path:
            return str(stored)
        asked = request.GET.copy()
        for name in _PASSING:
            asked.pop(name, None)
        query = asked.urlencode()
        if query != stored and len(query) <= _LONGEST and ERROR_FLAG not in request.GET:
            request.session[self._key] = query
        return ""

    def _described(self, asked: QueryDict) -> list[tuple[str, str]]:
        """(name, value) of what narrows the list, and that it is in an order of the reader's."""
        titles = {getattr(each, "parameter_name", ""): str(getattr(each, "title", "")) for each in self.list_filter}
        shown = []
        for name, values in asked.lists():
            said = ", ".join(text for text in values if text)
            if not said or name in _PASSING or name == ORDER_VAR:
                continue
            title = "search" if name == SEARCH_VAR else titles.get(name) or name.replace("__", " ").replace("_", " ")
            shown.append((title, "yes" if said == "1" else said))
        if ORDER_VAR in asked:
            shown.append(("order", "as you chose"))
        return shown
