"""What a machine may ask about itself with its token alone; nothing changes, and a running agent notices nothing."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from jobs_app.agent_api import MOST_QUEUES, AgentView, checked
from jobs_app.models import Queue
from workers_app.auth import IsAgent
from workers_app.operations import LONGEST_QUEUE
from workers_app.states import Requested


class QuestionSerializer(serializers.Serializer[Any]):
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


class MeView(AgentView):
    """Whose the token is, and what is wanted of it. Needs no session and begins none."""

    permission_classes = [IsAgent]

    @extend_schema(
        responses=MeSerializer,
        parameters=[OpenApiParameter("queue", OpenApiTypes.STR, many=True, description="Tell about these queues too.")],
    )
    def get(self, request: Request) -> Response:
        worker = self.worker(request)
        asked = checked(QuestionSerializer(data={"queue": request.query_params.getlist("queue")}))["queue"]
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
                "server_version": settings.SPECTACULAR_SETTINGS["VERSION"],
            }
        )
