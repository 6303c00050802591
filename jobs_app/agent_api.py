"""The endpoints that agents call: register, heartbeat, claim, confirm, report, append to a log.

Each is a few lines around `registry`, `lifecycle` and `logs`; nothing is decided here. Register and
heartbeat stand here and not in `workers_app`, because both also compare what is held.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Protocol, cast
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, serializers
from rest_framework.parsers import BaseParser, JSONParser
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from jobs_app import lifecycle, logs
from jobs_app.models import Job, Queue
from jobs_app.picking import Able
from jobs_app.states import JobState, ReportState
from workers_app import registry, versions, wishes
from workers_app.audit import client_address
from workers_app.auth import SESSION_HEADER, IsAgent, IsCurrentSession, WorkerTokenAuthentication
from workers_app.models import Worker
from workers_app.operations import LONGEST_COMMENT, LONGEST_QUEUE
from workers_app.states import Reported, Requested, RequestedBy

#: More slots than any machine has.
MOST_SLOTS = 10_000
#: What a machine says of itself is kept, shown in lists, and written into the record, which only grows.
MOST_QUEUES = 1000
MOST_FIGURES_BYTES = 64 * 1024
LONGEST_VERSION = 200
OLDEST_WISH_SECONDS = 10 * 365 * 86400

_SESSION = OpenApiParameter(
    SESSION_HEADER,
    OpenApiTypes.UUID,
    OpenApiParameter.HEADER,
    required=True,
    description="The agent process's own uuid.",
)


class Poll(Protocol):
    def wait(self, seconds: float) -> bool: ...


class Parking(Protocol):
    """Where a claim waits; the project passes its hub in `urls.py`, since an app never imports the project."""

    def poll(self, *, worker: Worker, free_slots: int, runs: Callable[[str], bool]) -> AbstractContextManager[Poll]: ...


class JsonBody(JSONParser):
    """JSON, of which no depth ends the interpreter's stack; how large it may be is decided for all requests."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        try:
            return super().parse(stream, media_type, parser_context)
        except RecursionError:
            raise exceptions.ParseError("The JSON is nested too deeply.") from None


class AgentView(APIView):
    parser_classes: list[type[BaseParser]] = [JsonBody]
    authentication_classes = [WorkerTokenAuthentication]
    permission_classes = [IsCurrentSession]

    @staticmethod
    def worker(request: Request) -> Worker:
        """The caller, as read a moment ago when its token was checked."""
        worker: Worker = request.user.worker  # type: ignore[union-attr]
        return worker


def checked(serializer: serializers.Serializer[Any]) -> dict[str, Any]:
    serializer.is_valid(raise_exception=True)
    data: dict[str, Any] = serializer.validated_data
    return data


def integer(*, least: int = 0, most: int = 2**31 - 1, **options: Any) -> serializers.IntegerField:
    """A number that fits its column."""
    return serializers.IntegerField(min_value=least, max_value=most, **options)


def queue_names(**options: Any) -> serializers.ListField:
    """What an agent serves; null is all that it may. A longer name would not fit the key of its queue."""
    name = serializers.CharField(max_length=LONGEST_QUEUE)
    return serializers.ListField(child=name, allow_null=True, max_length=MOST_QUEUES, **options)


class SystemFigures(serializers.DictField):
    """A JSON object that PostgreSQL can store: of bounded size, with neither NUL nor half of a surrogate pair."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        try:
            text = json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise exceptions.ValidationError("Has half of a surrogate pair.") from None
        if len(text) > MOST_FIGURES_BYTES:
            raise exceptions.ValidationError(f"Has more than {MOST_FIGURES_BYTES} bytes.")
        # Escaped backslashes set aside, what is left of the form \u0000 is the character.
        if b"\\u0000" in text.replace(b"\\\\", b""):
            raise exceptions.ValidationError("Has a NUL character.")
        figures: dict[str, Any] = super().to_internal_value(data)
        return figures


class PairSerializer(serializers.Serializer[Any]):
    """One hand-out of one job."""

    id = serializers.UUIDField()
    attempt = integer(least=1)


class GonePairSerializer(PairSerializer):
    reason = serializers.CharField()


class VersionSerializer(serializers.Serializer[Any]):
    """What the control plane makes of the agent's version."""

    verdict = serializers.ChoiceField(
        choices=[verdict.value for verdict in versions.Verdict],
        help_text="outdated: works, and should be upgraded. refused: gets no more jobs, and ends with its last one.",
    )
    text = serializers.CharField(allow_blank=True, help_text="What to do, for people.")


