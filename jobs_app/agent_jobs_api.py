"""The endpoints by which agents take jobs, confirm them, report their ends and append to their logs.

Each is a few lines around `lifecycle` and `logs`; nothing is decided here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast
from uuid import UUID

from django.conf import settings
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, serializers
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response

from jobs_app import lifecycle, logs
from jobs_app.agent_requests import (
    SESSION,
    AgentView,
    PairSerializer,
    Reason,
    checked,
    integer,
    queue_names,
    server_version,
)
from jobs_app.models import Job
from jobs_app.picking import Able
from jobs_app.states import JobState, ReportState
from workers_app import versions
from workers_app.models import Worker


class Poll(Protocol):
    def wait(self, seconds: float) -> bool: ...


class Parking(Protocol):
    """Where a claim waits; the project passes its hub in `urls.py`, since an app never imports the project."""

    def poll(self, *, worker: Worker, free_slots: int, runs: Callable[[str], bool]) -> AbstractContextManager[Poll]: ...


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

    @extend_schema(request=ClaimSerializer, responses=ClaimAnswerSerializer, parameters=[SESSION])
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

    @extend_schema(request=ConfirmSerializer, responses=ConfirmAnswerSerializer, parameters=[SESSION])
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

    @extend_schema(request=ReportSerializer, responses=ReportAnswerSerializer, parameters=[SESSION])
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
        parameters=[SESSION, OpenApiParameter("offset", OpenApiTypes.INT64, required=True)],
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
