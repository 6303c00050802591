"""What the running agent answers to the commands of its machine: how it is, that it will end, rest or work."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from agent.status import status
from agent.wishes import ACTIVE, MACHINE, MAINTENANCE

if TYPE_CHECKING:
    from agent.worker import Worker

log = logging.getLogger("agent")


def answer(worker: Worker, question: dict[str, Any]) -> dict[str, Any]:
    """Carry out what the question wants and answer it; what is not understood is answered with `error`."""
    wanted = question.get("op")
    if wanted == "status":
        return status(worker)
    if wanted == "stop":
        log.info("somebody at the machine ends the agent%s", " and its jobs" if question.get("force") else "")
        worker.stop(force=bool(question.get("force")))
        return status(worker)
    if wanted == "maintenance" and question.get("requested") in (ACTIVE, MAINTENANCE):
        comment = str(question.get("comment") or "")
        log.info("somebody at the machine wants it %s: %s", question["requested"], comment or "(no comment)")
        worker.wishes.wish(question["requested"], comment, by=MACHINE)
        return status(worker)
    return {"error": f"it does not know what {wanted!r} means: start it anew after an update"}