class OrdersSerializer(serializers.Serializer[Any]):
    """What the agent must know now."""

    requested = serializers.ChoiceField(choices=[wish.value for wish in Requested])
    comment = serializers.CharField(allow_blank=True)
    queues = serializers.ListField(child=serializers.CharField(), allow_null=True)
    concurrency = serializers.IntegerField()
    revision = serializers.IntegerField()
    deadline_seconds = serializers.FloatField(
        allow_null=True, help_text="With shutdown: when jobs that still run are stopped; null waits for them."
    )
    requested_by = serializers.ChoiceField(
        choices=[by.value for by in RequestedBy], allow_blank=True, help_text="Empty: nobody has wished for anything."
    )
    requested_by_name = serializers.CharField(allow_blank=True)
    wish_taken = serializers.UUIDField(allow_null=True, help_text="The wish of the request, which is known now.")
    gone = GonePairSerializer(many=True, help_text="Listed by the agent and no longer its own: stop them, forget them.")
    version = VersionSerializer()


def orders(worker: Worker, *, held: list[dict[str, Any]], protocol: int | None) -> dict[str, Any]:
    pairs = [(pair["id"], pair["attempt"]) for pair in held]
    young = settings.EDGECONTROL.heartbeat_seconds
    gone = lifecycle.not_held_any_more(worker_id=worker.pk, listed=pairs, young_seconds=young)
    return {
        "requested": worker.requested,
        "requested_by": worker.requested_by_kind,
        "requested_by_name": worker.requested_by,
        "comment": worker.requested_comment,
        "queues": worker.effective_queues,
        "concurrency": worker.effective_concurrency,
        "revision": worker.revision,
        "deadline_seconds": _deadline(worker),
        "gone": [{"id": pk, "attempt": attempt, "reason": reason} for pk, attempt, reason in gone],
        "version": asdict(versions.judge(worker.agent_version, server_version=server_version(), protocol=protocol)),
    }


def server_version() -> str:
    return str(settings.SPECTACULAR_SETTINGS["VERSION"])


def _deadline(worker: Worker) -> float | None:
    """Seconds, not a moment: the machine's clock may be wrong."""
    if worker.requested != Requested.SHUTDOWN or worker.requested_until is None:
        return None
    return max(0.0, (worker.requested_until - timezone.now()).total_seconds())


class HealthSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=["ok"])
    version = serializers.CharField()
    time = serializers.DateTimeField(help_text="Lets a machine see that its own clock is wrong.")


class HealthView(APIView):
    """Whether the control plane can work: it answers only after asking its database. Open to everybody."""

    authentication_classes = []
    permission_classes = [AllowAny]

    @extend_schema(responses=HealthSerializer, auth=[])
    def get(self, request: Request) -> Response:
        Worker.objects.exists()
        return Response(HealthSerializer({"status": "ok", "version": server_version(), "time": timezone.now()}).data)


class Reason(serializers.CharField):
    """Text for people, made storable rather than refused: no report is lost for its wording."""

    def run_validation(self, data: Any = serializers.empty) -> Any:
        if isinstance(data, str):
            data = data.replace("\0", "\ufffd").encode(errors="replace").decode()[:4000]
        return super().run_validation(data)


class WishSerializer(serializers.Serializer[Any]):
    """Maintenance that is wanted on the machine itself, or its end. One that makes no sense is none: no lease ends."""

    id = serializers.UUIDField(help_text="Repeated until an answer names it as `wish_taken`.")
    requested = serializers.ChoiceField(choices=[Requested.MAINTENANCE.value, Requested.ACTIVE.value])
    comment = Reason(allow_blank=True)
    by = serializers.ChoiceField(choices=[RequestedBy.MACHINE.value, RequestedBy.AUTOMATIC.value])
    age_seconds = serializers.FloatField(required=False, min_value=0, help_text="How long ago somebody had it.")

    def validate_age_seconds(self, value: float) -> float:
        if math.isnan(value):  # "NaN" passes every comparison, and only later REST frameworks (3.18 does) refuse it
            raise exceptions.ValidationError("not a number")
        return value

    def run_validation(self, data: Any = serializers.empty) -> Any:
        try:
            return super().run_validation(data)
        except exceptions.ValidationError:
            return None


