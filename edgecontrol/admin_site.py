"""The admin as a whole: its look, its navigation, what its search finds. No page of a model is made here."""

from __future__ import annotations

from django.http import HttpRequest
from django.templatetags.static import static


def stylesheet(request: HttpRequest) -> str:
    return static("edgecontrol/fleet.css")
