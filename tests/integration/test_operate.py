"""docs/operate.md as somebody follows it: every command line and every request in it is given, in its order."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.models import User
from django.test import Client
from rest_framework.test import APIClient

from jobs_app.models import Job
from tests.integration.commandline import manage
from tests.integration.people import OPS
from workers_app import auth, personal_tokens
from workers_app.management.endings import Code
from workers_app.models import Change, Worker

Make = Callable[..., Any]
PAGE = Path(__file__).parents[2] / "docs/operate.md"
#: What an agent says and the state that it then has, by what is wanted of it.
OBEYS = {
    "active": {"reported": "idle", "state": "idle"},
    "maintenance": {"reported": "maintenance", "state": "maintenance mode"},
    "shutdown": {"reported": "offline", "state": "offline"},
}


def lines() -> Iterator[list[str]]:
    """The words of each line in a code block; continued lines are one."""
    for block in re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        yield from (shlex.split(line) for line in block.replace("\\\n", " ").splitlines())


@pytest.fixture
def site(make_worker: Make, make_job: Make) -> Callable[[list[str]], None]:
    """Bring about what the page takes for granted before a line of it."""
    (job_id,) = re.findall(r"revoke_job ([0-9a-f-]{36})", PAGE.read_text())

    def site(line: list[str]) -> None:
        if line[2:3] == ["create_enrolment_token"] and "--replace" not in line:
            Worker.objects.filter(name="press-7").delete()
            return
        for name, queues in (("press-7", ["floor", "paint"]), ("press-8", ["paint"])):
            if not Worker.objects.filter(name=name).exists():
                auth.issue(worker=make_worker(name, queues=queues), by=OPS)
        if not Job.objects.filter(pk=job_id).exists():
            make_job(pk=job_id, queue="floor")
            make_job(dag_id="sales", queue="floor")
            make_job(dag_id="sales", queue="floor")

    return site


def agents_obey() -> None:
    for wish, said in OBEYS.items():
        Worker.objects.filter(requested=wish).update(**said)


def test_every_command_line_does_what_the_page_says(site: Callable[[list[str]], None]) -> None:
    given = [line for line in lines() if line[:2] == ["python", "manage.py"]]
    for line in given:
        site(line)
        ran = manage(*line[2:], types="y\n", during_wait=agents_obey)
        assert ran.code == Code.DONE, f"{shlex.join(line)}\n{ran.err}"
        agents_obey()
    assert len(given) > 20


def test_every_request_is_answered(ops: Client, site: Callable[[list[str]], None]) -> None:
    _, token = personal_tokens.issue(user=User.objects.get(username="ops"), name="script", by=OPS)
    given = [line for line in lines() if line[:1] == ["curl"]]
    for line in given:
        site(line)
        # The token is never on a command line.
        assert line[1:3] == ["-H", "@token.header"]
        url = urlsplit(line[-1])
        client = APIClient(headers={"Authorization": f"Bearer {token}"})
        path = f"{url.path}?{url.query}"
        if "-d" in line:
            answer = client.post(path, json.loads(line[line.index("-d") + 1]), format="json")
            assert answer.json()["skipped"] == []
        else:
            answer = client.get(path)
            assert answer.json()["results"]
        assert answer.status_code == 200, answer.content
    assert Change.objects.filter(action="exit_maintenance", actor="ops").count() == 2
