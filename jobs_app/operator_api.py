"""The operator API of jobs and queues, and what workers hold. Nothing is decided here; see `operations` and `logs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Count, QuerySet, Sum
from django.http import Http404, HttpResponse
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.request import Request
from rest_framework.reverse import reverse

from jobs_app import figures, listing, logs, operations, waiting
from jobs_app.listing import Wanted
from jobs_app.models import Job, LogChunk, Queue
from jobs_app.states import FINAL, HELD, JobState
from workers_app import operator_api as workers
from workers_app.api_lists import (
    Branch,
    Keyset,
    ListFilter,
    MomentFilter,
    PatternFilter,
    Search,
    Several,
    SeveralFilter,
    YesNoFilter,
    whole_number,
)
from workers_app.models import Worker
from workers_app.operation_views import OperationViewSet

#: As much of a log as one request gets.
LOG_PART_BYTES = 1024 * 1024
#: Filters that no open job can pass.
_ONLY_OF_FINAL = ("finished_after", "finished_before")


class WorkerViewSet(workers.WorkerViewSet):
    """Worker hosts: the edge machines, what is wanted of them, and what they say."""

    def held(self, worker_ids: Sequence[int]) -> Mapping[int, tuple[int, int]]:
        rows = Job.objects.filter(state__in=sorted(HELD), worker__in=worker_ids).order_by().values_list("worker")
        return {pk: (jobs, slots) for pk, jobs, slots in rows.annotate(jobs=Count("pk"), sum=Sum("slots"))}


class LogSerializer(serializers.Serializer[Any]):
    attempt = serializers.IntegerField(help_text="0: what Airflow's own side wrote.")
    url = serializers.URLField()


class JobSerializer(serializers.ModelSerializer[Job]):
    team = serializers.CharField(source="team_name")
    worker = workers.WorkerNameSerializer(allow_null=True, help_text="Who holds it, or held it last.")
    waits_because = serializers.SerializerMethodField(help_text="Only of a queued job: why nobody has taken it.")
    logs = serializers.SerializerMethodField(help_text="One of each attempt.")
    log_missing = serializers.SerializerMethodField(
        help_text="Why what is stored of its newest log is not all of it; empty when nothing is amiss."
    )

    class Meta:
        model = Job
        fields = [
            "id",
            "kind",
            "dag_id",
            "task_id",
            "run_id",
            "map_index",
            "try_number",
            "airflow_id",
            "queue",
            "slots",
            "priority",
            "team",
            "state",
            "waits_because",
            "attempt",
            "worker",
            "queued_at",
            "claimed_at",
            "started_at",
            "finished_at",
            "exit_code",
            "airflow_outcome",
            "reason",
            "unconfirmed_claims",
            "missed_heartbeats",
            "claim_id",
            "log_path",
            "log_size",
            "log_final_size",
            "log_sha256",
            "log_missing",
            "logs",
            "dispatcher",
            "told_at",
        ]

    def get_waits_because(self, job: Job) -> str | None:
        reason: str | None = self.context["because"].get(job.pk)
        return reason

    def get_log_missing(self, job: Job) -> str:
        return logs.missing(job)

    @extend_schema_field(LogSerializer(many=True))
    def get_logs(self, job: Job) -> list[dict[str, Any]]:
        first = 0 if job.pk in self.context["with_airflows_part"] else 1
        request = self.context["request"]
        name = f"{request.resolver_match.namespace}:job-log"
        return [
            {"attempt": attempt, "url": reverse(name, [job.pk, attempt], request=request)}
            for attempt in range(first, job.attempt + 1)
        ]


class JobFilter(ListFilter):
    state = SeveralFilter(choices=list(JobState), help_text="One or more states.")
    queue = filters.CharFilter(help_text="Those of this queue.")
    worker = filters.CharFilter(method="of_worker", help_text="Those that the worker of this name holds or held.")
    dag_id = filters.CharFilter(method="of_dag", help_text="Those of this DAG; sales-* for all that begin like this.")
    run_id = filters.CharFilter(help_text="Those of this DAG run.")
    task_id = filters.CharFilter(help_text="Those of this task.")
    team = filters.CharFilter(field_name="team_name", help_text="Those of this team.")
    queued_after = MomentFilter(field_name="queued_at", lookup_expr="gte", help_text="Queued from this moment on.")
    queued_before = MomentFilter(field_name="queued_at", lookup_expr="lt", help_text="Queued before this moment.")
    finished_after = MomentFilter(
        field_name="finished_at", lookup_expr="gte", help_text="Finished from this moment on."
    )
    finished_before = MomentFilter(field_name="finished_at", lookup_expr="lt", help_text="Finished before this moment.")

    def of_worker(self, queryset: QuerySet[Job], name: str, value: str) -> QuerySet[Job]:
        pk = Worker.objects.filter(name=value).values_list("pk", flat=True).first()
        return queryset.none() if pk is None else queryset.filter(worker=pk)

    def of_dag(self, queryset: QuerySet[Job], name: str, value: str) -> QuerySet[Job]:
        beginning, star, rest = value.partition("*")
        if rest:
            raise ValidationError({"dag_id": "A * stands only at the end."})
        return queryset.filter(**{"dag_id__startswith" if star else "dag_id": beginning})


class JobSearch(Search):
    """A text is looked for where an index begins with it, in `JobViewSet.branches`; here it is only checked."""

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> QuerySet[Any]:
        self.get_search_terms(request)
        return queryset


class AnyAnswer(BaseContentNegotiation):
    """Whatever the caller says that it accepts: the answer has one form."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class JobViewSet(OperationViewSet):
    """Jobs: each one queueing of one workload of Airflow. Only Airflow makes them."""

    model = Job
    operations = operations.JOBS
    named_by = "id"
    nobody = "no such job"
    names_help = "Ids of jobs."
    names_example = ("01941f29-7c00-7a8c-8d1a-2c5b0f1e6a77", "01941f29-7c00-7b3e-9a57-6f0c4d2e8b11")
    lookup_value_regex = "[0-9a-fA-F-]{32,36}"
    pagination_class = Keyset  # type: ignore[assignment]
    serializer_class = JobSerializer
    filterset_class = JobFilter
    filter_backends = [filters.DjangoFilterBackend, JobSearch, OperationViewSet.filter_backends[-1]]
    search_fields = ("dag_id", "run_id", "task_id")
    search_help = "A job's id, or how the id of its DAG, run or task begins."
    orderings: Mapping[str, str] = {"queued_at": "queued_at", "finished_at": "finished_at"}
    orderings_help = " By finished_at only jobs that have ended are listed."
    default_ordering = "-queued_at"

    def get_queryset(self) -> QuerySet[Job]:
        columns = [field.name for field in Job._meta.fields if field.name not in ("workload", "token")]
        return Job.objects.select_related("worker").only(*columns, "worker__name")

    def branches(self, queryset: QuerySet[Any]) -> Sequence[Branch]:
        """Apart what indexes of its own serve, as in `listing`: what waits, what is held, what is final."""
        asked = self.request.query_params
        states = {JobState(state) for state in Several().value_from_datadict(asked, {}, "state")} or set(JobState)
        if any(asked.get(name) for name in _ONLY_OF_FINAL) or asked.get("ordering", "").endswith("finished_at"):
            states &= FINAL
        wanted = Wanted(text=asked.get(JobSearch.search_param, "").strip())
        texts = wanted.texts()
        matching = queryset.filter(listing.any_of(texts.values()))
        waiting, held, final = states & {JobState.QUEUED}, states & HELD, states & FINAL
        found = [Branch(matching.filter(state__in=waiting))] if waiting else []
        if held:
            found.append(Branch(matching.filter(state__in=sorted(held)), fenced=True))
        if final:
            rest = queryset.filter(state__in=sorted(final))
            for name, text in texts.items():
                found.append(Branch(rest.filter(text), fenced=name not in wanted.common))
                # Whoever matches in two ways is in one branch.
                rest = rest.exclude(text) if name else rest
        return found

    def shown(self, rows: Sequence[Job]) -> Any:
        parts = LogChunk.objects.filter(job_id__in=[job.pk for job in rows], attempt=0, offset=0)
        with_part = set(parts.values_list("job_id", flat=True))
        return self.serialized(rows, because=waiting.because(rows), with_airflows_part=with_part)

    def ids(self, names: Sequence[str]) -> Mapping[str, UUID]:
        """Whatever is no id is nobody's."""
        asked = {}
        for name in names:
            with suppress(ValueError):
                asked[name] = UUID(name)
        known = set(Job.objects.filter(pk__in=asked.values()).values_list("pk", flat=True))
        return {name: pk for name, pk in asked.items() if pk in known}

    @extend_schema(
        summary="Read a log",
        description="A part of the log of one attempt, as bytes; attempt 0 is what Airflow's own side wrote. "
        "Go on with `offset` plus the number of bytes received, until that is `Log-Size` and `Log-Complete` is true.",
        parameters=[
            OpenApiParameter("offset", OpenApiTypes.INT64, description="The first byte; default: 0."),
            OpenApiParameter(
                "limit", OpenApiTypes.INT32, description=f"Bytes, {LOG_PART_BYTES} at most, which is the default."
            ),
            OpenApiParameter(
                "Log-Size",
                OpenApiTypes.INT64,
                OpenApiParameter.HEADER,
                description="Bytes that are stored.",
                response=[200],
            ),
            OpenApiParameter(
                "Log-Complete",
                OpenApiTypes.BOOL,
                OpenApiParameter.HEADER,
                description="`true`: nothing more will come.",
                response=[200],
            ),
        ],
        responses={(200, "text/plain"): OpenApiResponse(OpenApiTypes.BINARY)},
        filters=False,
    )
    @action(
        detail=True,
        methods=["get"],
        url_path="log/(?P<attempt>[0-9]{1,9})",
        url_name="log",
        name="Log",
        takes=("offset", "limit"),
        content_negotiation_class=AnyAnswer,
        pagination_class=None,
    )
    def log(self, request: Request, pk: str, attempt: str) -> HttpResponse:
        job, number = self.found(Job.objects.defer("workload", "token")), int(attempt)
        offset = whole_number(request, "offset", default=0)
        limit = whole_number(request, "limit", default=LOG_PART_BYTES, least=1, most=LOG_PART_BYTES)
        extent = logs.extent(job, attempt=number)
        if number > job.attempt or (number == 0 and not extent.size):
            raise Http404
        part = bytearray()
        for chunk in logs.read(job_id=job.pk, attempt=number, offset=offset):
            part += chunk[: limit - len(part)]
            if len(part) == limit:
                break
        return HttpResponse(
            bytes(part),
            # As text and never as a page: it comes from the edge.
            content_type="text/plain; charset=utf-8",
            headers={
                "X-Content-Type-Options": "nosniff",
                # Bytes may have come since it was measured.
                "Log-Size": str(max(extent.size, offset + len(part) if part else 0)),
                "Log-Complete": str(extent.complete).lower(),
            },
        )


