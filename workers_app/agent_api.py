"""The endpoint that a machine calls before it is a worker: enrol. All others compare jobs, and stand in `jobs_app`."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from workers_app import enrolment
from workers_app.audit import client_address


class EnrolSerializer(serializers.Serializer[Any]):
    enrolment_token = serializers.CharField(help_text="Shown once by the control plane; good for one machine.")
    key = serializers.RegexField(r"^[0-9a-f]{12}$", help_text="Of the worker token that the machine has minted.")
    digest = serializers.RegexField(r"^[0-9a-f]{64}$", help_text="SHA-256 of that token's secret.")


class EnrolledSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    queues = serializers.ListField(child=serializers.CharField(), allow_null=True, help_text="null: every queue.")
    team_name = serializers.CharField(allow_blank=True)


class EnrolView(APIView):
    """Exchange a one-time enrolment token for a worker. Open to everybody who has one; repeating it is harmless."""

    authentication_classes = []
    permission_classes = [AllowAny]

    @extend_schema(request=EnrolSerializer, responses=EnrolledSerializer, auth=[])
    def post(self, request: Request) -> Response:
        said = EnrolSerializer(data=request.data)
        said.is_valid(raise_exception=True)
        worker = enrolment.enrol(
            token=said.validated_data["enrolment_token"],
            key=said.validated_data["key"],
            digest=said.validated_data["digest"],
            origin=client_address(request),
        )
        answer = {"name": worker.name, "queues": worker.allowed_queues, "team_name": worker.team_name}
        return Response(EnrolledSerializer(answer).data)
