from __future__ import annotations

from uuid import uuid4

from airflow_bridge.ledger import Ledger, OpenJob


def open_job(key: str) -> OpenJob:
    return OpenJob(id=uuid4(), key=key, airflow_id=uuid4())


def test_a_key_belongs_to_its_newest_job() -> None:
    ledger, older, newer = Ledger(), open_job("etl.extract"), open_job("etl.extract")
    ledger.add(older, renew_at=0)
    ledger.add(newer, renew_at=0)
    assert ledger.newest("etl.extract") == newer.id
    assert ledger.get(older.id) is None


def test_forgetting_the_older_job_leaves_the_key_to_the_newer_one() -> None:
    ledger, older, newer = Ledger(), open_job("etl.extract"), open_job("etl.extract")
    ledger.add(older, renew_at=0)
    ledger.add(newer, renew_at=0)
    ledger.forget(older.id)
    assert "etl.extract" in ledger
    ledger.forget_key("etl.extract")
    assert "etl.extract" not in ledger
    assert len(ledger) == 0


def test_keys_of_unknown_jobs_are_left_out() -> None:
    ledger, job = Ledger(), open_job("a")
    ledger.add(job, renew_at=0)
    assert ledger.keys_of({job.id, uuid4()}) == {"a"}


def test_jobs_come_up_for_renewal_when_due_and_only_once() -> None:
    ledger = Ledger()
    early, late = open_job("early"), open_job("late")
    ledger.add(late, renew_at=200)
    ledger.add(early, renew_at=100)
    assert ledger.due_for_renewal(now=99, limit=10) == []
    assert ledger.due_for_renewal(now=150, limit=10) == [early]
    assert ledger.due_for_renewal(now=150, limit=10) == []
    ledger.renew(early.id, at=180)
    assert ledger.due_for_renewal(now=300, limit=1) == [early]
    assert ledger.due_for_renewal(now=300, limit=1) == [late]


def test_a_forgotten_job_is_not_renewed() -> None:
    ledger, job = Ledger(), open_job("a")
    ledger.add(job, renew_at=0)
    ledger.forget(job.id)
    assert ledger.due_for_renewal(now=1, limit=10) == []


def test_one_round_of_checks_meets_every_job_once() -> None:
    ledger = Ledger()
    jobs = [open_job(str(number)) for number in range(1000)]
    for job in jobs:
        ledger.add(job, renew_at=0)
    seen = []
    for _ in range(60):
        seen += ledger.next_to_check("table", seconds_per_round=60, limit=500)
    assert set(seen) == {job.id for job in jobs}
    assert len(seen) < 1100


def test_a_check_is_never_larger_than_its_limit() -> None:
    ledger = Ledger()
    for number in range(1000):
        ledger.add(open_job(str(number)), renew_at=0)
    assert len(ledger.next_to_check("table", seconds_per_round=1, limit=50)) == 50
