"""How parameters are read, and that each operation is told what it was given and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.utils import timezone as django_timezone

from jobs_app import operations as jobs_operations
from tests.integration.people import OPS
from workers_app import operations
from workers_app.operations import InvalidParameter, Kind, Operation, Parameter
from workers_app.outcomes import Outcome

EVERY = (*operations.WORKERS, *operations.ENROLMENTS, *jobs_operations.QUEUES, *jobs_operations.JOBS)


def echo(ids: Any, *, by: Any, **values: Any) -> Outcome:
    return Outcome(done=[f"{ids} {by.name} {values}"])


def operation(*parameters: Parameter) -> Operation:
    return Operation(
        name="say", label="Say", help="Says it.", icon="x", permission="x.y", call=echo, parameters=parameters
    )


def parameter(kind: Kind, *, required: bool = False) -> Parameter:
    return Parameter(name=kind.value, kind=kind, help="", required=required)


class TestComment:
    @pytest.mark.parametrize(
        ("given", "read"),
        [(None, ""), ("", ""), ("  disk  ", "disk"), ("two\nlines", "two\nlines"), ("\u00fc" * 1000, "\u00fc" * 1000)],
    )
    def test_it_is_text_without_blanks_around_it(self, given: Any, read: str) -> None:
        assert operations.comment(given) == read

    @pytest.mark.parametrize("given", ["x" * 1001, "nul \0", "half \ud800", 5, ["disk"], {"a": 1}, True, 0, False, []])
    def test_what_is_too_long_cannot_be_stored_or_is_no_text_is_refused(self, given: Any) -> None:
        with pytest.raises(InvalidParameter):
            operations.comment(given)


class TestQueues:
    @pytest.mark.parametrize(
        ("given", "read"),
        [
            (None, None),
            ("", None),
            (" , ,", None),
            ([], None),
            ([" "], None),
            ("a", ["a"]),
            (" b, a ,b,", ["b", "a"]),
            (["b", " a ", "b"], ["b", "a"]),
            (["a,b", "x/y", "\u00dc 7 \U0001f98a"], ["a,b", "x/y", "\u00dc 7 \U0001f98a"]),
            ("q" * 256, ["q" * 256]),
        ],
    )
    def test_they_are_names_in_their_order_each_once(self, given: Any, read: list[str] | None) -> None:
        assert operations.queues(given) == read

    @pytest.mark.parametrize(
        "given", ["a\nb", ["a\0"], "\ud800", "q" * 257, 5, [5], {"a": 1}, [["a"]], [None], True, False, 0]
    )
    def test_what_is_no_name_of_a_queue_is_refused(self, given: Any) -> None:
        with pytest.raises(InvalidParameter):
            operations.queues(given)


class TestSlots:
    @pytest.mark.parametrize(
        ("given", "read"), [(None, None), ("", None), ("1", 1), (8, 8), ("10000", 10_000), ("007", 7)]
    )
    def test_they_are_whole_numbers(self, given: Any, read: int | None) -> None:
        assert operations.slots(given) == read

    @pytest.mark.parametrize("given", [0, "0", -1, 10_001, "1.5", 8.0, "many", True, False, [], [3], {}, "9" * 5000])
    def test_anything_else_is_refused(self, given: Any) -> None:
        with pytest.raises(InvalidParameter):
            operations.slots(given)


class TestMoment:
    @pytest.mark.parametrize(
        ("given", "minutes"),
        [
            ("90m", 90),
            ("90 min", 90),
            ("2h", 120),
            ("1d", 1440),
            ("1d 2h 3m", 1563),
            ("1D2H3M", 1563),
            (" 5m ", 5),
            ("365d", 365 * 1440),
        ],
    )
    def test_a_span_counts_from_now(self, given: str, minutes: int) -> None:
        before, read, after = django_timezone.now(), operations.moment(given), django_timezone.now()
        assert read is not None
        assert before <= read - timedelta(minutes=minutes) <= after

    def test_a_moment_is_in_utc_unless_it_says(self) -> None:
        tomorrow = (django_timezone.now() + timedelta(days=1)).replace(microsecond=0)
        text = tomorrow.strftime("%Y-%m-%d %H:%M:%S")
        assert operations.moment(text) == tomorrow
        assert operations.moment(text.replace(" ", "T") + "Z") == tomorrow
        assert operations.moment(text + "+02:00") == tomorrow - timedelta(hours=2)
        assert operations.moment(tomorrow.replace(tzinfo=None)) == tomorrow
        assert operations.moment(tomorrow.astimezone(timezone(timedelta(hours=5)))) == tomorrow

    @pytest.mark.parametrize("given", [None, "", "  "])
    def test_nothing_is_no_moment(self, given: Any) -> None:
        assert operations.moment(given) is None

    @pytest.mark.parametrize("given", ["0m", "2001-01-01", datetime(2001, 1, 1, tzinfo=UTC)])
    def test_the_past_is_refused(self, given: Any) -> None:
        with pytest.raises(InvalidParameter, match="past"):
            operations.moment(given)

    @pytest.mark.parametrize("given", ["400d", "9999-12-31T23:59:59-23:59"])
    def test_what_no_operator_means_is_refused_before_it_becomes_a_row_that_nobody_can_read(self, given: str) -> None:
        with pytest.raises(InvalidParameter, match="year"):
            operations.moment(given)

    @pytest.mark.parametrize("given", ["soon", "m", "90", "1h 1d", "-5m", "5 m 3", "2026-13-01", 90, True, [], ["2h"]])
    def test_anything_else_is_refused_with_what_would_do(self, given: Any) -> None:
        with pytest.raises(InvalidParameter, match="90m or 2h"):
            operations.moment(given)


class TestOperation:
    def test_it_is_called_with_what_was_read(self) -> None:
        say = operation(parameter(Kind.QUEUES), parameter(Kind.SLOTS), parameter(Kind.COMMENT))
        outcome = say.run([1, 2], by=OPS, queues="a,b", slots="3")
        assert outcome.done == ["[1, 2] ops {'queues': ['a', 'b'], 'slots': 3, 'comment': ''}"]

    @pytest.mark.parametrize("kind", Kind)
    def test_a_parameter_that_is_needed_is_asked_for_by_its_name(self, kind: Kind) -> None:
        say = operation(parameter(kind, required=True))
        for given in ({}, {kind.value: None}, {kind.value: " " if kind is not Kind.SLOTS else ""}):
            with pytest.raises(InvalidParameter, match=f"^{kind}: is needed$"):
                say.run([1], by=OPS, **given)

    def test_what_it_does_not_know_is_refused_by_name_and_nothing_is_done(self) -> None:
        with pytest.raises(InvalidParameter, match="coment: say has no such parameter"):
            operation(parameter(Kind.COMMENT)).run([1], by=OPS, coment="disk")

    def test_what_cannot_be_read_is_refused_by_name(self) -> None:
        with pytest.raises(InvalidParameter, match="slots: must be a whole number"):
            operation(parameter(Kind.SLOTS)).run([1], by=OPS, slots="many")

    def test_each_operation_has_a_name_of_its_own_and_words_for_people(self) -> None:
        assert len({each.name for each in EVERY}) == len(EVERY)
        for each in EVERY:
            assert each.name.isidentifier()
            assert each.label
            assert each.help.endswith(".")
            assert each.permission.split(".")[0] in ("workers_app", "jobs_app")
