from __future__ import annotations

import itertools

import pytest

from jobs_app.states import FINAL, HELD, JobState, ReportState, may_follow, sources

# Written by hand from the design. `claimed -> failed` is the last of many hand-outs that nobody confirmed.
FOLLOWS = {
    ("queued", "claimed"),
    ("queued", "failed"),
    ("queued", "revoked"),
    ("claimed", "running"),
    ("claimed", "queued"),
    ("claimed", "failed"),
    ("claimed", "revoked"),
    ("running", "success"),
    ("running", "failed"),
    ("running", "refused"),
    ("running", "lost"),
    ("running", "queued"),
    ("running", "revoked"),
    ("lost", "running"),
    ("lost", "success"),
}
PAIRS = list(itertools.product(JobState, JobState))


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_state_follows_only_where_the_design_says_so(before: JobState, after: JobState) -> None:
    assert may_follow(before, after) is ((before.value, after.value) in FOLLOWS)


@pytest.mark.parametrize("after", JobState)
def test_the_guard_of_a_transition_names_exactly_the_states_it_may_come_from(after: JobState) -> None:
    assert {state.value for state in sources(after)} == {a for a, b in FOLLOWS if b == after.value}


def test_every_state_waits_is_held_or_is_final() -> None:
    assert {state.value for state in HELD} == {"claimed", "running"}
    assert {state.value for state in FINAL} == {"success", "failed", "refused", "lost", "revoked"}
    assert set(JobState) == {JobState.QUEUED} | HELD | FINAL


def test_an_agent_can_only_say_what_became_of_its_own_process() -> None:
    # Lost and revoked are for the control plane to say, claimed and running have their own endpoints.
    assert {state.value for state in ReportState} == {"success", "failed", "refused", "not_started"}
