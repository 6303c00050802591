"""Who does things in tests."""

from __future__ import annotations

from workers_app.audit import Actor, ActorKind

OPS = Actor(kind=ActorKind.PERSON, name="ops", origin="127.0.0.1")
