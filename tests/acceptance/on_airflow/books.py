"""Airflow's ledger and ours of one case, side by side: how every try, callback and connection test has ended.

Each side is read where a person would look it up: task instances from Airflow's REST API, jobs from the job table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, LiteralString

from tests.acceptance.faults.airflow_ledger import Place, place_of
from tests.acceptance.faults.airflow_site import AirflowSite

#: Nobody works at it any more, and nobody counts it as done or failed.
WITHDRAWN = "withdrawn"
#: What Airflow calls a task that it does not wait for any longer.
_GIVEN_UP = frozenset({"skipped", "removed", "upstream_failed", ""})

_CALLBACKS: LiteralString = (
    "SELECT c.id, c.state FROM callback c JOIN deadline d ON d.callback_id = c.id JOIN dag_run r ON r.id = d.dagrun_id"
    " WHERE r.run_id = ANY(%s)"
)
#: One that nobody took in time Airflow calls failed too.
_TESTS: LiteralString = (
    "SELECT id, CASE WHEN position('never started' IN coalesce(result_message, '')) > 0 THEN '' ELSE state END"
    " FROM connection_test_request WHERE token = ANY(%s)"
)
_JOBS_OF_THEM: LiteralString = (
    "SELECT airflow_id, state, airflow_outcome, reason FROM edgecontrol.job WHERE airflow_id = ANY(%s)"
)


@dataclass
class Books:
    """How each thing has ended by both ledgers; what only one of them knows has no end in the other."""

    case: str
    airflow: dict[Any, str] = field(default_factory=dict)
    edgecontrol: dict[Any, str] = field(default_factory=dict)

    def differences(self) -> list[str]:
        """For people: what the two ledgers do not agree about. Both empty is a difference too."""
        if not self.airflow and not self.edgecontrol:
            return ["both ledgers are empty"]
        return [
            f"{thing}: Airflow says {self.airflow.get(thing)}, EdgeControl {self.edgecontrol.get(thing)}"
            for thing in self.airflow.keys() | self.edgecontrol.keys()
            if self.airflow.get(thing) != self.edgecontrol.get(thing)
        ]

    def as_property(self) -> tuple[str, list[str]]:
        equal = "no" if self.differences() else "yes"
        return "two books", [self.case, counted(self.airflow), counted(self.edgecontrol), equal]


def counted(ends: Mapping[Any, str]) -> str:
    """As `297 success, 3 failed`."""
    return ", ".join(f"{count} {end}" for end, count in Counter(ends.values()).most_common()) or "nothing"


def books(
    site: AirflowSite,
    *,
    case: str,
    runs: Iterable[tuple[str, str]] = (),
    deleted: Collection[str] = (),
    elsewhere: Collection[Place] = (),
    tests: Collection[str] = (),
) -> Books:
    """Both ledgers of these runs, (DAG, run) each, with their deadlines' callbacks, and of these connection tests.

    Of a run that Airflow has `deleted` its ledger says nothing; each of our jobs of it has to be withdrawn then.
    """
    made = Books(case)
    for dag_id, run_id in runs:
        ours = _last_ends(site.jobs(run_id))
        made.edgecontrol.update({(run_id, *one): end for one, end in ours.items()})
        if run_id in deleted:
            assert site.airflow.call("GET", f"dags/{dag_id}/dagRuns/{run_id}", missing_ok=True) is None
            made.airflow.update({(run_id, *one): WITHDRAWN for one in ours})
            continue
        for ti in site.task_instances(dag_id, run_id):
            if place_of(ti) not in elsewhere:
                tries = {(run_id, *place_of(ti), one["try_number"]): airflows(one["state"]) for one in ti["tries"]}
                made.airflow.update(tries)
    run_ids = [run_id for _, run_id in runs]
    for query, keys in ((_CALLBACKS, run_ids), (_TESTS, list(tests))):
        theirs = dict(site.parts.rows("airflow", query, keys)) if keys else {}
        made.airflow.update({one: airflows(state) for one, state in theirs.items()})
        jobs = site.parts.rows("edgecontrol", _JOBS_OF_THEM, list(theirs)) if theirs else []
        made.edgecontrol.update({one: edgecontrols(*rest) for one, *rest in jobs})
    return made


def _last_ends(jobs: Iterable[dict[str, Any]]) -> dict[Any, str]:
    """How each try has ended by its newest job: those before it were deferred, or given back."""
    return {
        (job["task_id"], job["map_index"], job["try_number"]): edgecontrols(
            job["state"], job["airflow_outcome"], job["reason"]
        )
        for job in jobs
    }


def airflows(state: str | None) -> str:
    return WITHDRAWN if (state or "") in _GIVEN_UP else str(state)


def edgecontrols(state: str, airflow_outcome: str, reason: str) -> str:
    """What a job's end means for Airflow, in Airflow's words."""
    if airflow_outcome:
        return airflow_outcome
    if state == "refused" or (state == "revoked" and reason.startswith("Airflow ")):
        return WITHDRAWN
    return "failed" if state in ("failed", "lost", "revoked") else state
