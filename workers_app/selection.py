"""Which rows are meant: workers by the queue they serve or by their silence, anything by a pattern of its name.

Every face that lets people choose many at once asks here, so that the same words choose the same rows.
"""

from __future__ import annotations

import re

from django.db.models import Q

from workers_app.errors import Refusal
from workers_app.states import GONE, Reported

LONGEST_PATTERN = 1000


class InvalidPattern(Refusal):
    """A pattern is a name in which * stands for any characters, ? for one, and [0-9] for one of these."""

    code = "invalid_request"


def serving(queue: str) -> Q:
    """Workers that take jobs of this queue, those that serve every queue included; see Worker.effective_queues."""
    agent_decides = Q(queues_override=None)
    asked = Q(queues=None) | Q(queues__contains=[queue])
    allowed = Q(allowed_queues=None) | Q(allowed_queues__contains=[queue])
    return Q(queues_override__contains=[queue]) | (agent_decides & asked & allowed)


def silent() -> Q:
    """Workers without a word for too long, and without a goodbye."""
    return Q(state__in=[state.value for state in GONE]) & ~Q(reported=Reported.OFFLINE)


def like(pattern: str, *, field: str = "name") -> Q:
    """Rows whose name fits a pattern as shells know it, case included. Raises InvalidPattern."""
    if not 1 <= len(pattern) <= LONGEST_PATTERN or not pattern.isprintable():
        raise InvalidPattern
    return Q(**{f"{field}__regex": _regex(pattern)})


def _regex(pattern: str) -> str:
    """In words that Python and PostgreSQL read alike."""
    parts, rest = [], pattern
    while rest:
        first, rest = rest[0], rest[1:]
        one_of = re.match(r"(!?)(\]?[^]]*)\]", rest) if first == "[" else None
        if one_of and one_of[2]:
            inside = re.sub(r"[^\w-]", r"\\\g<0>", one_of[2])
            parts.append(f"[{'^' if one_of[1] else ''}{inside}]")
            rest = rest[one_of.end() :]
        else:
            parts.append({"*": ".*", "?": "."}.get(first) or re.escape(first))
    # One star does what several do, and costs less.
    regex = re.sub(r"(\.\*)+", ".*", "^" + "".join(parts) + "$")
    try:
        re.compile(regex)
    except re.error:
        raise InvalidPattern from None
    return regex
