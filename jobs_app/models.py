"""Jobs, queues and log chunks: columns, invariants, indexes and named queries; `lifecycle` and `logs` change them.

The bridge writes `job` and `queue` rows by SQL, so every column it does not name has a database default.
"""

from __future__ import annotations

from collections.abc import Iterable

from django.contrib.postgres.indexes import HashIndex
from django.db import connection, models
from django.db.models.functions import Now
from django.db.models.lookups import Exact, LessThanOrEqual

from jobs_app.states import FINAL, HELD, JobState
from workers_app.models import Worker

_FINAL = models.Q(state__in=sorted(state.value for state in FINAL))
_HELD = models.Q(state__in=sorted(state.value for state in HELD))
_TROUBLE = models.Q(state__in=sorted(state.value for state in FINAL - {JobState.SUCCESS}))
_WAITING = models.Q(state=JobState.QUEUED.value)
_OPEN = models.Q(state__in=sorted(state.value for state in JobState if state not in FINAL))
_WORKLOAD_TYPE = models.Func("workload", function="jsonb_typeof", output_field=models.TextField())
#: A row of an index has 2,704 bytes at most. Airflow's own ids have 250 characters, of at most 4 bytes each.
MOST_INDEXED_BYTES = 2000


def _bytes_of(column: str) -> models.Func:
    return models.Func(column, function="octet_length", output_field=models.IntegerField())


class QueueQuerySet(models.QuerySet["Queue"]):
    def remember(self, names: Iterable[str]) -> None:
        """Make rows for names that have none yet."""
        # In one order, so that two agents who name the same queues do not wait for each other.
        self.bulk_create([Queue(name=name) for name in sorted(set(names))], ignore_conflicts=True)

    def remember_served(self) -> None:
        """Make rows for the queues that workers serve, so that people see them before the first job comes."""
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO queue (name)
                SELECT DISTINCT unnest(coalesce(queues_override, '{}') || coalesce(queues, '{}')
                                       || coalesce(allowed_queues, '{}')) FROM worker
                    ON CONFLICT DO NOTHING
                """
            )


class Queue(models.Model):
    """A queue's settings. A row appears when a job or a worker first names the queue."""

    name = models.TextField(primary_key=True)
    paused = models.BooleanField(db_default=False)
    pause_comment = models.TextField(db_default="", blank=True)
    paused_by = models.TextField(db_default="", blank=True)
    paused_at = models.DateTimeField(null=True, blank=True)
    #: Slots of this queue's jobs that may be held at once over all workers; None: as many as the workers have.
    concurrency_limit = models.PositiveIntegerField(null=True, blank=True)

    objects = QueueQuerySet.as_manager()

    class Meta:
        db_table = "queue"
        permissions = [("operate_queue", "Can pause and resume queues and limit their concurrency")]

    def __str__(self) -> str:
        return self.name


class JobQuerySet(models.QuerySet["Job"]):
    def held_by(self, worker_id: int) -> JobQuerySet:
        """On this worker now, confirmed or not."""
        return self.filter(_HELD, worker_id=worker_id)

    def final(self) -> JobQuerySet:
        return self.filter(_FINAL)


