"""The endpoints by which an agent begins a session and renews its lease: register and heartbeat; and the open health.

Each is a few lines around `registry` and `lifecycle`; nothing is decided here. They stand here and not in
`workers_app`, because both also compare what is held.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from jobs_app import lifecycle, logs
from jobs_app.agent_requests import (
    LONGEST_VERSION,
    MOST_SLOTS,
    SESSION,
    AgentView,
    PairSerializer,
    Reason,
    SystemFigures,
    VersionSerializer,
    checked,
    integer,
    queue_names,
    server_version,
)
from jobs_app.models import Queue
from workers_app import registry, versions, wishes
from workers_app.audit import client_address
from workers_app.auth import IsAgent
from workers_app.models import Worker
from workers_app.operations import LONGEST_COMMENT
from workers_app.states import Reported, Requested, RequestedBy

OLDEST_WISH_SECONDS = 10 * 365 * 86400


class GonePairSerializer(PairSerializer):
    reason = serializers.CharField()


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

    @extend_schema(request=HeartbeatSerializer, responses=OrdersSerializer, parameters=[SESSION])
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