class ServedSerializer(serializers.Serializer[Any]):
    """How many workers serve a queue."""

    there = serializers.IntegerField(source="workers", help_text="Neither offline nor silent.")
    taking = serializers.IntegerField(help_text="Of these, those that take jobs now.")


class QueueSerializer(serializers.ModelSerializer[Queue]):
    waiting = serializers.SerializerMethodField(
        help_text=f"Jobs that wait; {figures.MOST_COUNTED} means so many or more."
    )
    oldest_queued_at = serializers.SerializerMethodField(help_text="When the longest waiting job was queued.")
    held = serializers.SerializerMethodField(help_text="Jobs on workers.")
    held_slots = serializers.SerializerMethodField(help_text="The slots of these jobs; the limit is one of slots.")
    workers = serializers.SerializerMethodField()

    class Meta:
        model = Queue
        fields = [
            "name",
            "paused",
            "pause_comment",
            "paused_by",
            "paused_at",
            "concurrency_limit",
            "waiting",
            "oldest_queued_at",
            "held",
            "held_slots",
            "workers",
        ]

    def figures(self, queue: Queue) -> figures.Figures:
        found: figures.Figures = self.context["figures"][queue.name]
        return found

    def get_waiting(self, queue: Queue) -> int:
        return self.figures(queue).waiting

    def get_oldest_queued_at(self, queue: Queue) -> datetime | None:
        return self.figures(queue).oldest

    def get_held(self, queue: Queue) -> int:
        return self.figures(queue).held

    def get_held_slots(self, queue: Queue) -> int:
        return self.figures(queue).held_slots

    @extend_schema_field(ServedSerializer)
    def get_workers(self, queue: Queue) -> dict[str, int]:
        found = self.figures(queue)
        return {"there": found.workers, "taking": found.taking}