class Job(models.Model):
    """One queueing of one workload, under the id that Airflow itself gave the queueing."""

    id = models.UUIDField(primary_key=True, editable=False)
    kind = models.TextField()
    dag_id = models.TextField(db_default="")
    task_id = models.TextField(db_default="")
    run_id = models.TextField(db_default="")
    map_index = models.IntegerField(db_default=-1)
    try_number = models.IntegerField(db_default=0)
    airflow_id = models.UUIDField()
    workload = models.JSONField()
    token = models.TextField(null=True, editable=False)  # noqa: DJ001 - NULL says that it is gone
    #: Until when a start with this token can succeed; NULL: not known. Airflow's side writes it and renews both.
    token_until = models.DateTimeField(null=True, editable=False)
    queue = models.TextField()
    slots = models.IntegerField(db_default=1)
    priority = models.IntegerField(db_default=1)
    team_name = models.TextField(db_default="", blank=True)

    state = models.TextField(choices=[(s.value, s.value) for s in JobState], db_default=JobState.QUEUED.value)
    #: The fencing number: +1 at every hand-out; reports and logs with an older one are refused.
    attempt = models.IntegerField(db_default=0)
    unconfirmed_claims = models.IntegerField(db_default=0)
    # Kept when the job is final: the worker's history.
    worker = models.ForeignKey(
        Worker, null=True, blank=True, on_delete=models.SET_NULL, related_name="jobs", db_index=False
    )
    #: When a worker first gave it back because the start did not reach Airflow.
    first_failed_start_at = models.DateTimeField(null=True, editable=False)
    claim_id = models.UUIDField(null=True, editable=False)
    missed_heartbeats = models.IntegerField(db_default=0, editable=False)

    queued_at = models.DateTimeField(db_default=Now())
    claimed_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    exit_code = models.BigIntegerField(null=True, blank=True)
    airflow_outcome = models.TextField(db_default="", blank=True)
    reason = models.TextField(db_default="", blank=True)
    #: Lost with evidence that its process is gone too, so that Airflow need not wait for a sign of life of it.
    process_gone = models.BooleanField(db_default=False, editable=False)

    log_path = models.TextField(db_default="", blank=True)
    log_size = models.BigIntegerField(db_default=0)
    log_final_size = models.BigIntegerField(null=True, blank=True)
    log_sha256 = models.TextField(db_default="", blank=True)
    #: It has reached the size that is kept here: what is stored is its beginning.
    log_full = models.BooleanField(db_default=False)
    #: Why its machine cannot send it on, in that machine's words; empty as soon as something arrives.
    log_trouble = models.TextField(db_default="", blank=True)
    dispatcher = models.UUIDField(null=True, blank=True)
    told_at = models.DateTimeField(null=True, blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        db_table = "job"
        permissions = [("revoke_job", "Can revoke jobs")]
        constraints = [
            models.CheckConstraint(condition=_FINAL | _OPEN, name="job_state_known"),
            models.CheckConstraint(
                condition=(_FINAL & models.Q(finished_at__isnull=False)) | (_OPEN & models.Q(finished_at=None)),
                name="job_final_iff_finished_at",
            ),
            models.CheckConstraint(
                condition=_FINAL
                | (_HELD & models.Q(worker__isnull=False))
                | (models.Q(state=JobState.QUEUED.value) & models.Q(worker=None)),
                name="job_held_iff_worker",
            ),
            models.CheckConstraint(condition=_OPEN | models.Q(token=None), name="job_final_has_no_token"),
            models.CheckConstraint(condition=models.Q(slots__gte=1), name="job_slots_positive"),
            # Said when they are written: such a workload could be handed out to nobody, and such an id fits into no
            # index, which would be seen only when its job ends.
            models.CheckConstraint(condition=Exact(_WORKLOAD_TYPE, "object"), name="job_workload_is_object"),
            *(
                models.CheckConstraint(
                    condition=LessThanOrEqual(_bytes_of(column), MOST_INDEXED_BYTES), name=f"job_{column}_not_too_long"
                )
                for column in ("dag_id", "run_id", "task_id", "team_name")
            ),
        ]
        indexes = [
            # One probe of this index per (queue, slot size) is a claim; see lifecycle.claim.
            models.Index(
                "queue",
                "team_name",
                "slots",
                models.F("priority").desc(),
                "queued_at",
                "id",
                name="job_claimable",
                condition=_WAITING,
            ),
            models.Index(fields=["worker"], name="job_held", condition=_HELD),
            models.Index(fields=["queue"], name="job_held_by_queue", condition=_HELD),
            models.Index(fields=["dispatcher"], name="job_untold", condition=_FINAL & models.Q(told_at=None)),
            models.Index(fields=["airflow_id"], name="job_open_by_airflow_id", condition=_OPEN),
            models.Index(fields=["finished_at"], name="job_finished", condition=_FINAL),
            models.Index(fields=["worker", "-queued_at"], name="job_history_of_worker"),
            # Not those without a log of their own: equal values make one endless bucket of a hash index.
            HashIndex(fields=["log_path"], name="job_by_log_path", condition=~models.Q(log_path="")),
            # Those of lists, see `listing`. None holds what is held, and only the first one holds what waits: a claim
            # maintains none of them, and its planner cannot take one for `job_claimable`.
            models.Index(fields=["-queued_at"], name="job_waiting_newest", condition=_WAITING),
            models.Index(fields=["-queued_at"], name="job_final_newest", condition=_FINAL),
            models.Index(fields=["-queued_at", "state"], name="job_trouble_newest", condition=_TROUBLE),
            models.Index(fields=["queue", "-queued_at"], name="job_final_of_queue", condition=_FINAL),
            models.Index(
                fields=["team_name", "-queued_at"], name="job_final_of_team", condition=_FINAL & ~models.Q(team_name="")
            ),
            models.Index(
                fields=["airflow_outcome", "-queued_at"],
                name="job_final_outcome",
                condition=_FINAL & ~models.Q(airflow_outcome__in=["", "success"]),
            ),
            models.Index(
                fields=["dag_id", "-queued_at"],
                opclasses=["text_pattern_ops", "timestamptz_ops"],
                name="job_final_of_dag",
                condition=_FINAL,
            ),
            models.Index(fields=["run_id"], opclasses=["text_pattern_ops"], name="job_final_of_run", condition=_FINAL),
            models.Index(
                fields=["task_id"], opclasses=["text_pattern_ops"], name="job_final_of_task", condition=_FINAL
            ),
        ]

    def __str__(self) -> str:
        if not self.dag_id:
            return f"{self.kind} {self.id}"
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id}.{self.task_id}{mapped} try {self.try_number}"


class LogChunk(models.Model):
    """Bytes of one attempt's log from `offset` on. Attempt 0 is what Airflow's own side wrote."""

    pk = models.CompositePrimaryKey("job_id", "attempt", "offset")
    # The database itself deletes a log with its job, whoever deletes that; see the first migration.
    job = models.ForeignKey(Job, on_delete=models.DO_NOTHING, db_index=False, db_constraint=False)
    attempt = models.IntegerField()
    offset = models.BigIntegerField()
    data = models.BinaryField()
    received_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "log_chunk"

    def __str__(self) -> str:
        return f"{self.job_id}.{self.attempt} from byte {self.offset}"
