"""The periodic step: release, show who is silent, end maintenance, give up what is lost, sample, delete what is old.

Runs in every process of the control plane; each part is an UPDATE that carries its own predicate, so
any number may run at once. Evidence before death: nothing is given up by silence unless the
silence is known to be the worker's and not our own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection, models
from django.db.models.functions import Now

from jobs_app import lifecycle
from jobs_app.models import Job, Queue
from jobs_app.states import HELD
from workers_app import registry, wishes
from workers_app.models import Worker
from workers_app.states import Reported

log = logging.getLogger(__name__)

#: Silence beyond the patience: by then a cut-off task has stopped itself.
LOST_MARGIN_SECONDS = 30
#: Whoever is silent for longer is given up, with however many others it fell silent.
FLEET_WINDOW = timedelta(hours=1)
_ALARM_EVERY_SECONDS = 60.0
SAMPLE_EVERY_MINUTES = 5
SAMPLES_KEPT_DAYS = 7
_SAMPLE_LOOK_SECONDS = 60.0


class Housekeeper:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stop = threading.Event()
        #: Since when every step found the database at hand and somebody of the fleet heard; None while not.
        self._heard_since: float | None = None
        #: When the fleet was looked at last, by our clock and by the database's.
        self._looked_at: tuple[float, datetime] | None = None
        self._alarmed_at = float("-inf")
        self._sampled_at = float("-inf")

    def start(self) -> None:
        threading.Thread(target=self._run, name="housekeeper", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(settings.EDGECONTROL.housekeeping_seconds):
            try:
                self.step()
            except (DatabaseError, InterfaceError) as error:
                self._heard_since = None
                log.warning("housekeeper: the database is away: %s", error)
            except Exception:
                log.exception("housekeeper: step failed")
            finally:
                connection.close()

    def step(self) -> None:
        """Do once what is due."""
        ours = settings.EDGECONTROL
        if released := lifecycle.release_unconfirmed(after_seconds=ours.release_after_seconds):
            log.warning("released %d claims that were not confirmed within %d s", released, ours.release_after_seconds)
        for name in registry.mark_silent(after_seconds=ours.silent_after_seconds):
            log.warning("worker %s is silent", name)
        for name in wishes.end_due_maintenance().done:
            log.info("the maintenance of worker %s has ended: its end time has come", name)
        if self._clock() - self._sampled_at >= _SAMPLE_LOOK_SECONDS:
            self._sampled_at = self._clock()
            registry.sample(every_minutes=SAMPLE_EVERY_MINUTES, keep_days=SAMPLES_KEPT_DAYS)
            Queue.objects.remember_served()
        self._give_up_lost()
        if deleted := lifecycle.purge(older_than_days=ours.retention_days):
            log.info("deleted %d jobs older than %d days", deleted, ours.retention_days)

    def _give_up_lost(self) -> None:
        """Give up the jobs of workers that stayed silent while others were heard for a full patience.

        Silence is measured against the newest heartbeat of the whole fleet, not against the wall
        clock. While nobody at all is heard the fault is ours, and afterwards everybody has a full patience to call.
        """
        ours = settings.EDGECONTROL
        # One that said goodbye counts as long as it holds something.
        holding = Job.objects.filter(worker=models.OuterRef("pk"), state__in=HELD)
        talkative = Worker.objects.filter(~models.Q(reported=Reported.OFFLINE) | models.Exists(holding)).values_list(
            "pk", "last_heartbeat", Now()
        )
        fleet = [(pk, heard, now) for pk, heard, now in talkative if heard is not None]
        newest = max((heard for _, heard, _ in fleet), default=None)
        if newest is None:
            self._heard_since = None
            return
        now = fleet[0][2]
        if self._stood_still(now) or now - newest > timedelta(seconds=ours.silent_after_seconds):
            self._heard_since = None
            return
        if self._heard_since is None:
            self._heard_since = self._clock()
        if self._clock() - self._heard_since < ours.outage_patience_seconds:
            return
        silences = {pk: newest - heard for pk, heard, _ in fleet}
        limit = ours.outage_patience_seconds + LOST_MARGIN_SECONDS
        given_up = [
            pk
            for pk, silence in silences.items()
            if silence > timedelta(seconds=limit) and not self._fell_with_most(silence, silences.values())
        ]
        if not given_up:
            return
        if lost := lifecycle.lose_silent(worker_ids=given_up, silent_seconds=limit):
            log.warning("gave up %d jobs of workers that were silent for more than %d s", lost, limit)

    def _stood_still(self, now: datetime) -> bool:
        """Whether this process or the database hung since the last look, or a clock jumped: nobody was listened to."""
        before, self._looked_at = self._looked_at, (self._clock(), now)
        if before is None:
            return False
        ours = self._looked_at[0] - before[0]
        theirs = (now - before[1]).total_seconds()
        limit = max(settings.EDGECONTROL.silent_after_seconds, 3 * settings.EDGECONTROL.housekeeping_seconds)
        return max(ours, theirs) > limit

    def _fell_with_most(self, silence: timedelta, silences: Collection[timedelta]) -> bool:
        """Whether this worker fell silent together with more workers than are still heard.

        That is a fault of ours or of the network: raise an alarm, give up nothing.
        """
        if silence > FLEET_WINDOW:
            return False
        quiet, patience = (
            timedelta(seconds=settings.EDGECONTROL.silent_after_seconds),
            timedelta(seconds=settings.EDGECONTROL.outage_patience_seconds),
        )
        fell = sum(other > quiet and abs(other - silence) <= patience for other in silences)
        heard = sum(other <= quiet for other in silences)
        if fell <= heard:
            return False
        if self._clock() - self._alarmed_at >= _ALARM_EVERY_SECONDS:
            self._alarmed_at = self._clock()
            log.error(
                "%d of %d workers fell silent at once: nothing is given up; check the way to them",
                fell,
                fell + heard,
            )
        return True
