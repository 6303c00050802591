from __future__ import annotations

from typing import Any

import pytest

from jobs_app.waiting_words import Host, Rules, sentence
from workers_app.states import GONE, Shown

TAKE_JOBS = {Shown.STARTING, Shown.IDLE, Shown.RUNNING, Shown.MAINTENANCE_EXIT}


def host(name: str = "press-7", state: str = "idle", *, queues: list[str] | None = None, **facts: Any) -> Host:
    facts = {"team": "", "slots": 4, "held": 0, "not_working": ""} | facts
    return Host(name=name, state=Shown(state), queues=None if queues is None else frozenset(queues), **facts)


def why(*hosts: Host, team: str = "", slots: int = 1, **rules: Any) -> str:
    """Why a job of the queue `floor` waits."""
    known = Rules(**{"paused": False, "comment": "", "limit": None, "held": 0} | rules)
    return sentence(queue="floor", team=team, slots=slots, hosts=hosts, rules=known)


def full(name: str, slots: int = 4, **facts: Any) -> Host:
    return host(name, slots=slots, held=slots, **facts)


class TestQueue:
    def test_a_paused_queue_says_why_whatever_else_is_wrong(self) -> None:
        assert why(paused=True, comment="belt  is\nbroken") == "queue 'floor' is paused: belt is broken"

    def test_a_queue_may_be_paused_without_a_word(self) -> None:
        assert why(host(), paused=True) == "queue 'floor' is paused"

    def test_a_comment_of_any_length_stays_part_of_a_sentence(self) -> None:
        assert len(why(host(), paused=True, comment="x" * 9999)) < 400

    def test_a_queue_that_has_no_row_any_more_is_never_served(self) -> None:
        said = sentence(queue="floor", team="", slots=1, hosts=[host()], rules=None)
        assert said == "queue 'floor' has been deleted: add it again, or revoke the job"

    @pytest.mark.parametrize(
        ("slots", "limit", "held", "said"),
        [
            (1, 3, 3, "queue 'floor' is at its limit of 3 slots"),
            (1, 1, 1, "queue 'floor' is at its limit of 1 slot"),
            (1, 3, 9, "queue 'floor' is at its limit of 3 slots"),
            (4, 3, 0, "needs 4 slots and queue 'floor' allows 3 at a time"),
            (1, 0, 0, "needs 1 slot and queue 'floor' allows 0 at a time"),
            (2, 3, 2, "needs 2 slots and queue 'floor' has 1 of 3 free"),
        ],
    )
    def test_a_limit_says_how_far_it_is_reached(self, slots: int, limit: int, held: int, said: str) -> None:
        assert why(host(), slots=slots, limit=limit, held=held) == said

    @pytest.mark.parametrize("limit", [None, 3])
    def test_a_limit_with_room_is_no_reason(self, limit: int | None) -> None:
        assert why(host(), slots=1, limit=limit, held=2).startswith("about to be taken")


class TestNobody:
    def test_no_worker_is_live(self) -> None:
        assert why() == "no worker is live"

    @pytest.mark.parametrize("state", sorted(GONE))
    def test_a_worker_that_would_but_is_gone_is_named(self, state: str) -> None:
        assert why(host(state=state)) == f"no worker is live; press-7 ({state}) would"

    def test_no_live_worker_works_for_the_team(self) -> None:
        hosts = [host(), host("red-1", team="red"), host("blue-1", "offline", team="blue")]
        assert why(*hosts, team="blue") == "no live worker works for team 'blue'; blue-1 (offline) would"

    def test_a_job_without_a_team_is_for_no_team(self) -> None:
        assert why(host(team="red")) == "every live worker works for a team, and the job has none"

    def test_no_live_worker_serves_the_queue(self) -> None:
        hosts = [host("a", queues=["night"]), host("b", queues=[]), host("c", "offline", queues=["night"])]
        assert why(*hosts) == "no live worker serves queue 'floor'"
        hosts.append(host("press-7", "offline", queues=["floor"]))
        assert why(*hosts) == "no live worker serves queue 'floor'; press-7 (offline) would"

    def test_another_teams_worker_of_the_queue_does_not_help(self) -> None:
        hosts = [host("a", team="blue", queues=[]), host("b", team="red"), host("c", "offline", team="red")]
        assert why(*hosts, team="blue") == "no live worker of team 'blue' serves queue 'floor'"

    def test_a_few_of_many_are_named(self) -> None:
        gone = [host(name, "offline") for name in "abcde"]
        assert why(*gone) == "no worker is live; a (offline), b (offline), c (offline) and 2 more would"
        assert why(*gone[:2]) == "no worker is live; a (offline) and b (offline) would"