def hear_wish(worker: Worker, said: dict[str, Any] | None, *, request: Request) -> dict[str, Any]:
    """Do what the machine wants of itself; returns the part of the answer that says so."""
    if said is None:
        return {"wish_taken": None}
    wish = wishes.MachineWish(
        id=said["id"],
        requested=Requested(said["requested"]),
        comment=said["comment"][:LONGEST_COMMENT],
        automatic=said["by"] == RequestedBy.AUTOMATIC,
        age=timedelta(seconds=min(said.get("age_seconds", 0.0), OLDEST_WISH_SECONDS)),
    )
    wishes.hear(worker, wish, origin=client_address(request))
    return {"wish_taken": wish.id}


class RegisterSerializer(serializers.Serializer[Any]):
    session = serializers.UUIDField()
    replaces = serializers.UUIDField(
        allow_null=True, required=False, help_text="The session of the agent process that ran there before."
    )
    boot_id = serializers.CharField(max_length=200)
    name = serializers.CharField(allow_null=True, trim_whitespace=False, help_text="null keeps the token's.")
    queues = queue_names(help_text="null: all that the worker is allowed; empty: none.")
    concurrency = integer(least=1, most=MOST_SLOTS)
    agent_version = serializers.CharField(allow_blank=True, max_length=LONGEST_VERSION)
    airflow_version = serializers.CharField(allow_blank=True, max_length=LONGEST_VERSION)
    protocol = serializers.IntegerField()
    sysinfo = SystemFigures()
    held = PairSerializer(
        many=True, help_text="Jobs the agent can account for: alive, or finished with a result on disk."
    )
    wish = WishSerializer(required=False, allow_null=True)


class RegisteredSerializer(OrdersSerializer):
    name = serializers.CharField()
    heartbeat_seconds = serializers.IntegerField()
    claim_wait_seconds = serializers.IntegerField()
    outage_patience_seconds = serializers.IntegerField()
    execution_api_url = serializers.CharField(allow_blank=True)
    log_chunk_bytes = serializers.IntegerField()
    log_cap_bytes = serializers.IntegerField()
    server_version = serializers.CharField()


class RegisterView(AgentView):
    """Begin a session. A newer session fences the older one; held jobs that a rebooted machine lost are given up."""

    permission_classes = [IsAgent]

    @extend_schema(request=RegisterSerializer, responses=RegisteredSerializer)
    def post(self, request: Request) -> Response:
        said = checked(RegisterSerializer(data=request.data))
        held, protocol, wish = said.pop("held"), said.pop("protocol"), said.pop("wish", None)
        if protocol < versions.OLDEST_PROTOCOL:
            raise registry.OutdatedAgent
        worker = self.worker(request)
        accounted_for = [(pair["id"], pair["attempt"]) for pair in held]
        with transaction.atomic():
            # The jobs first, as everybody locks them.
            lifecycle.lock_held(worker_id=worker.pk)
            rebooted = registry.register(
                worker=worker, introduction=registry.Introduction(**said), origin=client_address(request)
            )
            if rebooted is not None:
                lifecycle.lose_unaccounted(worker_id=worker.pk, accounted_for=accounted_for, rebooted=rebooted)
        Queue.objects.remember(said["queues"] or ())
        heard = hear_wish(worker, wish, request=request)
        ours = settings.EDGECONTROL
        return Response(
            {
                "name": worker.name,
                "heartbeat_seconds": ours.heartbeat_seconds,
                "claim_wait_seconds": ours.claim_wait_seconds,
                "outage_patience_seconds": ours.outage_patience_seconds,
                "execution_api_url": ours.execution_api_url,
                "log_chunk_bytes": ours.log_chunk_bytes,
                "log_cap_bytes": ours.log_cap_bytes,
                "server_version": server_version(),
                **orders(worker, held=held, protocol=protocol),
                **heard,
            }
        )


class LogTroubleSerializer(PairSerializer):
    """Of a log that does not get through."""

    trouble = Reason(allow_blank=True, help_text="Why, for people; empty: it does again.")


