"""What Prometheus reads, by a parser as strict as its own."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent import metrics

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (NaN|[+-]Inf|-?[0-9][0-9.e+-]*)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
UNESCAPED = {'\\"': '"', "\\\\": "\\", "\\n": "\n"}

Parsed = dict[str, dict[tuple[tuple[str, str], ...], float]]


def parse(text: str) -> Parsed:
    """Every sample by its name and labels. Fails for what is not the text format."""
    assert text.endswith("\n")
    found: Parsed = {}
    announced: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, about = line.split(" ", 3)
            assert name not in announced
            assert about
            announced[name] = ""
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert announced[name] == ""
            assert kind in {"gauge", "counter"}
            announced[name] = kind
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            name, labels, value = sample[1], sample[2] or "", float(sample[3])
            assert name == list(announced)[-1], "the samples of a metric stand together, below its type"
            assert "".join(pair[0] for pair in LABEL.finditer(labels)) == labels
            pairs = [
                (one[1], re.sub(r'\\["\\n]', lambda found: UNESCAPED[found[0]], one[2]))
                for one in LABEL.finditer(labels)
            ]
            key = tuple(sorted(pairs))
            assert key not in found.setdefault(name, {})
            found[name][key] = value
    assert all(announced.values())
    return found


def checked(text: str) -> Parsed:
    """Parsed, and checked by Prometheus' own tool where that is installed."""
    if promtool := shutil.which("promtool"):
        answer = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True)
        assert answer.returncode == 0, answer.stderr
    return parse(text)


def status(**more: Any) -> dict[str, Any]:
    return {
        "name": 'press "7"\n\\',
        "state": "running",
        "since_seconds": 12.5,
        "jobs": [{"state": "running"}, {"state": "running"}, {"state": "success"}],
        "slots": {"used": 3, "of": 8},
        "not_working": "",
        "versions": {
            "agent": "0.1.0",
            "airflow": "3.3.2",
            "protocol": 1,
            "server": "0.2.0",
            "verdict": "outdated",
            "text": "upgrade",
        },
        "last_contact_seconds": 0.5,
        "undelivered": {"reports": 1, "log_bytes": 4096},
        "sysinfo": {
            "cpu_percent": 25,
            "load_per_cpu": 0.5,
            "memory_used_percent": 50,
            "disk_used_percent": 75,
            "disk_free_gb": 1.5,
            "platform": "Linux",
        },
        **more,
    }


def single(parsed: Parsed, name: str) -> float:
    (value,) = parsed[f"edgecontrol_agent_{name}"].values()
    return value


def test_the_names_are_those_of_the_documentation() -> None:
    parsed = checked(metrics.render(status(), unhealthy="") + metrics.own({"belts": 2}))
    table = re.findall(r"^\| (`edgecontrol_agent_.*?) \|", (ROOT / "docs/agent-watching.md").read_text(), re.M)
    documented = re.findall(r"`(edgecontrol_agent_\w+)(?:\{(.*?)\})?`", "\n".join(table))
    assert {name: sorted(labels.split(", ")) if labels else [] for name, labels in documented} == {
        name: sorted({label for key in samples for label, _ in key}) for name, samples in parsed.items()
    }


def test_the_figures_are_those_of_the_status() -> None:
    parsed = checked(metrics.render(status(), unhealthy=""))
    figures = ("uptime_seconds", "healthy", "contact_age_seconds", "working", "slots", "slots_used", "cpu_ratio")
    assert [single(parsed, name) for name in figures] == [12.5, 1, 0.5, 1, 8, 3, 0.25]
    assert single(parsed, "disk_free_bytes") == 1.5 * (1 << 30)
    assert parsed["edgecontrol_agent_jobs"] == {
        (("state", "waiting"),): 0,
        (("state", "running"),): 2,
        (("state", "stopping"),): 0,
        (("state", "ended"),): 1,
    }
    assert parsed["edgecontrol_agent_state"][(("state", "running"),)] == 1
    assert sum(parsed["edgecontrol_agent_state"].values()) == 1
    assert parsed["edgecontrol_agent_version_verdict"][(("verdict", "outdated"),)] == 1
    ((labels, value),) = parsed["edgecontrol_agent_info"].items()
    assert value == 1
    assert dict(labels)["worker"] == 'press "7"\n\\'


@pytest.mark.parametrize(
    "said",
    [{"state": "maintenance"}, {"state": "idle", "not_working": "Airflow's API: no answer"}, {"state": "terminating"}],
)
def test_a_machine_that_takes_no_work_says_so(said: dict[str, Any]) -> None:
    assert single(checked(metrics.render(status(**said), unhealthy="no answer")), "working") == 0
    assert single(checked(metrics.render(status(**said), unhealthy="no answer")), "healthy") == 0


def test_what_is_not_known_is_left_out() -> None:
    parsed = checked(metrics.render(status(last_contact_seconds=None, sysinfo={"disk_free_gb": "much"}), unhealthy="x"))
    assert not {"contact_age_seconds", "cpu_ratio", "disk_free_bytes"} & {
        name.removeprefix("edgecontrol_agent_") for name in parsed
    }


def test_only_numbers_of_the_operators_own_function_are_told_whatever_they_are_called() -> None:
    figures = {'lens "a"\n': 1.5, "doors": 2, "open": True, "status_text": "well", "none": None, "list": [1]}
    samples = checked(metrics.own(figures))["edgecontrol_agent_extended_sysinfo"]
    assert samples == {(("figure", 'lens "a"\n'),): 1.5, (("figure", "doors"),): 2, (("figure", "open"),): 1}
    assert metrics.own({}) == ""


def test_every_number_can_be_read() -> None:
    assert [metrics.number(value) for value in (0.0, 1e300, -2.5, math.inf, -math.inf, math.nan)] == [
        "0",
        "1e+300",
        "-2.5",
        "+Inf",
        "-Inf",
        "NaN",
    ]
