"""Both sides of each seam spell it alike.

The tables are compared here; that the REST API and the agent understand each other is seen by
running both, in `tests/acceptance/test_programs_together.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import tomllib
from pathlib import Path
from uuid import UUID

from django.db.models import NOT_PROVIDED
from drf_spectacular.generators import SchemaGenerator

import agent
import edgecontrol
from agent import client
from agent.client import ORDERS, REGISTERED
from agent.orders import Orders
from agent.wishes import ACTIVE, AUTOMATIC, MACHINE, MAINTENANCE, OPERATOR, Wish
from airflow_bridge import config as bridge_config
from airflow_bridge import fleet, store
from airflow_bridge import states as bridge_states
from edgecontrol.environment import Environment
from jobs_app import agent_api, agent_jobs_api, states
from jobs_app.models import Job, LogChunk, Queue
from jobs_app.notices import JOBS_CHANNEL
from workers_app import versions
from workers_app.models import Worker
from workers_app.notices import WORKER_CHANNEL
from workers_app.states import GONE, RequestedBy, Shown

STORE = Path(store.__file__).read_text() + Path(fleet.__file__).read_text()


def columns(model: type) -> set[str]:
    return {field.column for field in model._meta.local_concrete_fields}  # type: ignore[attr-defined]


def test_both_writers_of_jobs_know_the_same_states() -> None:
    assert {state.value for state in bridge_states.JobState} == {state.value for state in states.JobState}
    assert set(bridge_states.FINAL) == {state.value for state in states.FINAL}
    assert set(bridge_states.HELD) == {state.value for state in states.HELD}


def test_the_bridge_writes_every_column_that_has_no_default_and_only_columns_that_exist() -> None:
    # The moment is the database's.
    written = {field.name for field in dataclasses.fields(store.NewJob)} - {"token_seconds"} | {"token_until"}
    assert "now() + make_interval(secs => token_seconds)" in STORE
    required = {
        field.column for field in Job._meta.local_concrete_fields if not field.null and field.db_default is NOT_PROVIDED
    }
    assert required <= written <= columns(Job)


def test_the_bridge_names_only_tables_and_columns_that_exist() -> None:
    tables = {model._meta.db_table: columns(model) for model in (Job, LogChunk, Queue, Worker)}
    assert set(re.findall(r"edgecontrol\.(\w+)", STORE)) <= set(tables)
    qualified = set(re.findall(r"\b(job|older|log_chunk|worker)\.(\w+)", STORE))
    assert qualified
    unknown = {
        f"{table}.{column}" for table, column in qualified if column not in tables["job" if table == "older" else table]
    }
    assert not unknown


def test_notifications_have_the_same_channels_and_payloads_on_both_sides() -> None:
    assert set(re.findall(r"pg_notify\('(\w+)'", STORE)) == {JOBS_CHANNEL, WORKER_CHANNEL}
    hub = Path(edgecontrol.__file__).with_name("hub.py").read_text()
    heard = set(re.findall(r'said\["(\w+)"\]', hub))
    said = set(re.findall(r"'(\w+)', (?:id|queue|team_name|slots|jobs)\b", STORE))
    assert said == {"worker", "queue", "team", "slots", "count"}
    # `queues` is the control plane's own word, when an operator has changed a queue.
    assert heard == said | {"queues"}


def test_the_figures_of_a_fleet_know_the_states_of_workers() -> None:
    assert set(fleet.GONE) == {state.value for state in GONE}
    assert set(fleet.MAINTENANCE) < {state.value for state in Shown}


def test_one_patience_has_one_default() -> None:
    assert Environment.model_fields["outage_patience_seconds"].default == bridge_config.DEFAULT_OUTAGE_PATIENCE


def test_the_agent_speaks_the_protocol_that_the_control_plane_asks_for() -> None:
    assert agent.PROTOCOL == versions.PROTOCOL >= versions.OLDEST_PROTOCOL


def test_the_agent_obeys_the_verdicts_that_the_control_plane_gives() -> None:
    obeyed = {}
    for verdict in versions.Verdict:
        orders = Orders(concurrency=1)
        orders.apply({"version": dataclasses.asdict(versions.Judgement(verdict, "why"))})
        obeyed[verdict.value] = (orders.verdict, orders.draining)
    assert obeyed == {"ok": ("ok", False), "outdated": ("outdated", False), "refused": ("refused", True)}


def test_the_control_plane_understands_the_wishes_of_a_machine_and_answers_what_the_agent_reads() -> None:
    for requested, by in ((MAINTENANCE, MACHINE), (ACTIVE, AUTOMATIC)):
        wish = Wish(requested=requested, comment="", by=by).told()
        assert agent_api.WishSerializer(data=wish).run_validation(wish)["id"] == UUID(wish["id"])
    read = set(re.findall(r"requested_by\w*|wish_taken", Path(agent.__file__).with_name("orders.py").read_text()))
    assert read <= set(agent_api.OrdersSerializer().fields)
    assert {OPERATOR, MACHINE, AUTOMATIC} == {by.value for by in RequestedBy}


def test_the_control_plane_reads_all_that_a_claim_of_the_agent_says() -> None:
    source = inspect.getsource(client.Client.claim)
    said = set(re.findall(r'"(\w+)":|body\["(\w+)"\]', source))
    assert {"only_queues", "without_queues"} < {name for pair in said for name in pair if name}
    assert {name for pair in said for name in pair if name} == set(agent_jobs_api.ClaimSerializer().fields)


def test_tasks_run_on_every_airflow_that_the_bridge_is_for() -> None:
    project = tomllib.loads((Path(agent.__file__).parents[1] / "pyproject.toml").read_text())
    assert agent.AIRFLOW in project["project"]["optional-dependencies"]["airflow"]


def test_an_answer_has_all_by_which_the_agent_knows_a_control_plane() -> None:
    assert set(ORDERS) <= set(agent_api.OrdersSerializer().fields)
    assert set(REGISTERED) <= set(agent_api.RegisteredSerializer().fields)


def test_the_api_offers_the_endpoints_that_the_agent_calls() -> None:
    client = Path(agent.__file__).with_name("client.py").read_text()
    called = {
        re.sub(r"\{[^}]*\}", "{}", path) for path in re.findall(r'f?"((?:workers|jobs|logs)/[\w/{}]+|health)"', client)
    }
    schema = json.loads(json.dumps(SchemaGenerator().get_schema(public=True)))
    offered = {
        re.sub(r"\{[^}]*\}", "{}", path.removeprefix("/api/v1/edge/"))
        for path in schema["paths"]
        if path.startswith("/api/v1/edge/")
    }
    assert called == offered