class HeartbeatSerializer(serializers.Serializer[Any]):
    reported = serializers.ChoiceField(choices=[word.value for word in Reported])
    jobs_active = integer()
    concurrency = integer(least=1, most=MOST_SLOTS)
    queues = queue_names()
    sysinfo = SystemFigures(allow_null=True, help_text="null: unchanged.")
    held = PairSerializer(many=True)
    log_troubles = LogTroubleSerializer(many=True, required=False, help_text="What has changed of it.")
    airflow_version = serializers.CharField(
        required=False, allow_blank=True, max_length=LONGEST_VERSION, help_text="It may be upgraded under the agent."
    )
    protocol = serializers.IntegerField(required=False)
    wish = WishSerializer(required=False, allow_null=True)


class HeartbeatView(AgentView):
    """Renew the lease of all that is held; the answer brings the orders and names what is no longer held."""

    @extend_schema(request=HeartbeatSerializer, responses=OrdersSerializer, parameters=[_SESSION])
    def post(self, request: Request) -> Response:
        said = checked(HeartbeatSerializer(data=request.data))
        worker = self.worker(request)
        registry.heartbeat(
            worker=worker,
            reported=Reported(said["reported"]),
            jobs_active=said["jobs_active"],
            queues=said["queues"],
            concurrency=said["concurrency"],
            sysinfo=said["sysinfo"],
            airflow_version=said.get("airflow_version", ""),
        )
        logs.note_troubles(
            worker_id=worker.pk,
            troubles=[(one["id"], one["attempt"], one["trouble"]) for one in said.get("log_troubles", [])],
        )
        heard = hear_wish(worker, said.get("wish"), request=request)
        return Response({**orders(worker, held=said["held"], protocol=said.get("protocol")), **heard})


class ClaimSerializer(serializers.Serializer[Any]):
    claim_id = serializers.UUIDField(
        help_text="The agent's own id for this request; repeat it when the answer was lost."
    )
    free_slots = integer()
    wait = serializers.FloatField(min_value=0, help_text="Seconds to wait for a job; capped by claim_wait_seconds.")
    revision = integer(help_text="From the last orders.")
    only_queues = queue_names(
        required=False, default=None, help_text="Of those that it serves, it can run only these now; null: all."
    )
    without_queues = queue_names(
        required=False, default=(), help_text="Of those that it serves, it cannot run these now."
    )


class ClaimedJobSerializer(serializers.ModelSerializer[Job]):
    workload = serializers.SerializerMethodField(help_text="What Airflow wants executed, with its token.")

    class Meta:
        model = Job
        fields = ["id", "attempt", "kind", "queue", "slots", "log_path", "workload"]

    def get_workload(self, job: Job) -> dict[str, Any]:
        return {**job.workload, "token": job.token}


class ClaimAnswerSerializer(serializers.Serializer[Any]):
    jobs = ClaimedJobSerializer(many=True)
    heartbeat_due = serializers.BooleanField(help_text="There are new orders; send a heartbeat at once.")


class ClaimView(AgentView):
    """Take as many jobs as fit, waiting up to `wait` seconds for the first one."""

    parking: Parking | None = None

    @extend_schema(request=ClaimSerializer, responses=ClaimAnswerSerializer, parameters=[_SESSION])
    def post(self, request: Request) -> Response:
        said = checked(ClaimSerializer(data=request.data))
        worker = self.worker(request)
        wait = min(said["wait"], settings.EDGECONTROL.claim_wait_seconds)
        deadline = time.monotonic() + wait
        if versions.is_refused(worker.agent_version, server_version()):
            said["free_slots"] = 0  # whether it has heard of it or not; its poll still brings it orders
        able = Able(only=said["only_queues"], without=said["without_queues"] or ())
        look = {"worker": worker, "able": able, **{name: said[name] for name in ("claim_id", "free_slots", "revision")}}
        assert self.parking is not None  # noqa: S101 - urls.py passes it
        with self.parking.poll(worker=worker, free_slots=said["free_slots"], runs=able.runs) as poll:
            claim = lifecycle.claim(**look, first=True)
            while not (claim.jobs or claim.superseded or claim.heartbeat_due):
                left = deadline - time.monotonic()
                if left <= 0 or not poll.wait(left):
                    break
                claim = lifecycle.claim(**look, first=False)
        return Response(ClaimAnswerSerializer({"jobs": claim.jobs, "heartbeat_due": claim.heartbeat_due}).data)


