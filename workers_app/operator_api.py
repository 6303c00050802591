"""The operator API of workers, enrolment tokens and the record of changes.

Nothing is decided here: it is done by the tables of operations, by `admission`, `enrolment` and `api_lists`.
What workers hold is known to `jobs_app`, which completes the list of workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import BooleanField, ExpressionWrapper, Q, QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema, extend_schema_view
from rest_framework import exceptions, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from workers_app import admission, agent_file, enrolment, operations, selection, versions
from workers_app.api_lists import (
    ConditionFilter,
    Keyset,
    ListFilter,
    MomentFilter,
    PatternFilter,
    SeveralFilter,
)
from workers_app.audit import Actor, ActorKind
from workers_app.models import Change, EnrolmentToken, Worker
from workers_app.operation_views import (
    CommentField,
    FleetViewSet,
    OperationViewSet,
    ParameterField,
    QueuesField,
    SlotsField,
    StrictSerializer,
)
from workers_app.operations import Kind, Parameter
from workers_app.states import GONE, Reported, RequestedBy, Shown


def server_version() -> str:
    return str(settings.SPECTACULAR_SETTINGS["VERSION"])


class SlotsSerializer(serializers.Serializer[Worker]):
    """How many slots a worker may fill."""

    effective = serializers.IntegerField(source="effective_concurrency", help_text="What counts.")
    used = serializers.SerializerMethodField(help_text="By the jobs that it holds.")
    agent = serializers.IntegerField(source="concurrency", help_text="What the agent says.")
    override = serializers.IntegerField(
        source="concurrency_override", allow_null=True, help_text="What an operator wants; null: the agent decides."
    )

    def get_used(self, worker: Worker) -> int:
        return int(self.context["held"].get(worker.pk, (0, 0))[1])


class WorkerSerializer(serializers.ModelSerializer[Worker]):
    comment = serializers.CharField(source="requested_comment")
    by = serializers.CharField(source="requested_by", help_text="A login, the user of a shell, or the machine's name.")
    by_kind = serializers.ChoiceField(
        source="requested_by_kind",
        choices=[by.value for by in RequestedBy],
        allow_blank=True,
        help_text="An operator, somebody at the machine, or automatic; empty when nobody has wished for anything.",
    )
    at = serializers.DateTimeField(source="requested_at", allow_null=True)
    until = serializers.DateTimeField(
        source="requested_until",
        allow_null=True,
        help_text="Maintenance: when it ends by itself. Shutdown: when jobs that still run are stopped.",
    )
    queues = serializers.ListField(
        source="effective_queues",
        child=serializers.CharField(),
        allow_null=True,
        help_text="What it serves; null: every queue, empty: none.",
    )
    agent_queues = serializers.ListField(
        source="queues", child=serializers.CharField(), allow_null=True, help_text="What its agent asks for; null: all."
    )
    team = serializers.CharField(source="team_name")
    slots = SlotsSerializer(source="*")
    jobs = serializers.SerializerMethodField(help_text="How many it holds now, confirmed or not.")
    outdated = serializers.SerializerMethodField(help_text="Its agent is of an earlier minor version than the server.")
    silent = serializers.SerializerMethodField(help_text="No word from it for too long, and no goodbye.")
    sysinfo = serializers.DictField(help_text="Figures of the host, as its agent tells them.")

    class Meta:
        model = Worker
        fields = [
            "id",
            "name",
            "state",
            "requested",
            "comment",
            "by",
            "by_kind",
            "at",
            "until",
            "reported",
            "queues",
            "agent_queues",
            "allowed_queues",
            "queues_override",
            "team",
            "slots",
            "jobs",
            "agent_version",
            "airflow_version",
            "outdated",
            "last_heartbeat",
            "silent",
            "first_online",
            "sysinfo",
        ]

    def get_jobs(self, worker: Worker) -> int:
        return int(self.context["held"].get(worker.pk, (0, 0))[0])

    def get_outdated(self, worker: Worker) -> bool:
        return versions.is_outdated(worker.agent_version, server_version())

    def get_silent(self, worker: Worker) -> bool:
        return worker.state in GONE and worker.reported != Reported.OFFLINE


def outdated() -> Q:
    return Q(agent_version__in=versions.outdated_versions(server_version()))


class WorkerFilter(ListFilter):
    state = SeveralFilter(choices=list(Shown), help_text="One or more states.")
    queue = filters.CharFilter(method="serving", help_text="Those that serve this queue, or every queue.")
    team = filters.CharFilter(field_name="team_name", help_text="Those of this team.")
    name = filters.CharFilter(help_text="The one of this name.")
    pattern = PatternFilter(field_name="name", help_text="Those with such a name, such as press-* or hall-?-[0-9]*.")
    version = filters.CharFilter(field_name="agent_version", help_text="Those whose agent has exactly this version.")
    silent = ConditionFilter(
        condition=selection.silent, help_text="Whether there was no word for too long, and no goodbye."
    )
    outdated = ConditionFilter(
        condition=outdated, help_text="Whether the agent is of an earlier minor version than the control plane."
    )

    def serving(self, queryset: QuerySet[Worker], name: str, value: str) -> QuerySet[Worker]:
        return queryset.filter(selection.serving(value))


class AllowedQueuesField(QueuesField):
    def to_internal_value(self, data: Any) -> Any:
        # Said and empty is none; only left out means every queue.
        return super().to_internal_value(data) or []


def _allowed_queues() -> ParameterField:
    help_text = "What its agent may ask for; null or left out: every queue."
    return AllowedQueuesField(Parameter(name="queues", kind=Kind.QUEUES, help=help_text))


def _resting() -> CommentField:
    help_text = "Why it shall rest at first, as by request_maintenance, perhaps empty; null or left out: it works."
    return CommentField(Parameter(name="maintenance", kind=Kind.COMMENT, help=help_text))


def _slots() -> SlotsField:
    help_text = "Slots that it may fill, as by set_worker_concurrency; null or left out: its agent decides."
    return SlotsField(Parameter(name="concurrency", kind=Kind.SLOTS, help=help_text))


class NewWorkerSerializer(StrictSerializer):
    """A worker host whose machine has not called yet."""

    name = serializers.CharField(trim_whitespace=False, help_text="How the machine is called.")
    queues = _allowed_queues()
    team = serializers.CharField(allow_blank=True, default="", help_text="Airflow team that it works for.")
    concurrency = _slots()
    maintenance = _resting()
    with_token = serializers.BooleanField(
        default=True, help_text="Make its token too; without one the machine has to be enrolled, with `replace`."
    )
    token_days = serializers.IntegerField(
        allow_null=True,
        default=None,
        min_value=1,
        max_value=99_999,
        help_text="Days until the token expires; null: it does not.",
    )


class MadeWorkerSerializer(WorkerSerializer):
    worker_token = serializers.CharField(
        allow_null=True, help_text="The token itself. It is shown this once and kept nowhere; null: none was asked for."
    )

    class Meta(WorkerSerializer.Meta):
        fields = [*WorkerSerializer.Meta.fields, "worker_token"]


@extend_schema_view(
    create=extend_schema(
        summary="Make a worker host",
        description="Make a worker host whose machine has not called yet, with its token, all of it or nothing. "
        f"The token needs the permission `{admission.TOKEN_PERMISSION}` too. Where the machine can be asked to enrol, "
        "an enrolment token is better: its credential then never leaves it.",
        request=NewWorkerSerializer,
        responses={201: MadeWorkerSerializer},
        examples=[
            OpenApiExample("request", {"name": "press-7", "queues": ["press"], "concurrency": 4}, request_only=True)
        ],
    )
)
class WorkerViewSet(OperationViewSet):
    """Worker hosts: the edge machines, what is wanted of them, and what they say."""

    model = Worker
    operations = operations.WORKERS
    needs: Mapping[str, str] = {"create": "workers_app.add_worker"}
    nobody = "no such worker"
    names_help = "Names of workers."
    names_example = ("press-7", "press-8")
    lookup_value_regex = "[0-9]{1,18}"
    serializer_class = WorkerSerializer
    filterset_class = WorkerFilter
    search_fields = ("name", "team_name", "requested_comment")
    orderings: Mapping[str, str] = {
        "name": "name",
        "state": "state",
        "team": "team_name",
        "version": "agent_version",
        "last_heartbeat": "last_heartbeat",
        "first_online": "first_online",
    }
    default_ordering = "name"

    def get_queryset(self) -> QuerySet[Worker]:
        return Worker.objects.all()

    def get_serializer_class(self) -> Any:
        return NewWorkerSerializer if self.action == "create" else super().get_serializer_class()

    def create(self, request: Request) -> Response:
        body = NewWorkerSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        said = body.validated_data
        newcomer = admission.Newcomer(
            name=said["name"],
            allowed_queues=said.get("queues"),
            team_name=said["team"],
            concurrency=said.get("concurrency"),
            maintenance=said.get("maintenance"),
        )
        by, text = Actor.of_request(request), None
        if said["with_token"]:
            if not request.user.has_perm(admission.TOKEN_PERMISSION):
                raise exceptions.PermissionDenied(f"A token needs {admission.TOKEN_PERMISSION}; see the groups.")
            days = said["token_days"]
            valid_for = None if days is None else timedelta(days=days)
            worker, text = admission.admit_with_token(newcomer, by=by, valid_for=valid_for)
        else:
            worker = admission.admit(newcomer, by=by)
        made: Any = worker
        made.worker_token = text
        return Response(
            dict(MadeWorkerSerializer(made, context={**self.get_serializer_context(), "held": {}}).data),
            status=status.HTTP_201_CREATED,
            headers={"Cache-Control": "no-store"},
        )

    def held(self, worker_ids: Sequence[int]) -> Mapping[int, tuple[int, int]]:
        """How many jobs and slots each of these workers holds; those that hold none may be left out."""
        raise NotImplementedError

    def shown(self, rows: Sequence[Worker]) -> Any:
        return self.serialized(rows, held=self.held([worker.pk for worker in rows]))


def _seconds(span: timedelta) -> int:
    return int(span.total_seconds())


class NewEnrolmentTokenSerializer(StrictSerializer):
    name = serializers.CharField(trim_whitespace=False, help_text="How the machine will be called.")
    queues = _allowed_queues()
    team = serializers.CharField(allow_blank=True, default="", help_text="Airflow team that it works for.")
    valid_for_seconds = serializers.IntegerField(
        default=_seconds(enrolment.VALID_FOR),
        min_value=_seconds(enrolment.SHORTEST),
        max_value=_seconds(enrolment.LONGEST),
        help_text="How long the token can be used.",
    )
    replace = serializers.BooleanField(
        default=False,
        help_text="The machine exists and was set up anew: it keeps its queues and team, its older tokens end.",
    )


class WorkerNameSerializer(serializers.ModelSerializer[Worker]):
    class Meta:
        model = Worker
        fields = ["id", "name"]


class EnrolmentTokenSerializer(serializers.ModelSerializer[EnrolmentToken]):
    queues = serializers.ListField(
        source="allowed_queues", child=serializers.CharField(), allow_null=True, help_text="null: every queue."
    )
    team = serializers.CharField(source="team_name")
    usable = serializers.BooleanField(help_text="A machine can still enrol with it.")
    worker = WorkerNameSerializer(allow_null=True, help_text="What became of it.")

    class Meta:
        model = EnrolmentToken
        fields = [
            "id",
            "key",
            "name",
            "queues",
            "team",
            "replace",
            "usable",
            "created_by",
            "created_at",
            "expires_at",
            "used_at",
            "revoked_at",
            "worker",
        ]


class MadeEnrolmentTokenSerializer(EnrolmentTokenSerializer):
    enrolment_token = serializers.CharField(help_text="The token itself. It is shown this once and kept nowhere.")
    commands = serializers.ListField(
        child=serializers.CharField(), help_text="To be typed on the machine; `enrol` asks for the token."
    )

    class Meta(EnrolmentTokenSerializer.Meta):
        fields = [*EnrolmentTokenSerializer.Meta.fields, "enrolment_token", "commands"]


class EnrolmentTokenFilter(ListFilter):
    usable = ConditionFilter(condition=lambda: enrolment.USABLE, help_text="Whether a machine can still enrol with it.")
    name = filters.CharFilter(help_text="Those for this machine.")


_TOKEN = {
    "id": 12,
    "key": "5f0c1e7a9b2d",
    "name": "press-7",
    "queues": ["press"],
    "team": "",
    "replace": False,
    "usable": True,
    "created_by": "maria",
    "created_at": "2026-11-22T18:00:00Z",
    "expires_at": "2026-11-22T18:15:00Z",
    "used_at": None,
    "revoked_at": None,
    "worker": None,
    "enrolment_token": "ece_5f0c1e7a9b2d_...",
    "commands": enrolment.commands("https://edge.example.com", file=None),
}


@extend_schema_view(
    create=extend_schema(
        summary="Connect a machine",
        description="Make a one-time token by which a machine becomes a worker.",
        request=NewEnrolmentTokenSerializer,
        responses={
            201: OpenApiResponse(
                MadeEnrolmentTokenSerializer, examples=[OpenApiExample("made", _TOKEN, status_codes=["201"])]
            )
        },
        examples=[OpenApiExample("request", {"name": "press-7", "queues": ["press"]}, request_only=True)],
    )
)
class EnrolmentTokenViewSet(OperationViewSet):
    """One-time tokens by which machines become workers. No secret is ever shown again."""

    model = EnrolmentToken
    operations = operations.ENROLMENTS
    needs: Mapping[str, str] = {"create": "workers_app.add_enrolmenttoken"}
    named_by = "key"
    nobody = "no such enrolment token"
    names_help = "Keys of enrolment tokens: the twelve digits after `ece_`, never a whole token."
    names_example = ("5f0c1e7a9b2d", "8e2b9d04c6aa")
    lookup_value_regex = "[0-9]{1,18}"
    serializer_class = EnrolmentTokenSerializer
    filterset_class = EnrolmentTokenFilter
    search_fields = ("name", "key", "created_by")
    orderings: Mapping[str, str] = {"created_at": "created_at", "expires_at": "expires_at", "name": "name"}
    default_ordering = "-created_at"

    def get_queryset(self) -> QuerySet[EnrolmentToken]:
        usable = ExpressionWrapper(enrolment.USABLE, output_field=BooleanField())
        return EnrolmentToken.objects.annotate(usable=usable).select_related("worker")

    def get_serializer_class(self) -> Any:
        return NewEnrolmentTokenSerializer if self.action == "create" else super().get_serializer_class()

    def create(self, request: Request) -> Response:
        body = NewEnrolmentTokenSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        said = body.validated_data
        if said["replace"] and not request.user.has_perm(enrolment.REPLACE_PERMISSION):
            raise exceptions.PermissionDenied(f"To replace a worker host needs {enrolment.REPLACE_PERMISSION}.")
        token, text = enrolment.create(
            name=said["name"],
            by=Actor.of_request(request),
            allowed_queues=said.get("queues"),
            team_name=said["team"],
            valid_for=timedelta(seconds=said["valid_for_seconds"]),
            replace=said["replace"],
        )
        made: Any = self.get_queryset().get(pk=token.pk)
        made.enrolment_token = text
        made.commands = enrolment.commands(
            settings.EDGECONTROL.public_url or request.build_absolute_uri("/").rstrip("/"), file=agent_file.look()
        )
        return Response(
            dict(MadeEnrolmentTokenSerializer(made).data),
            status=status.HTTP_201_CREATED,
            headers={"Cache-Control": "no-store"},
        )


class ChangeSerializer(serializers.ModelSerializer[Change]):
    kind = serializers.CharField(source="subject_kind", help_text="worker, queue, job, enrolment or personal token.")
    before = serializers.DictField(help_text="Only what changed.")
    after = serializers.DictField(help_text="Only what changed.")

    class Meta:
        model = Change
        fields = [
            "id",
            "at",
            "actor_kind",
            "actor",
            "origin",
            "action",
            "kind",
            "subject_id",
            "subject",
            "before",
            "after",
            "comment",
        ]


class ChangeFilter(ListFilter):
    actor = filters.CharFilter(help_text="Those by this user, machine or shell user.")
    actor_kind = SeveralFilter(choices=list(ActorKind), help_text="Those by actors of these kinds.")
    action = filters.CharFilter(help_text="The name of an operation such as request_maintenance, or another action.")
    kind = SeveralFilter(
        field_name="subject_kind",
        choices=("worker", "queue", "job", "enrolment", "personal token"),
        help_text="Those of these kinds of things.",
    )
    subject = filters.CharFilter(help_text="What it was called at the time.")
    subject_id = filters.CharFilter(help_text="Its id: of a worker the number, of a job the uuid, of a queue the name.")
    after = MomentFilter(field_name="at", lookup_expr="gte", help_text="Those from this moment on.")
    before = MomentFilter(field_name="at", lookup_expr="lt", help_text="Those before this moment.")


class ChangeViewSet(FleetViewSet):
    """The record of changes: who changed what, from where, what it was before, and why. It is only read."""

    model = Change
    pagination_class = Keyset  # type: ignore[assignment]
    lookup_value_regex = "[0-9]{1,18}"
    serializer_class = ChangeSerializer
    filterset_class = ChangeFilter
    search_fields = ("subject", "actor", "comment")
    orderings: Mapping[str, str] = {"id": "id"}
    default_ordering = "-id"

    def get_queryset(self) -> QuerySet[Change]:
        return Change.objects.all()
