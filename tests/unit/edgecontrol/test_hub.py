from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from edgecontrol import hub as module
from edgecontrol.hub import Busy, Hub, Poll
from jobs_app.notices import JOBS_CHANNEL
from workers_app.models import Worker
from workers_app.notices import WORKER_CHANNEL


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that nobody tells anything but the test."""
    monkeypatch.setattr(Hub, "_start", lambda self: None)
    return Hub()


@pytest.fixture
def park(hub: Hub) -> Iterator[Callable[..., Poll]]:
    """Register polls of different workers that serve everything; they leave at the end of the test."""
    with ExitStack() as polls:

        def park(worker: int = 0, *, free_slots: int = 1, queues: list[str] | None = None, team: str = "") -> Poll:
            row = Worker(pk=worker or len(hub._polls) + 1, name="w", queues=queues, team_name=team)
            return polls.enter_context(hub.poll(worker=row, free_slots=free_slots))

        yield park


def announce(hub: Hub, *, queue: str = "default", team: str = "", slots: int = 1, count: int = 1) -> None:
    hub.hear(JOBS_CHANNEL, json.dumps({"queue": queue, "team": team, "slots": slots, "count": count}))


def test_as_many_polls_are_woken_as_there_are_jobs_longest_waiting_first(hub: Hub, park: Callable[..., Poll]) -> None:
    polls = [park() for _ in range(5)]
    announce(hub, count=2)
    assert [poll.woken.is_set() for poll in polls] == [True, True, False, False, False]


def test_the_next_jobs_wake_those_that_were_not_woken_yet(hub: Hub, park: Callable[..., Poll]) -> None:
    polls = [park() for _ in range(3)]
    announce(hub)
    announce(hub)
    assert [poll.woken.is_set() for poll in polls] == [True, True, False]


def test_a_poll_that_was_woken_and_parks_again_goes_to_the_end_of_the_line(hub: Hub, park: Callable[..., Poll]) -> None:
    first, second = park(), park()
    announce(hub)
    first.woken.clear()
    announce(hub)
    assert (first.woken.is_set(), second.woken.is_set()) == (False, True)


def test_more_jobs_than_polls_wake_everybody(hub: Hub, park: Callable[..., Poll]) -> None:
    polls = [park() for _ in range(3)]
    announce(hub, count=1000)
    assert all(poll.woken.is_set() for poll in polls)


@pytest.mark.parametrize(
    ("poll", "job", "woken"),
    [
        ({"queues": None}, {"queue": "any"}, True),
        ({"queues": ["a", "b"]}, {"queue": "b"}, True),
        ({"queues": ["a"]}, {"queue": "b"}, False),
        ({"queues": []}, {"queue": "b"}, False),
        ({"team": "red"}, {"team": "red"}, True),
        ({"team": "red"}, {"team": "blue"}, False),
        ({"team": "red"}, {"team": ""}, False),
        ({"team": ""}, {"team": "red"}, False),
        ({"free_slots": 2}, {"slots": 2}, True),
        ({"free_slots": 2}, {"slots": 3}, False),
        ({"free_slots": 0}, {"slots": 1}, False),
    ],
)
def test_only_a_poll_that_could_take_the_job_is_woken(
    hub: Hub, park: Callable[..., Poll], poll: dict[str, object], job: dict[str, object], woken: bool
) -> None:
    parked = park(**poll)
    announce(hub, **job)  # type: ignore[arg-type]
    assert parked.woken.is_set() is woken


def test_a_poll_that_cannot_take_the_job_does_not_use_up_the_notification(hub: Hub, park: Callable[..., Poll]) -> None:
    full, free = park(free_slots=0), park(free_slots=1)
    announce(hub, count=1)
    assert (full.woken.is_set(), free.woken.is_set()) == (False, True)


def test_what_a_worker_may_serve_is_decided_by_its_allowed_queues(hub: Hub) -> None:
    worker = Worker(pk=1, queues=["a", "b"], allowed_queues=["b", "c"], team_name="")
    with hub.poll(worker=worker, free_slots=1) as poll:
        assert [queue for queue in "abc" if poll.serves(queue=queue, team="", slots=1)] == ["b"]


def test_a_change_of_a_worker_wakes_its_own_poll_and_no_other(hub: Hub, park: Callable[..., Poll]) -> None:
    mine, other = park(7), park(8)
    hub.hear(WORKER_CHANNEL, '{"worker": 7}')
    assert (mine.woken.is_set(), other.woken.is_set()) == (True, False)


def test_a_newer_poll_of_the_same_worker_wakes_the_older_one_which_ends(hub: Hub, park: Callable[..., Poll]) -> None:
    older, stranger = park(7), park(8)
    newer = park(7)
    assert [poll.woken.is_set() for poll in (older, stranger, newer)] == [True, False, False]


@pytest.mark.parametrize("channel", [JOBS_CHANNEL, WORKER_CHANNEL])
@pytest.mark.parametrize("payload", ["", "not json", "{}", "[]", "7", '"text"', "null", '{"worker": {}}', "[[["])
def test_a_notification_that_nobody_understands_ends_no_thread_and_loses_no_job(
    hub: Hub, park: Callable[..., Poll], channel: str, payload: str
) -> None:
    polls = [park(), park()]
    hub.hear(channel, payload)
    # A worker that does not exist may wake nobody; anything else makes everybody look.
    assert all(poll.woken.is_set() for poll in polls) or (channel, payload) == (WORKER_CHANNEL, '{"worker": {}}')


@pytest.mark.parametrize("said", [{"slots": "2"}, {"slots": None}, {"count": "many"}, {"queue": ["a"]}])
def test_a_notification_with_a_value_of_the_wrong_type_ends_no_thread(
    hub: Hub, park: Callable[..., Poll], said: dict[str, object]
) -> None:
    poll = park(queues=["default"])
    hub.hear(JOBS_CHANNEL, json.dumps({"queue": "default", "team": "", "slots": 1, "count": 1} | said))
    assert poll.woken.is_set()


def test_stopping_wakes_every_parked_poll(hub: Hub, park: Callable[..., Poll]) -> None:
    polls = [park(), park(free_slots=0)]
    hub.stop()
    assert all(poll.woken.is_set() for poll in polls)


def test_a_poll_that_arrives_while_the_control_plane_stops_does_not_park(
    hub: Hub, park: Callable[..., Poll], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.stop()
    poll = park()
    waited: list[float] = []
    monkeypatch.setattr(poll.woken, "wait", lambda seconds: waited.append(seconds) or poll.woken.is_set())
    assert poll.wait(50) is False
    assert not waited or poll.woken.is_set(), "it would have kept the process alive for seconds"


def test_a_poll_leaves_nothing_behind(hub: Hub) -> None:
    with pytest.raises(RuntimeError), hub.poll(worker=Worker(pk=1, team_name=""), free_slots=1):
        raise RuntimeError
    assert not hub._polls


def test_a_poll_looks_again_after_a_while_without_any_notification(
    hub: Hub, park: Callable[..., Poll], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECHECK_SECONDS", 0.001)
    assert park().wait(50) is True


def test_a_poll_that_was_woken_between_its_look_and_its_wait_does_not_park(hub: Hub, park: Callable[..., Poll]) -> None:
    poll = park()
    announce(hub)
    assert poll.wait(50) is True
    assert not poll.woken.is_set()


def test_parked_polls_leave_a_quarter_of_the_threads_to_the_work(
    hub: Hub, park: Callable[..., Poll], monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.conf import settings as django_settings

    few = django_settings.EDGECONTROL.model_copy(update={"threads": 8})
    monkeypatch.setattr(module.settings, "EDGECONTROL", few)
    with ExitStack() as places:
        for _ in range(6):
            places.enter_context(hub.place())
        with pytest.raises(Busy):
            park().wait(50)
    park().woken.set()
    with hub.place():
        pass
