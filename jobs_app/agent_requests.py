"""What all endpoints for agents share: who calls, how a request is read, and what it may hold."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework import exceptions, serializers
from rest_framework.parsers import BaseParser, JSONParser
from rest_framework.request import Request
from rest_framework.views import APIView

from workers_app import versions
from workers_app.auth import SESSION_HEADER, IsCurrentSession, WorkerTokenAuthentication
from workers_app.models import Worker
from workers_app.operations import LONGEST_QUEUE

#: More slots than any machine has.
MOST_SLOTS = 10_000
#: What a machine says of itself is kept, shown in lists, and written into the record, which only grows.
MOST_QUEUES = 1000
MOST_FIGURES_BYTES = 64 * 1024
LONGEST_VERSION = 200

SESSION = OpenApiParameter(
    SESSION_HEADER,
    OpenApiTypes.UUID,
    OpenApiParameter.HEADER,
    required=True,
    description="The agent process's own uuid.",
)


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


class VersionSerializer(serializers.Serializer[Any]):
    """What the control plane makes of the agent's version."""

    verdict = serializers.ChoiceField(
        choices=[verdict.value for verdict in versions.Verdict],
        help_text="outdated: works, and should be upgraded. refused: gets no more jobs, and ends with its last one.",
    )
    text = serializers.CharField(allow_blank=True, help_text="What to do, for people.")


class Reason(serializers.CharField):
    """Text for people, made storable rather than refused: no report is lost for its wording."""

    def run_validation(self, data: Any = serializers.empty) -> Any:
        if isinstance(data, str):
            data = data.replace("\0", "\ufffd").encode(errors="replace").decode()[:4000]
        return super().run_validation(data)


def server_version() -> str:
    return str(settings.SPECTACULAR_SETTINGS["VERSION"])