class TestResting:
    @pytest.mark.parametrize("state", ["maintenance request", "maintenance pending", "maintenance mode"])
    def test_all_are_in_maintenance(self, state: str) -> None:
        hosts = [host(name, state) for name in "abc"]
        assert why(*hosts) == "all 3 live workers of queue 'floor' are in maintenance"

    @pytest.mark.parametrize("state", ["shutdown request", "terminating"])
    def test_all_are_shutting_down(self, state: str) -> None:
        hosts = [host(name, state) for name in "ab"]
        assert why(*hosts, host("c", "offline")) == "all 2 live workers of queue 'floor' are shutting down"

    def test_a_mixture_is_told_apart(self) -> None:
        hosts = [host("a", "terminating"), host("b", "maintenance mode"), host("c", "maintenance pending")]
        assert why(*hosts) == ("of the 3 live workers of queue 'floor' 2 are in maintenance and 1 is shutting down")

    def test_the_only_one_is_named_with_its_team(self) -> None:
        said = why(host(state="maintenance mode", team="blue"), team="blue")
        assert said == "the only live worker of queue 'floor' and team 'blue', press-7, is in maintenance"

    @pytest.mark.parametrize("state", sorted(set(Shown) - GONE))
    def test_one_that_takes_jobs_is_enough(self, state: str) -> None:
        resting = host("a", "maintenance mode", slots=1)
        said = why(resting, host("b", state))
        assert said.startswith("about to be taken: b has room") is (Shown(state) in TAKE_JOBS)


class TestSlots:
    def test_a_job_larger_than_every_worker_is_told_the_largest(self) -> None:
        hosts = [host("a", slots=1), full("b", 2), host("c", "offline", slots=9)]
        assert why(*hosts, slots=4) == "needs 4 slots and the largest live worker of queue 'floor' has 2"

    def test_a_worker_without_slots_is_too_small_for_any_job(self) -> None:
        assert why(host(slots=0)) == "needs 1 slot and the largest live worker of queue 'floor' has 0"

    def test_those_that_are_large_enough_rest(self) -> None:
        hosts = [host("a", slots=2), host("b", "maintenance mode", slots=8)]
        assert why(*hosts, slots=4) == (
            "needs 4 slots and the only live worker of queue 'floor' with as many, b, is in maintenance"
        )
        hosts.append(host("c", "maintenance request", slots=8))
        assert why(*hosts, slots=4) == (
            "needs 4 slots and all 2 live workers of queue 'floor' with as many are in maintenance"
        )

    def test_all_slots_are_taken(self) -> None:
        hosts = [full("a", 2), full("b", 4), full("c", 6), host("d", queues=[])]
        assert why(*hosts) == "all 12 slots of the 3 workers of queue 'floor' are taken"

    @pytest.mark.parametrize(
        ("slots", "said"),
        [
            (4, "all 4 slots of press-7, the only worker of queue 'floor', are taken"),
            (1, "the only slot of press-7, the only worker of queue 'floor', is taken"),
        ],
    )
    def test_the_only_worker_is_named(self, slots: int, said: str) -> None:
        assert why(full("press-7", slots)) == said

    def test_a_worker_that_holds_more_than_it_may_has_no_negative_room(self) -> None:
        assert why(host("a", held=9), host("b", held=3), slots=2) == (
            "needs 2 slots and no worker of queue 'floor' has more than 1 free"
        )
        assert why(host("a", held=9), full("b")) == "all 8 slots of the 2 workers of queue 'floor' are taken"

    def test_those_that_could_help_are_counted(self) -> None:
        hosts = [full("a"), host("b", "maintenance mode"), host("c", "maintenance mode"), host("d", "terminating")]
        besides = "; 2 more are in maintenance and 1 more is shutting down"
        assert why(*hosts) == (
            f"all 4 slots of a, the only worker of queue 'floor' that takes jobs, are taken{besides}"
        )
        hosts[0] = host("a", held=3)
        assert why(*hosts, slots=2) == f"needs 2 slots and no worker of queue 'floor' has more than 1 free{besides}"


class TestNotWorking:
    def test_an_agent_that_takes_no_work_says_why(self) -> None:
        assert why(host(not_working="Airflow is away")) == "press-7 takes no work: Airflow is away"

    @pytest.mark.parametrize(
        ("not_served", "said"),
        [
            ({"floor": "no Airflow"}, "press-7 takes no work: no Airflow"),
            ({"*": "no Airflow"}, "press-7 takes no work: no Airflow"),
            ({"*": "no Airflow", "floor": ""}, "about to be taken"),
            ({"gpu": "no Airflow"}, "about to be taken"),
        ],
    )
    def test_an_agent_that_cannot_run_this_queue_says_why(self, not_served: dict[str, str], said: str) -> None:
        assert why(host(not_served=not_served)).startswith(said)

    def test_agents_with_the_same_trouble_are_named_together(self) -> None:
        hosts = [host("a", not_working="disk"), host("b", not_working="clock"), host("c", not_working="disk")]
        assert why(*hosts) == "a and c take no work: disk; b takes no work: clock"

    def test_those_that_work_are_full(self) -> None:
        hosts = [host("a", not_working="disk"), full("b"), full("c", not_working="clock")]
        assert why(*hosts) == "a takes no work: disk; 2 more have no room"

    def test_no_room_comes_first(self) -> None:
        assert why(full("a", not_working="disk")).startswith("all 4 slots")

    def test_one_that_works_is_enough(self) -> None:
        assert why(host("a", not_working="disk"), host("b")).startswith("about to be taken: b has room")


def test_a_job_that_somebody_has_room_for_is_about_to_be_taken() -> None:
    hosts = [host("a"), full("b"), host("c", held=3), host("d", "maintenance mode")]
    assert why(*hosts) == "about to be taken: a and c have room, more urgent and older jobs go first"
    assert why(*hosts, slots=2) == "about to be taken: a has room, more urgent and older jobs go first"
