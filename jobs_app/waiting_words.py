"""Why a job waits, in one sentence for people: pure, from what is known of its queue and of the fleet.

The rules are those of `picking` and `lifecycle.claim`, told in the order in which somebody can do something about them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from workers_app.states import GONE, Shown

_MOST_NAMES = 3
_MOST_LETTERS = 300

_SHUTTING_DOWN = frozenset({Shown.SHUTDOWN_REQUEST, Shown.TERMINATING})
_IN_MAINTENANCE = frozenset({Shown.MAINTENANCE_REQUEST, Shown.MAINTENANCE_PENDING, Shown.MAINTENANCE_MODE})
_TAKING_JOBS = frozenset(Shown) - GONE - _SHUTTING_DOWN - _IN_MAINTENANCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """What decides whether a worker takes a job."""

    name: str
    team: str
    #: None: every queue.
    queues: frozenset[str] | None
    slots: int
    held: int
    state: Shown
    #: Why the agent says that it takes no work, or nothing.
    not_working: str
    #: The same of single queues; `*` stands for those that it does not name.
    not_served: Mapping[str, str] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return max(self.slots - self.held, 0)

    @property
    def takes_jobs(self) -> bool:
        return self.state in _TAKING_JOBS

    def serves(self, queue: str) -> bool:
        return self.queues is None or queue in self.queues

    def why_not(self, queue: str) -> str:
        """Why its agent takes no job of the queue at the moment; empty when it does."""
        return self.not_working or self.not_served.get(queue, self.not_served.get("*", ""))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What decides whether a queue lets a job out."""

    paused: bool
    comment: str
    #: Slots that may be held at once; None: no limit.
    limit: int | None
    held: int


def sentence(*, queue: str, team: str, slots: int, hosts: Sequence[Host], rules: Rules | None) -> str:
    """Why such a job waits: the first reason that applies. Pure; without `rules` the queue is not known."""
    if rules is None:
        return f"queue {queue!r} has been deleted: add it again, or revoke the job"
    if rules.paused:
        return f"queue {queue!r} is paused" + (f": {_short(rules.comment)}" if rules.comment else "")
    live = [host for host in hosts if host.team == team and host.state not in GONE]
    serving = [host for host in live if host.serves(queue)]
    if not serving:
        away = [host for host in hosts if host.team == team and host.state in GONE and host.serves(queue)]
        return _nobody(queue=queue, team=team, hosts=hosts, team_is_live=bool(live)) + _away(away)
    place = f"queue {queue!r}" + (f" and team {team!r}" if team else "")
    return (
        _cannot(place=place, slots=slots, serving=serving)
        or _limited(queue=queue, slots=slots, rules=rules)
        or _occupied(place=place, slots=slots, serving=serving)
        or _about_to(queue=queue, slots=slots, serving=serving)
    )


def _nobody(*, queue: str, team: str, hosts: Sequence[Host], team_is_live: bool) -> str:
    if team_is_live:
        return f"no live worker{f' of team {team!r}' if team else ''} serves queue {queue!r}"
    if team:
        return f"no live worker works for team {team!r}"
    if any(host.state not in GONE for host in hosts):
        return "every live worker works for a team, and the job has none"
    return "no worker is live"


def _away(hosts: Sequence[Host]) -> str:
    return f"; {_some([f'{host.name} ({host.state})' for host in hosts])} would" if hosts else ""


def _cannot(*, place: str, slots: int, serving: Sequence[Host]) -> str | None:
    """None of them would take it even if nothing else ran."""
    if not any(host.takes_jobs for host in serving):
        return _resting(serving, of=place)
    large = [host for host in serving if host.slots >= slots]
    if not large:
        largest = max(host.slots for host in serving)
        return f"needs {_slots(slots)} and the largest live worker of {place} has {largest}"
    if not any(host.takes_jobs for host in large):
        return f"needs {_slots(slots)} and {_resting(large, of=f'{place} with as many')}"
    return None


def _limited(*, queue: str, slots: int, rules: Rules) -> str | None:
    """Its queue does not let it out."""
    if rules.limit is None or rules.held + slots <= rules.limit:
        return None
    if slots > rules.limit:
        return f"needs {_slots(slots)} and queue {queue!r} allows {rules.limit} at a time"
    if rules.held >= rules.limit:
        return f"queue {queue!r} is at its limit of {_slots(rules.limit)}"
    return f"needs {_slots(slots)} and queue {queue!r} has {rules.limit - rules.held} of {rules.limit} free"


def _occupied(*, place: str, slots: int, serving: Sequence[Host]) -> str | None:
    """Nobody who takes jobs has room for it."""
    active = [host for host in serving if host.takes_jobs]
    most = max(host.free for host in active)
    if most >= slots:
        return None
    besides = _besides([host for host in serving if not host.takes_jobs])
    if most:
        return f"needs {_slots(slots)} and no worker of {place} has more than {most} free{besides}"
    whose = f"the {len(active)} workers of {place}"
    if len(active) == 1:
        whose = f"{active[0].name}, the only worker of {place}{' that takes jobs' if besides else ''},"
    total = sum(host.slots for host in active)
    return f"{f'all {total} slots' if total > 1 else 'the only slot'} of {whose} {_be(total)} taken{besides}"


def _about_to(*, queue: str, slots: int, serving: Sequence[Host]) -> str:
    """Somebody has room for it, and takes it unless the agent has said why not."""
    roomy = [host for host in serving if host.takes_jobs and host.free >= slots]
    able = [host.name for host in roomy if not host.why_not(queue)]
    if able:
        return f"about to be taken: {_some(able)} {_have(len(able))} room, more urgent and older jobs go first"
    idle: dict[str, list[str]] = defaultdict(list)
    for host in roomy:
        idle[host.why_not(queue)].append(host.name)
    said = [f"{_some(names)} {_take(len(names))} no work: {_short(why)}" for why, names in idle.items()]
    full = sum(host.takes_jobs for host in serving) - len(roomy)
    return "; ".join(said[:_MOST_NAMES] + ([f"{full} more {_have(full)} no room"] if full else []))


def _resting(hosts: Sequence[Host], *, of: str) -> str:
    where = _where(hosts)
    if len(hosts) == 1:
        return f"the only live worker of {of}, {hosts[0].name}, is {where[0][0]}"
    if len(where) == 1:
        return f"all {len(hosts)} live workers of {of} are {where[0][0]}"
    return f"of the {len(hosts)} live workers of {of} " + " and ".join(f"{n} {_be(n)} {what}" for what, n in where)


def _besides(hosts: Sequence[Host]) -> str:
    where = _where(hosts)
    return "; " + " and ".join(f"{n} more {_be(n)} {what}" for what, n in where) if where else ""


def _where(hosts: Sequence[Host]) -> list[tuple[str, int]]:
    """What they do instead of taking jobs, and how many."""
    down = sum(host.state in _SHUTTING_DOWN for host in hosts)
    counts = [("in maintenance", len(hosts) - down), ("shutting down", down)]
    return [(what, count) for what, count in counts if count]


def _some(names: Sequence[str]) -> str:
    """Enough names to go on with."""
    if len(names) > _MOST_NAMES:
        names = [*names[:_MOST_NAMES], f"{len(names) - _MOST_NAMES} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _short(text: str) -> str:
    """Somebody's words as part of a sentence: one line of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"


def _slots(count: int) -> str:
    return f"{count} slot" if count == 1 else f"{count} slots"


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _take(count: int) -> str:
    return "takes" if count == 1 else "take"
