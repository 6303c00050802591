"""Case 11: large logs of any bytes through a small gateway, logs beyond the cap, and logs that nobody takes."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from tests.acceptance.faults.airflow_stand_in import Task
from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.ledger import Row, balance
from tests.acceptance.faults.machine import Machine
from tests.acceptance.faults.pace import SEED, times
from tests.acceptance.faults.people import Somebody, job_id
from tests.acceptance.faults.proxy import Fault

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

MakeSite = Callable[..., FaultSite]
MB = 1_000_000
GATEWAY_BYTES = 64 * 1024
CHUNK_BYTES = 256 * 1024


def test_large_logs_of_any_bytes_pass_a_small_gateway(
    make_site: MakeSite, balanced: Callable[[Row], None], measured: Callable[[str], None]
) -> None:
    site = make_site(EDGECONTROL_LOG_CHUNK_BYTES=str(CHUNK_BYTES))
    site.way_in.body_limit = GATEWAY_BYTES
    break_the_way_of_logs(site)
    machine = site.machine("edge-1", concurrency=4)
    sizes = [*[times(5, full=50) * MB] * 3, times(20, full=50) * MB]
    specs = [{"text": {"bytes": size, "seed": SEED + number, "seconds": 2}} for number, size in enumerate(sizes)]
    machine.start()
    site.until(lambda: "is registered" in machine.agent.stderr)
    began = time.monotonic()
    with watched_memory(site, machine) as most:
        tasks = site.queue(*specs)
        site.settle(seconds=800)
    grown = ", ".join(f"{name} {size} MB" for name, size in most.items())
    measured(f"case 11: {sum(sizes) // MB} MB of logs in {time.monotonic() - began:.0f} s; memory grew by {grown}")
    chunks = site.rows("SELECT max(octet_length(data)) AS most, count(*) AS count FROM edgecontrol.log_chunk")[0]
    assert 1024 < chunks.most <= GATEWAY_BYTES
    assert chunks.count >= sum(sizes) // GATEWAY_BYTES
    assert site.way_in.injected["413"] < 10, "a size that was refused once is asked for again and again"
    for task in tasks:
        assert digests(site, task) == {hashlib.sha256(kept(site, task)).hexdigest()}
    balanced(balance(site, case="11 large logs, small gateway, lost and cut answers"))


def break_the_way_of_logs(site: FaultSite) -> None:
    """Each of it seldom, since a log pauses a second or two after each."""
    site.way_in.add(Fault.DUPLICATE, "/logs/", every=11)
    site.way_in.add(Fault.LOSE_ANSWER, "/logs/", every=103)
    site.way_in.add(Fault.LOSE_REQUEST, "/logs/", every=107)
    site.way_in.add(Fault.CUT, "/logs/", every=109)
    site.way_in.add(Fault.REFUSE, "/logs/", every=113, status=429, headers={"Retry-After": "1"})
    site.way_in.add(Fault.REFUSE, "/logs/", every=127, status=502)
    site.way_in.add(Fault.REFUSE, "/logs/", every=131, status=503)


def kept(site: FaultSite, task: Task) -> bytes:
    """What the task wrote."""
    return (site.kept / f"{job_id(task)}.1").read_bytes()


def digests(site: FaultSite, task: Task) -> set[str]:
    """SHA-256 of what is stored, and as the agent reported it."""
    chunks = site.rows('SELECT data FROM edgecontrol.log_chunk WHERE job_id = %s ORDER BY "offset"', job_id(task))
    (job,) = site.rows("SELECT log_sha256 FROM edgecontrol.job WHERE id = %s", job_id(task))
    return {hashlib.sha256(b"".join(bytes(chunk.data) for chunk in chunks)).hexdigest(), job.log_sha256}


@contextmanager
def watched_memory(site: FaultSite, machine: Machine) -> Iterator[dict[str, int]]:
    """By how many MB the agent and the largest process of the control plane have grown at most."""
    ended, most = threading.Event(), {"agent": 0, "control plane": 0}
    processes = {"agent": [psutil.Process(machine.agent.process.pid)], "control plane": site.control_plane_processes()}
    before = {name: largest(found) for name, found in processes.items()}

    def watch() -> None:
        while not ended.wait(0.5):
            for name, found in processes.items():
                most[name] = max(most[name], (largest(found) - before[name]) // MB)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield most
    ended.set()
    watcher.join()


def largest(processes: list[psutil.Process]) -> int:
    sizes = [0]
    for process in processes:
        with suppress(psutil.Error):
            sizes.append(process.memory_info().rss)
    return max(sizes)


def test_of_a_log_beyond_the_cap_the_beginning_is_kept(make_site: MakeSite, balanced: Callable[[Row], None]) -> None:
    cap = 200_000
    site = make_site(EDGECONTROL_LOG_CAP_BYTES=str(cap))
    break_the_way_of_logs(site)
    site.machine("edge-1").start()
    specs = [{"text": {"bytes": size, "seed": SEED}} for size in (cap - 1, cap, cap + 1, 1 * MB)]
    failing = {"text": {"bytes": 1 * MB, "seed": SEED}, "code": 1}
    tasks = [*site.queue(*specs), *site.queue(failing, expected="failed")]
    site.settle(seconds=120)
    somebody = Somebody(site)
    for task in tasks:
        beyond = len(kept(site, task)) > cap
        for place, shown in somebody.sees(task).items():
            assert ("200,000 bytes; the rest is not kept" in shown) is beyond, (place, shown[-2000:])
    balanced(balance(site, case="11 logs beyond the cap", log_cap=cap))


@pytest.mark.parametrize("status", [503, 403])
def test_logs_that_nobody_takes_cost_no_outcome_and_arrive_when_somebody_does(
    site: FaultSite, balanced: Callable[[Row], None], measured: Callable[[str], None], status: int
) -> None:
    site.way_in.add(Fault.REFUSE, "/logs/", status=status)
    machine = site.machine("edge-1", concurrency=8)
    machine.start()
    go = site.folder / "go"
    (runs,) = site.queue({"until": str(go), "bytes": 3000})
    tasks = [runs, *site.queue(*[{"bytes": 3000, "seconds": 0.2}] * 10)]
    tasks += site.queue({"bytes": 3000, "code": 1}, expected="failed")
    somebody, why = Somebody(site), f"answers {status}"
    site.until(lambda: why in somebody.sees(runs)["API"], seconds=60)
    assert all(why in shown for shown in somebody.sees(runs).values()), "of a log that runs"
    go.touch()
    # Told to Airflow, all of them, while no log gets through.
    site.until(lambda: not site.airflow.unfinished(), seconds=60)
    site.until(lambda: not site.rows("SELECT 1 FROM edgecontrol.job WHERE told_at IS NULL"), seconds=60)
    reported = max(
        row.seconds
        for row in site.rows(
            "SELECT extract(epoch FROM told_at - started_at)::float AS seconds FROM edgecontrol.job WHERE id <> %s",
            job_id(runs),
        )
    )
    measured(
        f"case 11: every log answered {status}: a job of 0.2 s is known to have ended {reported:.1f} s after its start"
    )
    for task in tasks:
        assert task.state == task.expected
        for place, shown in somebody.sees(task).items():
            assert why in shown, (place, shown[-2000:])
    machine.agent.kill()  # what waits on disk outlives the agent
    earlier = machine.agent
    machine.start()
    site.breakages += 1
    time.sleep(5)
    began = time.monotonic()
    site.way_in.heal()
    site.settle(seconds=200)
    recovery = time.monotonic() - began
    for task in tasks:
        for place, shown in somebody.sees(task).items():
            assert why not in shown, (place, shown[-2000:])
    for agent in (earlier, machine.agent):
        # Each of the two ran less than a minute or two.
        assert len(re.findall(why, agent.stderr)) <= 3, agent.stderr
        assert "do not get through" in agent.stderr
    balanced(balance(site, case=f"11 every log answered {status} for the whole run", recovery_seconds=recovery))