class QueueFilter(ListFilter):
    paused = YesNoFilter(help_text="Whether it is paused.")
    name = filters.CharFilter(help_text="The one of this name.")
    pattern = PatternFilter(field_name="name", help_text="Those with such a name, such as press-*.")


class QueueViewSet(OperationViewSet):
    """Queues: a row appears when a job or a worker first names one.

    A name stands in the address as it is, percent-encoded. A few names cannot stand there (`.`, `..`, one with two
    slashes side by side or at its end, or one that ends like the address of an operation): such a queue is found by
    the list's `name`, and operated in bulk.
    """

    model = Queue
    operations = operations.QUEUES
    nobody = "no such queue"
    names_help = "Names of queues."
    names_example = ("press", "laser")
    # Everything up to the last part of an address, slashes included.
    lookup_value_regex = ".+?"
    serializer_class = QueueSerializer
    filterset_class = QueueFilter
    search_fields = ("name", "pause_comment")
    orderings: Mapping[str, str] = {"name": "name", "paused_at": "paused_at", "concurrency_limit": "concurrency_limit"}
    default_ordering = "name"

    def get_queryset(self) -> QuerySet[Queue]:
        return Queue.objects.all()

    def shown(self, rows: Sequence[Queue]) -> Any:
        return self.serialized(rows, figures=figures.of_queues([queue.name for queue in rows]))
