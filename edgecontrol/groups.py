"""The three groups of people and what each may do; made by `migrate` where they are missing, never changed after."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib.auth.management import create_permissions
from django.contrib.auth.models import Group, Permission
from django.db.models import Q

VIEWER, OPERATOR, ADMINISTRATOR = "viewer", "operator", "administrator"

_FLEET = ("workers_app", "jobs_app")
_OPERATE = ("operate_worker", "operate_queue", "revoke_job", "add_enrolmenttoken")
_ADMINISTER = ("add_worker", "add_workertoken", "remove_worker", "revoke_workertoken")

#: Group -> which permissions; each has those of the ones before it.
GROUPS: dict[str, Q] = {
    VIEWER: Q(content_type__app_label__in=_FLEET, codename__startswith="view_"),
    OPERATOR: Q(content_type__app_label__in=_FLEET, codename__in=_OPERATE),
    ADMINISTRATOR: Q(content_type__app_label__in=_FLEET, codename__in=_ADMINISTER)
    | Q(content_type__app_label="auth", content_type__model__in=["user", "group"])
    | Q(content_type__app_label="workers_app", content_type__model="personaltoken"),
}


def make_groups(**_: Any) -> None:
    """After migrations: make each group that is missing. One that exists belongs to the people who run it."""
    # Django makes permissions after migrations too, and which of the two comes first is nobody's promise.
    for label in ("auth", *_FLEET):
        create_permissions(apps.get_app_config(label), verbosity=0)
    may = Q()
    for name, further in GROUPS.items():
        may |= further
        group, created = Group.objects.get_or_create(name=name)
        if created:
            group.permissions.set(Permission.objects.filter(may))
