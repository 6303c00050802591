"""Worker hosts and their credentials: columns, invariants, named queries; only `registry` and `auth` change them."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now

from workers_app.states import Reported, Requested, Shown


class Worker(models.Model):
    """A registered edge machine. Its token is its identity; `name` is a label."""

    name = models.TextField(unique=True)
    session = models.UUIDField(null=True, editable=False)
    boot_id = models.TextField(db_default="", editable=False)

    requested = models.TextField(choices=[(r.value, r.value) for r in Requested], db_default=Requested.ACTIVE.value)
    requested_by = models.TextField(db_default="", blank=True)
    requested_at = models.DateTimeField(null=True, blank=True)
    requested_comment = models.TextField(db_default="", blank=True)
    reported = models.TextField(choices=[(r.value, r.value) for r in Reported], db_default=Reported.OFFLINE.value)
    state = models.TextField(choices=[(s.value, s.value) for s in Shown], db_default=Shown.OFFLINE.value)

    queues = ArrayField(
        models.TextField(),
        null=True,
        blank=True,
        help_text="What the agent serves; empty: nothing, unset: all it is allowed.",
    )
    allowed_queues = ArrayField(
        models.TextField(), null=True, blank=True, help_text="What it may serve; unset: every queue."
    )
    team_name = models.TextField(db_default="", blank=True)
    concurrency = models.PositiveIntegerField(db_default=1)
    concurrency_override = models.PositiveIntegerField(null=True, blank=True)
    jobs_active = models.PositiveIntegerField(db_default=0)

    sysinfo = models.JSONField(db_default={}, blank=True)
    agent_version = models.TextField(db_default="", blank=True)
    airflow_version = models.TextField(db_default="", blank=True)
    first_online = models.DateTimeField(null=True, blank=True)
    # Not indexed: a heartbeat then stays a cheap update inside its page.
    last_heartbeat = models.DateTimeField(null=True, blank=True)
    claim_id = models.UUIDField(null=True, editable=False)
    #: Grows whenever the agent must hear something; its parked poll is then answered at once.
    revision = models.IntegerField(db_default=0, editable=False)

    class Meta:
        db_table = "worker"
        verbose_name = "worker host"
        constraints = [
            models.CheckConstraint(condition=models.Q(name__regex=r"^.{1,253}$"), name="worker_name_length"),
            models.CheckConstraint(
                condition=models.Q(requested__in=[member.value for member in Requested]),
                name="worker_requested_known",
            ),
            models.CheckConstraint(
                condition=models.Q(reported__in=[member.value for member in Reported]),
                name="worker_reported_known",
            ),
            models.CheckConstraint(
                condition=models.Q(state__in=[member.value for member in Shown]), name="worker_state_known"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def effective_concurrency(self) -> int:
        """Slots this worker may fill: the operator's number before the agent's."""
        return self.concurrency if self.concurrency_override is None else self.concurrency_override

    @property
    def effective_queues(self) -> list[str] | None:
        """Queues it serves; None means every queue, an empty list none."""
        if self.queues is None or self.allowed_queues is None:
            return self.allowed_queues if self.queues is None else self.queues
        allowed = set(self.allowed_queues)
        return [queue for queue in self.queues if queue in allowed]


class WorkerToken(models.Model):
    """A worker's credential. Only a digest of the secret is kept; the secret is shown once."""

    worker = models.ForeignKey(Worker, on_delete=models.CASCADE, related_name="tokens")
    key = models.TextField(unique=True)
    digest = models.BinaryField()
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "worker_token"

    def __str__(self) -> str:
        return f"{self.key} of {self.worker_id}"
