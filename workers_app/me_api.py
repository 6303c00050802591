"""The operator API's answer to who is asking, and what they may; nothing is decided or changed here."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import IsAdminUser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from workers_app import api_lists
from workers_app.models import PersonalToken
from workers_app.personal_tokens import PersonalTokenAuthentication

#: What operators' permissions are about.
_FLEET = ("workers_app.", "jobs_app.")
_EXAMPLE = {
    "user": "maria",
    "groups": ["operator"],
    "permissions": ["jobs_app.view_job", "workers_app.operate_worker", "workers_app.view_worker"],
    "token": {"key": "5f0c1e7a9b2d", "name": "laptop", "expires_at": None},
    "version": "0.1.0",
}


class ShownTokenSerializer(serializers.ModelSerializer[PersonalToken]):
    class Meta:
        model = PersonalToken
        fields = ["key", "name", "expires_at"]


class CallerSerializer(serializers.Serializer[Any]):
    """Who is asking."""

    user = serializers.CharField(help_text="The login.")
    groups = serializers.ListField(child=serializers.CharField())
    permissions = serializers.ListField(child=serializers.CharField(), help_text="About the fleet, however given.")
    token = ShownTokenSerializer(allow_null=True, help_text="The personal token that was shown; null for a session.")
    version = serializers.CharField(help_text="Of the control plane.")


class CallerView(APIView):
    """Who is asking, and what they may. Needs no permission."""

    authentication_classes = [PersonalTokenAuthentication, SessionAuthentication]
    permission_classes = [IsAdminUser]

    @extend_schema(
        operation_id="me_retrieve",
        summary="Who is asking",
        responses={200: OpenApiResponse(CallerSerializer, examples=[OpenApiExample("caller", _EXAMPLE)])},
    )
    def get(self, request: Request) -> Response:
        api_lists.check_query(request, known=set(), several=set())
        user = request.user
        said = {
            "user": user.get_username(),
            "groups": sorted(user.groups.values_list("name", flat=True)),
            "permissions": sorted(name for name in user.get_all_permissions() if name.startswith(_FLEET)),
            "token": request.auth if isinstance(request.auth, PersonalToken) else None,
            "version": str(settings.SPECTACULAR_SETTINGS["VERSION"]),
        }
        return Response(dict(CallerSerializer(said).data))
