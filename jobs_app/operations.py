"""Every operation on jobs and queues, once, as in `workers_app.operations`."""

from __future__ import annotations

from jobs_app import lifecycle, queues
from workers_app.operations import Kind, Operation, Parameter

_COMMENT = Parameter(name="comment", kind=Kind.COMMENT, help="Why, for those who look later.")
_OPERATE_QUEUE = "jobs_app.operate_queue"

PAUSE_QUEUE = Operation(
    name="pause_queue",
    label="Pause",
    help="No more jobs of the queue are handed out; those on workers go on.",
    icon="pause",
    permission=_OPERATE_QUEUE,
    call=queues.pause,
    parameters=(Parameter(name="comment", kind=Kind.COMMENT, help="Why; waiting jobs show it.", required=True),),
)
RESUME_QUEUE = Operation(
    name="resume_queue",
    label="Resume",
    help="Jobs of the queue are handed out again, at once.",
    icon="play_arrow",
    permission=_OPERATE_QUEUE,
    call=queues.resume,
    parameters=(_COMMENT,),
)
SET_QUEUE_CONCURRENCY = Operation(
    name="set_queue_concurrency",
    label="Set concurrency limit",
    help="How many slots the queue's jobs may fill at once over all workers; empty takes the limit away.",
    icon="speed",
    permission=_OPERATE_QUEUE,
    call=queues.set_limit,
    parameters=(Parameter(name="concurrency", kind=Kind.SLOTS, help="Slots from 1, or nothing."),),
)
REVOKE_JOB = Operation(
    name="revoke_job",
    label="Revoke",
    help="A waiting job is withdrawn at once, a held one when its worker has stopped it. Airflow counts it as failed.",
    icon="block",
    permission="jobs_app.revoke_job",
    call=lifecycle.revoke,
    parameters=(_COMMENT,),
    grave=True,
)

QUEUES = (PAUSE_QUEUE, RESUME_QUEUE, SET_QUEUE_CONCURRENCY)
JOBS = (REVOKE_JOB,)
