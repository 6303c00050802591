"""What a machine calls before it is a worker: fetch the agent, enrol. All others compare jobs: see `jobs_app`."""

from __future__ import annotations

from typing import Any

from django.http import FileResponse, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_conditional_response
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from workers_app import agent_file, enrolment
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


class AgentFileView(APIView):
    """The agent in one file, `edge-agent.pyz`. Open to everybody: it is a published program, and holds no secret."""

    authentication_classes = []
    permission_classes = [AllowAny]

    def perform_content_negotiation(self, request: Request, force: bool = True) -> Any:
        """Whatever the caller would rather have, this is what there is."""
        return super().perform_content_negotiation(request, force=True)

    @extend_schema(
        operation_id="agent_file",
        responses={
            (200, "application/octet-stream"): OpenApiTypes.BINARY,
            304: OpenApiResponse(description="The caller has it: `If-None-Match` names its SHA-256."),
        },
        auth=[],
    )
    def get(self, request: Request) -> HttpResponseBase:
        file, facts = agent_file.open_file()
        answer = FileResponse(
            file, as_attachment=True, filename=agent_file.NAME, content_type="application/octet-stream"
        )
        return unless_known(request, answer, sha256=facts.sha256)


class AgentFileSumView(AgentFileView):
    """The SHA-256 of `edge-agent.pyz`, as `sha256sum --check` reads it. It shows a broken transfer; whether the file is
    genuine is told by the sum under "Connect a machine", which needs a login."""

    @extend_schema(operation_id="agent_file_sum", responses={(200, "text/plain"): OpenApiTypes.STR, 304: None}, auth=[])
    def get(self, request: Request) -> HttpResponseBase:
        file, facts = agent_file.open_file()
        file.close()
        answer = HttpResponse(f"{facts.sum_line}\n", content_type="text/plain; charset=utf-8")
        return unless_known(request, answer, sha256=facts.sha256)


def unless_known(request: Request, answer: HttpResponseBase, *, sha256: str) -> HttpResponseBase:
    """The answer, or 304 for a caller who has this very content. Kept by anybody, and asked for anew each time."""
    answer["ETag"] = f'"{sha256}"'
    answer["Cache-Control"] = "public, no-cache"
    found = get_conditional_response(request._request, etag=answer["ETag"], response=answer)  # type: ignore[arg-type]
    if found is not answer:
        answer.close()
    return found or answer
