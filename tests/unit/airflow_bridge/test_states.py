from __future__ import annotations

import re

from airflow_bridge import store
from airflow_bridge.states import FINAL, HELD, JobState

STATEMENTS = {name: text for name, text in vars(store).items() if name.isupper() and isinstance(text, str)}


def states_of(statement: str) -> set[str]:
    """Words that a statement compares a job's state with, or sets it to."""
    lists = re.findall(r"\bstate IN \(([^)]*)\)", statement)
    words = [word for listed in lists for word in re.findall(r"'(\w+)'", listed)]
    return {*words, *re.findall(r"\bstate = '(\w+)'", statement)}


def test_every_state_in_a_statement_is_a_state() -> None:
    found = {name: states_of(text) for name, text in STATEMENTS.items()}
    assert any(found.values())
    for name, states in found.items():
        assert states <= set(JobState), name


def test_statements_about_groups_of_states_name_the_whole_group() -> None:
    assert states_of(store._UNTOLD) == FINAL
    assert states_of(store._HELD) == HELD
    assert states_of(store._ENQUEUE) == (set(JobState) - FINAL) | {JobState.REVOKED}


def test_a_job_is_open_held_or_final() -> None:
    assert not HELD & FINAL
    assert set(JobState) - HELD - FINAL == {JobState.QUEUED}
