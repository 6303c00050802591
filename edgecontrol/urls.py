"""The whole URL surface."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from edgecontrol.api import FleetRouter
from edgecontrol.hub import hub
from jobs_app import agent_api, agent_jobs_api
from jobs_app.operator_api import JobViewSet, QueueViewSet, WorkerViewSet
from jobs_app.self_api import MeView
from workers_app.agent_api import AgentFileSumView, AgentFileView, EnrolView
from workers_app.agent_file import ADDRESS
from workers_app.me_api import CallerView
from workers_app.operator_api import ChangeViewSet, EnrolmentTokenViewSet

admin.site.site_header = admin.site.site_title = "EdgeControl"
admin.site.index_title = "Fleet"

edge = [
    path("health", agent_api.HealthView.as_view(), name="health"),
    path("workers/me", MeView.as_view(), name="me"),
    path("workers/enrol", EnrolView.as_view(), name="enrol"),
    path("workers/register", agent_api.RegisterView.as_view(), name="register"),
    path("workers/heartbeat", agent_api.HeartbeatView.as_view(), name="heartbeat"),
    path("jobs/claim", agent_jobs_api.ClaimView.as_view(parking=hub), name="claim"),
    path("jobs/confirm", agent_jobs_api.ConfirmView.as_view(), name="confirm"),
    path("jobs/<uuid:job_id>/report", agent_jobs_api.ReportView.as_view(), name="report"),
    path("logs/<uuid:job_id>/<int:attempt>", agent_jobs_api.AppendLogView.as_view(), name="append-log"),
]

# Each with a list, its rows, and an address for each operation of its table; see `workers_app.operation_views`.
fleet = FleetRouter()
fleet.register("workers", WorkerViewSet, basename="worker")
fleet.register("jobs", JobViewSet, basename="job")
fleet.register("queues", QueueViewSet, basename="queue")
fleet.register("enrolment-tokens", EnrolmentTokenViewSet, basename="enrolment-token")
fleet.register("changes", ChangeViewSet, basename="change")

#: Where the pages of the operator API let people in and out.
session = [path("login", admin.site.login, name="login"), path("logout", admin.site.logout, name="logout")]

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path(ADDRESS.removeprefix("/"), AgentFileView.as_view(), name="agent-file"),
    path(ADDRESS.removeprefix("/") + ".sha256", AgentFileSumView.as_view(), name="agent-file-sum"),
    path("api/v1/edge/", include((edge, "edge"))),
    path("api/v1/fleet/me", CallerView.as_view(), name="caller"),
    path("api/v1/fleet/", include((fleet.urls, "fleet"))),
    path("api/v1/session/", include((session, "rest_framework"))),
    path("api/v1/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/v1/docs", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
]

handler404 = "edgecontrol.api.not_found"
handler500 = "edgecontrol.api.server_error"
