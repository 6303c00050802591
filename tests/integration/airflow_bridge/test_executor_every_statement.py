from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from airflow.models.callback import CallbackKey

from airflow_bridge.executor import EdgeControlExecutor
from tests.integration.airflow_bridge import breaking
from tests.integration.airflow_bridge.breaking import AIRFLOWS, TABLES, Breaking
from tests.integration.airflow_bridge.rows import Database
from tests.integration.airflow_bridge.story import Story

pytestmark = pytest.mark.skipif(
    CallbackKey is str, reason="before 3.3 Airflow looks for an ended callback by text, which SQLite does not take"
)

#: What shows logs asks for these; no scheduler does.
OF_LOGS = {"store.log_parts", "store.log_page", "store.add_log"}
STATEMENTS = sorted(set(breaking.statements()) - OF_LOGS)
#: The ways to fail that have most to do with each other stand for the rest, which the slow tests add.
FIRST = {"answer lost", "our mistake", "commit not answered"}


def faults() -> Iterator[object]:
    for statement in STATEMENTS:
        for kind in TABLES if statement.startswith("store.") else AIRFLOWS:
            for often in ("each time", "once"):
                is_first = kind in FIRST and often == "each time"
                yield pytest.param(statement, kind, often, marks=[] if is_first else pytest.mark.slow)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Breaking]:
    with breaking.watch(monkeypatch) as watched:
        yield watched


@pytest.fixture
def story(
    make_executor: Callable[[], EdgeControlExecutor],
    database: Database,
    worker: int,
    watched: Breaking,
    monkeypatch: pytest.MonkeyPatch,
) -> Story:
    clock = breaking.adjustable_clock(monkeypatch)
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    # All open jobs in each turn, not a part of them.
    monkeypatch.setattr("airflow_bridge.reconciliation.CHECK_ROUND_SECONDS", 1)
    story = Story(make_executor, database, worker, clock)
    story.begins()
    return story


def test_the_story_has_every_statement_of_the_bridge_in_it(story: Story, watched: Breaking) -> None:
    with watched.broken("refused", {"store.enqueue"}, once=True):
        story.goes_on()
    story.ends_well()
    story.check()
    assert set(watched.seen) == set(STATEMENTS)


@pytest.mark.parametrize(("statement", "kind", "often"), list(faults()))
def test_whatever_fails_nothing_is_lost_and_nothing_told_twice(
    story: Story, watched: Breaking, statement: str, kind: str, often: str
) -> None:
    # Both send the same one; alone, it would say that only what is in the rows is refused.
    broken = {statement, "store.rehearse"} if statement == "store.enqueue" else {statement}
    with watched.broken(kind, broken, once=often == "once"):
        story.goes_on()
    assert watched.failed
    story.ends_well()
    story.check()


@pytest.mark.parametrize("kind", ["no connection", "answer lost", "Airflow's away"])
def test_whatever_fails_while_a_scheduler_ends_the_next_one_has_everything(
    story: Story, watched: Breaking, kind: str
) -> None:
    story.work_comes()
    with watched.broken(kind, STATEMENTS):
        story.executor.end()
    assert watched.failed
    story.another_scheduler()
    story.work_ends()
    for _ in range(2):
        story.hours_pass()
        story.ends_well()
    story.check()