class ConfirmSerializer(serializers.Serializer[Any]):
    jobs = PairSerializer(many=True)


class RefusedPairSerializer(PairSerializer):
    code = serializers.CharField()
    detail = serializers.CharField()


class ConfirmAnswerSerializer(serializers.Serializer[Any]):
    confirmed = PairSerializer(many=True)
    refused = RefusedPairSerializer(many=True)


class ConfirmView(AgentView):
    """Say which claimed jobs are safely stored on the machine. Only what is confirmed may start."""

    @extend_schema(request=ConfirmSerializer, responses=ConfirmAnswerSerializer, parameters=[_SESSION])
    def post(self, request: Request) -> Response:
        pairs = [(pair["id"], pair["attempt"]) for pair in checked(ConfirmSerializer(data=request.data))["jobs"]]
        confirmed = lifecycle.confirm(worker_id=self.worker(request).pk, pairs=pairs)
        stale = lifecycle.StaleAttempt()
        return Response(
            {
                "confirmed": [{"id": pk, "attempt": attempt} for pk, attempt in pairs if (pk, attempt) in confirmed],
                "refused": [
                    {"id": pk, "attempt": attempt, "code": stale.code, "detail": stale.detail}
                    for pk, attempt in pairs
                    if (pk, attempt) not in confirmed
                ],
            }
        )


class ReportSerializer(serializers.Serializer[Any]):
    attempt = integer(least=1)
    state = serializers.ChoiceField(choices=[state.value for state in ReportState])
    exit_code = integer(least=-(2**63), most=2**63 - 1, allow_null=True, required=False)
    airflow_outcome = serializers.CharField(
        allow_blank=True,
        required=False,
        max_length=100,
        help_text="The task's final state as Airflow accepted it.",
    )
    reason = Reason(allow_blank=True, required=False)
    log_size = integer(most=2**63 - 1, required=False)
    log_sha256 = serializers.RegexField(r"^[0-9a-f]{64}$", allow_blank=True, required=False)
    log_trouble = Reason(
        allow_blank=True, required=False, help_text="Why the rest of the log has not been sent yet, for people."
    )


class ReportAnswerSerializer(serializers.Serializer[Any]):
    state = serializers.ChoiceField(choices=[state.value for state in JobState])


class ReportView(AgentView):
    """Say what became of a job. The same report twice is a success; one with an old attempt is refused."""

    @extend_schema(request=ReportSerializer, responses=ReportAnswerSerializer, parameters=[_SESSION])
    def post(self, request: Request, job_id: UUID) -> Response:
        said = checked(ReportSerializer(data=request.data))
        said["state"] = ReportState(said["state"])
        state = lifecycle.report(worker_id=self.worker(request).pk, job_id=job_id, report=lifecycle.Report(**said))
        return Response({"state": state})


class RawBody(BaseParser):
    """The request's bytes as they are, if they are not more than one chunk."""

    media_type = "application/octet-stream"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        limit = settings.EDGECONTROL.log_chunk_bytes
        data: bytes = stream.read(limit + 1)
        if len(data) > limit:
            error = exceptions.APIException(f"A log chunk has at most {limit} bytes here.")
            error.status_code = 413
            raise error
        return data


class AppendLogSerializer(serializers.Serializer[Any]):
    size = serializers.IntegerField(help_text="Bytes of this log that the control plane has.")


class AppendLogView(AgentView):
    """Append bytes to the log of one attempt at `offset`. A repeated append changes nothing."""

    parser_classes = [RawBody]

    @extend_schema(
        request={"application/octet-stream": OpenApiTypes.BINARY},
        responses=AppendLogSerializer,
        parameters=[_SESSION, OpenApiParameter("offset", OpenApiTypes.INT64, required=True)],
    )
    def post(self, request: Request, job_id: UUID, attempt: int) -> Response:
        offset = request.query_params.get("offset", "")
        if not (offset.isascii() and offset.isdigit() and len(offset) < 19):
            raise exceptions.ValidationError({"offset": "The byte at which this chunk begins, in decimal digits."})
        size = logs.append(
            worker_id=self.worker(request).pk,
            job_id=job_id,
            attempt=attempt,
            offset=int(offset),
            data=cast(bytes, request.data or b""),
            cap_bytes=settings.EDGECONTROL.log_cap_bytes,
        )
        return Response({"size": size})
