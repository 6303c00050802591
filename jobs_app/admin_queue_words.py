"""How the admin's pages say what they say of a queue: words, marks and links; nothing is read or decided here."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString, mark_safe

from jobs_app import figures
from jobs_app.models import Queue
from jobs_app.states import JobState
from workers_app import admin_words

PAUSED = "No more jobs of it are handed out; those on worker hosts go on."
OPEN = "Worker hosts that serve it get its jobs."
UNSERVED = "Jobs wait, and no live worker host of their team serves the queue."


def badges(queue: Any) -> SafeString:
    state = admin_words.badge("paused", PAUSED) if queue.paused else admin_words.badge("open", OPEN)
    mark = format_html('<span class="ec-state ec-state--unserved" title="{}">nobody serves it</span>', UNSERVED)
    return format_html('<span class="ec-tags">{}{}</span>', state, mark if queue.unserved else "")


def why_paused(queue: Queue) -> SafeString:
    """The comment, who paused it and when; nothing for a queue that is open."""
    if not queue.paused:
        return mark_safe("")
    return format_html(
        '<span class="ec-wish"><span class="ec-comment">{}</span> <small>{} {}</small></span>',
        queue.pause_comment,
        queue.paused_by or "somebody",
        admin_words.moment(queue.paused_at),
    )


def counted(number: int) -> str:
    return f"{number:,}" + ("+" if number >= figures.MOST_COUNTED else "")


def jobs(queue: Any, state: JobState, count: int, *, shown: str = "") -> SafeString:
    """How many jobs of the queue are in this state, with a link to them for who may see jobs."""
    return number(count, jobs_url(queue, state) if queue.see_jobs else "", shown=shown)


def number(count: int, url: str, *, shown: str = "") -> SafeString:
    if not count:
        return mark_safe('<span class="ec-none">0</span>')
    if not url:
        return format_html("{}", shown or f"{count:,}")
    return format_html('<a href="{}" class="ec-link">{}</a>', url, shown or f"{count:,}")


def wait(now: figures.Figures) -> SafeString:
    """How long the first of the waiting jobs has waited."""
    if now.oldest is None:
        return admin_words.NOTHING
    return format_html(
        '<time class="ec-nowrap" datetime="{}" title="Since {}">{}</time>',
        now.oldest.isoformat(),
        admin_words.exactly(now.oldest),
        admin_words.span(timezone.now() - now.oldest),
    )


def slots(queue: Any) -> SafeString:
    held, limit = queue.now.held_slots, queue.concurrency_limit
    if limit is None:
        return format_html('<span class="ec-nowrap" title="No limit">{}</span>', held)
    full = " ec-full" if held >= limit else ""
    return format_html(
        '<span class="ec-nowrap{}" title="{}">{} of {}</span>',
        full,
        "The limit is reached." if full else "",
        held,
        limit,
    )


def served(queue: Any) -> SafeString:
    """How many live workers serve it, and how many of them take jobs if not all do."""
    now = queue.now
    there = number(now.workers, workers_url(queue) if queue.see_workers else "")
    less = format_html('<small class="ec-sub">{}</small>', f"{now.taking} take{'s' * (now.taking == 1)} jobs")
    return format_html('<span class="ec-stack ec-nowrap">{}{}</span>', there, less if now.taking < now.workers else "")


def last_hour(ended: figures.Ended) -> SafeString:
    if not ended.jobs:
        return mark_safe('<span class="ec-none">0</span>')
    estimated = f"From the newest {figures.MOST_ENDED:,} jobs that have ended." if ended.estimated else ""
    wrong = format_html('<small class="ec-sub ec-wrong">{} failed or lost</small>', f"{ended.went_wrong:,}")
    return format_html(
        '<span class="ec-stack ec-nowrap" title="{}"><span>{}{}</span>{}</span>',
        estimated,
        "about " if estimated else "",
        f"{ended.jobs:,}",
        wrong if ended.went_wrong else "",
    )


def jobs_url(queue: Queue, state: JobState | None = None) -> str:
    narrowed = {"queue": queue.name} | ({"state": state.value} if state else {})
    return f"{reverse('admin:jobs_app_job_changelist')}?{urlencode(narrowed)}"


def workers_url(queue: Queue) -> str:
    return f"{reverse('admin:workers_app_worker_changelist')}?{urlencode({'queue': queue.name})}"
