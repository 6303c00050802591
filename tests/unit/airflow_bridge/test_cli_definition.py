"""What Airflow's command line is told of EdgeControl's, at each of its calls."""

from __future__ import annotations

import subprocess
import sys

import pytest
from airflow.cli.cli_parser import get_parser

from airflow_bridge.cli.definition import get_commands

(GROUP,) = get_commands()


def test_it_costs_nothing_that_a_command_needs_only_when_it_is_called() -> None:
    loaded = "{name for name in sys.modules if name.startswith(('airflow_bridge', 'psycopg', 'django'))}"
    code = (
        f"import sys\nfrom airflow_bridge.cli.definition import get_commands\nget_commands()\nprint(sorted({loaded}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(
        [
            "airflow_bridge",
            "airflow_bridge.cli",
            "airflow_bridge.cli.definition",
            "airflow_bridge.cli.table",
            "airflow_bridge.provider",
        ]
    )


@pytest.mark.parametrize("name", [command.name for command in GROUP.subcommands])
def test_the_help_of_every_command_can_be_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        get_parser().parse_args(["edgecontrol", name, "--help"])
    assert ending.value.code == 0
    # Brackets and all.
    assert "[edgecontrol] control_plane_url" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("typed", "spelt"), [("maintenance_mode", "maintenance mode"), ("maintenance-mode", "maintenance mode")]
)
def test_a_state_needs_no_quotes(typed: str, spelt: str) -> None:
    assert get_parser().parse_args(["edgecontrol", "list-workers", "--state", typed]).state == [spelt]


@pytest.mark.parametrize("given", [["list-workers", "--state", "sleepy"], ["list-workers", "--limit", "0"]])
def test_what_no_command_takes_is_wrong_usage(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        get_parser().parse_args(["edgecontrol", *given])
    assert ending.value.code == 2
