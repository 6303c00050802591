"""Worker hosts, credentials, samples and the record of changes: columns and invariants; nothing is decided here.

Workers are written by `registry`, credentials by `auth`, `enrolment` and `personal_tokens`, changes by `audit`.
"""

from __future__ import annotations

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import BrinIndex, OpClass
from django.db import models
from django.db.models.functions import Now, Upper

from workers_app.states import Reported, Requested, RequestedBy, Shown


class Worker(models.Model):
    """A registered edge machine. Its token is its identity; `name` is a label."""

    name = models.TextField(unique=True)
    session = models.UUIDField(null=True, editable=False)
    #: The session that the agent says is over, since its process is; a request of it may still be on its way.
    replaced_session = models.UUIDField(null=True, editable=False)
    boot_id = models.TextField(db_default="", editable=False)

    requested = models.TextField(choices=[(r.value, r.value) for r in Requested], db_default=Requested.ACTIVE.value)
    #: Their name: a login, the user of a shell, or the machine's own.
    requested_by = models.TextField(db_default="", blank=True)
    #: operator, machine or automatic; empty as long as nobody has wished for anything.
    requested_by_kind = models.TextField(
        choices=[(by.value, by.value) for by in RequestedBy], db_default="", blank=True
    )
    #: The last wish of the machine itself that was heard; its agent repeats it until it knows that.
    heard_wish = models.UUIDField(null=True, editable=False)
    requested_at = models.DateTimeField(null=True, blank=True)
    requested_comment = models.TextField(db_default="", blank=True)
    #: Maintenance: when it ends by itself. Shutdown: when the jobs that still run are stopped.
    requested_until = models.DateTimeField(null=True, blank=True)
    reported = models.TextField(choices=[(r.value, r.value) for r in Reported], db_default=Reported.OFFLINE.value)
    state = models.TextField(choices=[(s.value, s.value) for s in Shown], db_default=Shown.OFFLINE.value)

    queues = ArrayField(
        models.TextField(),
        null=True,
        blank=True,
        help_text="What the agent serves; empty: nothing, unset: all it is allowed.",
    )
    allowed_queues = ArrayField(
        models.TextField(), null=True, blank=True, help_text="What the agent may ask for; unset: every queue."
    )
    queues_override = ArrayField(
        models.TextField(),
        null=True,
        blank=True,
        help_text="What an operator wants it to serve, whatever the agent says; unset: the agent decides.",
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
        permissions = [
            ("operate_worker", "Can request maintenance, shut down, change queues and concurrency"),
            ("remove_worker", "Can remove workers that are gone"),
        ]
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
                condition=models.Q(requested_by_kind__in=["", *(member.value for member in RequestedBy)]),
                name="worker_requested_by_known",
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
        """Queues it serves; None means every queue, an empty list none.

        An operator's list wins, and may go beyond what the enrolment lets the agent ask for.
        """
        if self.queues_override is not None:
            return self.queues_override
        if self.queues is None or self.allowed_queues is None:
            return self.allowed_queues if self.queues is None else self.queues
        allowed = set(self.allowed_queues)
        return [queue for queue in self.queues if queue in allowed]

    @property
    def wished_by(self) -> str:
        """Who wants what is requested, in words; empty when nobody has wished for anything."""
        words: dict[str, str] = {
            RequestedBy.OPERATOR: f"operator {self.requested_by}",
            RequestedBy.MACHINE: "somebody at the machine",
            RequestedBy.AUTOMATIC: "itself (automatic)",
        }
        return words.get(self.requested_by_kind, self.requested_by)

    @property
    def hindrance(self) -> str:
        """Why the agent takes no work although it shall, in its own words; empty where nothing hinders it."""
        told = self.sysinfo.get("not_working") if isinstance(self.sysinfo, dict) else None
        return told if isinstance(told, str) and self.state in (Shown.IDLE, Shown.RUNNING) else ""


class Credential(models.Model):
    """A key to find it by and a digest of its secret; the secret itself is shown once and never kept."""

    key = models.TextField(unique=True)
    digest = models.BinaryField()
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        abstract = True


class WorkerToken(Credential):
    """A worker's credential."""

    worker = models.ForeignKey(Worker, on_delete=models.CASCADE, related_name="tokens")

    class Meta:
        db_table = "worker_token"
        permissions = [("revoke_workertoken", "Can revoke worker tokens")]

    def __str__(self) -> str:
        return f"{self.key} of {self.worker_id}"


class EnrolmentToken(Credential):
    """What a new machine shows once in exchange for its own worker token."""

    name = models.TextField(help_text="How the machine will be called.")
    allowed_queues = ArrayField(models.TextField(), null=True, blank=True, help_text="Unset: every queue.")
    team_name = models.TextField(db_default="", blank=True)
    #: The machine was set up anew: its worker stays, and its older tokens end when this one is used.
    replace = models.BooleanField(db_default=False)
    created_by = models.TextField()
    used_at = models.DateTimeField(null=True, blank=True)
    #: The worker that came of it; it also tells a repeated request from a second one.
    worker = models.ForeignKey(Worker, null=True, blank=True, on_delete=models.SET_NULL, related_name="enrolments")
    worker_key = models.TextField(db_default="", blank=True)

    class Meta:
        db_table = "enrolment_token"
        indexes = [models.Index(fields=["-created_at"], name="enrolment_newest")]

    def __str__(self) -> str:
        return f"{self.key} for {self.name}"


class PersonalToken(Credential):
    """A person's credential for scripts; it may do what the person may."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="personal_tokens")
    name = models.TextField(help_text="What it is for.")
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "personal_token"

    def __str__(self) -> str:
        return f"{self.name} ({self.key})"


class Sample(models.Model):
    """A worker's figures at a moment; one for every few minutes, kept for some days."""

    pk = models.CompositePrimaryKey("worker_id", "at")
    # The database itself deletes them with their worker; see the migration.
    worker = models.ForeignKey(
        Worker, on_delete=models.DO_NOTHING, related_name="samples", db_index=False, db_constraint=False
    )
    at = models.DateTimeField()
    jobs_active = models.IntegerField()
    concurrency = models.IntegerField()
    #: Out of `sysinfo`; None when the agent did not tell.
    load_per_cpu = models.FloatField(null=True)
    memory_used_percent = models.FloatField(null=True)
    disk_free_gb = models.FloatField(null=True)

    class Meta:
        db_table = "worker_sample"
        indexes = [BrinIndex(fields=["at"], name="sample_by_time")]

    def __str__(self) -> str:
        return f"{self.worker_id} at {self.at}"


class Change(models.Model):
    """Who changed what, from where, and why. The database itself refuses to alter or delete a row."""

    at = models.DateTimeField(db_default=Now())
    #: person, command, machine or automatic.
    actor_kind = models.TextField()
    actor = models.TextField()
    #: An address or a host name.
    origin = models.TextField(db_default="")
    action = models.TextField()
    #: worker, queue, job, enrolment or personal token.
    subject_kind = models.TextField()
    subject_id = models.TextField()
    #: What people called it at the time.
    subject = models.TextField()
    #: Only what changed.
    before = models.JSONField(db_default={})
    after = models.JSONField(db_default={})
    comment = models.TextField(db_default="")

    class Meta:
        db_table = "change"
        default_permissions = ("view",)
        indexes = [
            models.Index("subject_kind", "subject_id", models.F("id").desc(), name="change_by_subject"),
            models.Index("actor", models.F("id").desc(), name="change_by_actor"),
            # For a search by the beginning of a name, or by an id of whatever kind.
            models.Index(OpClass(Upper("subject"), name="text_pattern_ops"), name="change_by_name"),
            models.Index(Upper("subject_id"), name="change_by_id"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.subject}"
