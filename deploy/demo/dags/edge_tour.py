"""A tour of what people run on edge machines, in one DAG.

A machine in a plant reads its sensors, sums them up and reports. Nothing in here knows EdgeControl: `queue`
alone decides which machine runs a task, so a DAG moves to the edge by naming a queue. It reads the Variable
`plant_limits` and the Connection `plant_gateway`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

from airflow.configuration import AIRFLOW_HOME
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import Connection, TriggerRule, Variable, dag, get_current_context, setup, task, teardown

SENSORS = 20


def check_disk() -> float:
    """Return the free space in gigabytes; whatever a callable returns is its XCom."""
    free = round(shutil.disk_usage("/").free / 1e9, 1)
    print(f"{free} GB are free")
    return free


@dag(
    schedule=None,
    catchup=False,
    tags=["edgecontrol", "example"],
    # Machines that serve this queue may take these tasks; a task can name another.
    default_args={"queue": "plant"},
    doc_md=__doc__,
)
def edge_tour():
    # Setup and teardown: the folder goes away again, whatever became of the tasks between them.
    @setup
    @task
    def make_folder() -> str:
        return tempfile.mkdtemp(prefix="edge_tour-")

    @teardown
    @task.bash
    def remove_folder(path: str) -> str:
        return f"rm -r '{path}' && echo 'removed {path}'"

    # The classic operators.
    describe_machine = BashOperator(task_id="describe_machine", bash_command="uname -srm; cat /proc/loadavg")
    disk = PythonOperator(task_id="check_disk", python_callable=check_disk)

    # A Variable and a Connection: the task asks Airflow for them, the machine stores neither.
    @task
    def read_settings() -> dict:
        limits = Variable.get("plant_limits", deserialize_json=True)
        gateway = Connection.get("plant_gateway")
        print(f"The gateway is {gateway.host}:{gateway.port}, the limits are {limits}")
        return {"gateway": gateway.host, **limits}

    # One task for each sensor (dynamic task mapping); all twenty may run at the same time.
    @task
    def read_sensor(sensor: int, settings: dict) -> float:
        value = 20 + sensor * 7 % 10
        print(f"Sensor {sensor} behind {settings['gateway']} reads {value} °C")
        return value

    # All results come in as one list, and the summary goes into the folder of this run.
    @task
    def summarise(readings: list[float], path: str) -> dict:
        summary = {"mean": sum(readings) / len(readings), "highest": max(readings)}
        Path(path, "summary.json").write_text(json.dumps(summary))
        print(f"{len(readings)} readings: {summary}")
        return summary

    # Heavy work takes two of the machine's slots.
    @task(pool_slots=2)
    def fit_model(path: str) -> int:
        size = Path(path, "summary.json").stat().st_size
        print(f"Fitted a model on {size} bytes with two slots")
        return size

    # A branch: one of the two reports runs, the other is skipped.
    @task.branch
    def choose_report(summary: dict, settings: dict) -> str:
        return "report_alarm" if summary["highest"] > settings["alarm_above"] else "report_calm"

    @task.bash
    def report_calm(summary: dict) -> str:
        return f"echo 'All calm: {summary['mean']:.1f} °C on average'"

    @task.bash
    def report_alarm(summary: dict) -> str:
        return f"echo 'Alarm: {summary['highest']:.1f} °C'"

    # A Python environment of its own, kept on the machine for the next run. Packages named in `requirements` are
    # installed into it.
    @task.virtualenv(requirements=[], system_site_packages=False, venv_cache_path=f"{AIRFLOW_HOME}/venvs")
    def estimate(summary: dict) -> float:
        import statistics
        import sys

        print(f"Estimating in {sys.prefix}")
        return statistics.NormalDist(summary["mean"], 2).cdf(summary["highest"])

    # Lines fail out there: the first try ends badly, and Airflow hands the task out once more.
    @task(retries=2, retry_delay=timedelta(seconds=1))
    def call_gateway(settings: dict) -> str:
        try_number = get_current_context()["ti"].try_number
        if try_number == 1:
            raise ConnectionError(f"{settings['gateway']} did not answer")
        return f"answered at try {try_number}"

    # A deferred task holds no slot while it waits: the triggerer watches the clock, then the task resumes.
    wait_a_moment = DateTimeSensorAsync(
        task_id="wait_a_moment", target_time="{{ (ti.start_date + macros.timedelta(seconds=3)).isoformat() }}"
    )

    # The branch left one report out, so this asks for one success only.
    @task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    def say_goodbye(answer: str, estimate: float, free: float) -> None:
        print(f"The gateway {answer}; {estimate:.0%} of all readings are lower; {free} GB are free")

    folder = make_folder()
    settings = read_settings()
    readings = read_sensor.partial(settings=settings).expand(sensor=list(range(SENSORS)))
    summary = summarise(readings, folder)
    reports = [report_calm(summary), report_alarm(summary)]
    goodbye = say_goodbye(call_gateway(settings), estimate(summary), disk.output)

    describe_machine >> disk
    summary >> fit_model(folder) >> goodbye
    choose_report(summary, settings) >> reports >> goodbye
    wait_a_moment >> goodbye
    folder >> [describe_machine, settings, wait_a_moment]
    goodbye >> remove_folder(folder)


edge_tour()
