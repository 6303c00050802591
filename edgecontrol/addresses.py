"""Where the admin's pages stand, for whoever links to them from outside their own app."""

from __future__ import annotations

from django.contrib.admin.utils import quote
from django.urls import NoReverseMatch, reverse
from django.utils.http import urlencode


def to(name: str, *key: object, **chosen: str | list[str]) -> str:
    """The address of one of the admin's pages; empty while there is no such page."""
    try:
        address = reverse(f"admin:{name}", args=[quote(str(part)) for part in key])
    except NoReverseMatch:
        return ""
    return f"{address}?{urlencode(chosen, doseq=True)}" if chosen else address
