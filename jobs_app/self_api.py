"""What a machine may ask about itself with its token alone; nothing changes, and a running agent notices nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.conf import settings
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from jobs_app.agent_requests import LONGEST_VERSION, MOST_QUEUES, AgentView, VersionSerializer, checked, server_version
from jobs_app.models import Queue
from workers_app import versions
from workers_app.auth import IsAgent
from workers_app.operations import LONGEST_QUEUE
from workers_app.states import Requested


class QuestionSerializer(serializers.Serializer[Any]):
    agent_version = serializers.CharField(required=False, allow_blank=True, max_length=LONGEST_VERSION)
    protocol = serializers.IntegerField(required=False)
    queue = serializers.ListField(child=serializers.CharField(max_length=LONGEST_QUEUE), max_length=MOST_QUEUES)


class AskedQueueSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    allowed = serializers.BooleanField(help_text="By the worker's enrolment, or by an operator's list.")
    known = serializers.BooleanField(help_text="A job or a worker has named it before.")
    paused = serializers.BooleanField()
    comment = serializers.CharField(allow_blank=True)


class MeSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    team_name = serializers.CharField(allow_blank=True)
    allowed_queues = serializers.ListField(child=serializers.CharField(), allow_null=True, help_text="null: all.")
    queues = AskedQueueSerializer(many=True, help_text="Those that were asked for.")
    requested = serializers.ChoiceField(choices=[wish.value for wish in Requested])
    comment = serializers.CharField(allow_blank=True)
    outage_patience_seconds = serializers.IntegerField()
    execution_api_url = serializers.CharField(allow_blank=True)
    server_version = serializers.CharField()
    version = VersionSerializer()


class MeView(AgentView):
    """Whose the token is, and what is wanted of it. Needs no session and begins none."""

    permission_classes = [IsAgent]

    @extend_schema(
        responses=MeSerializer,
        parameters=[
            OpenApiParameter("queue", OpenApiTypes.STR, many=True, description="Tell about these queues too."),
            OpenApiParameter("agent_version", OpenApiTypes.STR, description="Of who asks."),
            OpenApiParameter("protocol", OpenApiTypes.INT, description="What it speaks."),
        ],
    )
    def get(self, request: Request) -> Response:
        worker = self.worker(request)
        given = {name: values[0] for name, values in request.query_params.lists() if values}
        said = checked(QuestionSerializer(data={**given, "queue": request.query_params.getlist("queue")}))
        asked = said["queue"]
        known = Queue.objects.in_bulk(asked)
        allowed = worker.allowed_queues if worker.queues_override is None else worker.queues_override
        return Response(
            {
                "name": worker.name,
                "team_name": worker.team_name,
                "allowed_queues": allowed,
                "queues": [
                    {
                        "name": name,
                        "allowed": allowed is None or name in allowed,
                        "known": name in known,
                        "paused": name in known and known[name].paused,
                        "comment": known[name].pause_comment if name in known else "",
                    }
                    for name in asked
                ],
                "requested": worker.requested,
                "comment": worker.requested_comment,
                "outage_patience_seconds": settings.EDGECONTROL.outage_patience_seconds,
                "execution_api_url": settings.EDGECONTROL.execution_api_url,
                "server_version": server_version(),
                "version": asdict(
                    versions.judge(
                        said.get("agent_version", ""), server_version=server_version(), protocol=said.get("protocol")
                    )
                ),
            }
        )
