"""The three groups that a fresh database has, and what each may do."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command

from edgecontrol.groups import ADMINISTRATOR, OPERATOR, VIEWER
from jobs_app import operations as jobs_operations
from workers_app import operations

EVERY = {operation.permission for operation in (*operations.WORKERS, *jobs_operations.QUEUES, *jobs_operations.JOBS)}


def permissions(group: str) -> set[str]:
    user = User.objects.create_user(f"of-{group}")
    user.groups.add(Group.objects.get(name=group))
    return user.get_all_permissions()


@pytest.mark.usefixtures("db")
class TestGroups:
    def test_a_viewer_sees_everything_of_the_fleet_and_changes_nothing(self) -> None:
        seen = permissions(VIEWER)
        assert {
            "workers_app.view_worker",
            "workers_app.view_change",
            "jobs_app.view_job",
            "jobs_app.view_queue",
        } <= seen
        assert all(name.split(".")[1].startswith("view_") for name in seen)

    def test_an_operator_does_the_daily_work(self) -> None:
        assert permissions(OPERATOR) - permissions(VIEWER) == {
            "workers_app.operate_worker",
            "workers_app.add_enrolmenttoken",
            "jobs_app.operate_queue",
            "jobs_app.revoke_job",
        }

    def test_an_administrator_may_do_every_operation_and_look_after_people(self) -> None:
        assert permissions(ADMINISTRATOR) >= {*permissions(OPERATOR), *EVERY, "auth.add_user", "auth.change_group"}

    def test_a_later_migration_leaves_groups_as_people_have_made_them(self) -> None:
        group = Group.objects.get(name=VIEWER)
        group.permissions.set(Permission.objects.filter(codename="view_job"))
        call_command("migrate", verbosity=0)
        assert [permission.codename for permission in group.permissions.all()] == ["view_job"]
