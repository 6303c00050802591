"""Numbers and moments as the home page writes them: in words, and in UTC for those who point at them."""

from __future__ import annotations

from datetime import UTC, datetime

from django import template

from workers_app import admin_words

register = template.Library()

register.filter("moment", admin_words.moment)
register.filter("exactly", admin_words.exactly)


@register.filter
def number(count: int) -> str:
    return f"{count:,}"


@register.filter
def clock(when: datetime) -> str:
    return f"{when.astimezone(UTC):%H:%M}"


@register.filter
def clock_with_seconds(when: datetime) -> str:
    return f"{when.astimezone(UTC):%H:%M:%S}"
