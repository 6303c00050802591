"""Admin pages of users and groups. What a group may do is decided in `groups`; rights come from groups alone.

Somebody who looks after users never gets beyond their own rights by it: superusers are made and changed by superusers.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission, User
from django.db.models import Count, Field, ManyToManyField, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from edgecontrol.groups import ADMINISTRATOR, GROUPS, OPERATOR, VIEWER
from workers_app.admin_words import moment
from workers_app.models import PersonalToken

#: What each of our groups may do, for those who choose one.
MAY = {
    VIEWER: "sees worker hosts, jobs and their logs, queues and the record of changes; changes nothing.",
    OPERATOR: "also puts worker hosts into maintenance, shuts them down, sets their queues and concurrency, "
    "pauses and limits queues, revokes jobs, and connects machines.",
    ADMINISTRATOR: "also removes worker hosts, revokes their tokens, and looks after users, groups and all tokens.",
}


class GroupChoice(forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    """Groups, each with what it may do."""

    def label_from_instance(self, group: Any) -> str:
        if group.name not in MAY:
            return str(group.name)
        return format_html("<strong>{}</strong> {}", group.name, MAY[group.name])


class PermissionChoice(forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    def label_from_instance(self, permission: Any) -> str:
        return str(permission.name)


admin.site.unregister([User, Group])


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):  # type: ignore[misc,type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "full_name", "groups_of", "is_active", "seen")
    list_filter = ("is_active", "is_superuser", "groups")
    ordering = ("username",)
    filter_horizontal = ()
    compressed_fields = False
    warn_unsaved_form = True
    readonly_fields = ("last_login", "date_joined")
    _RIGHTS = ("groups", "is_active", "is_staff", "is_superuser")
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Rights", {"fields": _RIGHTS}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = (
        (None, {"fields": ("username", "password1", "password2")}),
        ("Rights", {"fields": _RIGHTS}),
    )

    @admin.display(description="name")
    def full_name(self, user: User) -> str:
        return user.get_full_name()

    @admin.display(description="groups")
    def groups_of(self, user: User) -> str:
        return ", ".join((["superuser"] if user.is_superuser else []) + [group.name for group in user.groups.all()])

    @admin.display(description="last login", ordering="last_login")
    def seen(self, user: User) -> SafeString:
        return moment(user.last_login, never="never")

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        users: QuerySet[User] = super().get_queryset(request)
        return users.prefetch_related("groups")

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        # Whoever may not log in here can do nothing at all.
        return {"is_staff": True, **super().get_changeform_initial_data(request)}

    def formfield_for_manytomany(
        self, db_field: ManyToManyField[Any, Any], request: HttpRequest | None = None, **kwargs: Any
    ) -> forms.ModelMultipleChoiceField[Any] | None:
        return db_field.formfield(  # type: ignore[return-value]
            form_class=GroupChoice, widget=UnfoldAdminCheckboxSelectMultipleWidget, help_text=""
        )

    def formfield_for_dbfield(self, db_field: Field[Any, Any], request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if field is not None and db_field.name in _HELP:
            field.label, field.help_text = _HELP[db_field.name]
        if field is not None and db_field.name == "groups":
            # Groups are made on a page of their own.
            field.widget.can_add_related = False
        return field

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[str, ...]:
        return self.readonly_fields if request.user.is_superuser else (*self.readonly_fields, "is_superuser")

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return _may_touch(request, obj) and bool(super().has_change_permission(request, obj))

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return _may_touch(request, obj) and bool(super().has_delete_permission(request, obj))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> tuple[Any, Any, set[str], Any]:
        named, counts, lacking, protected = super().get_deleted_objects(objs, request)
        # Nobody deletes a token by itself, which is revoked; but it goes with its owner.
        return named, counts, lacking - {PersonalToken._meta.verbose_name}, protected


_HELP = {
    "is_active": ("Active", "Without it the account opens nothing; better than deleting somebody."),
    "is_staff": ("May log in", "Here, and at the API for people and scripts."),
    "is_superuser": ("Superuser", "May do everything, whatever the groups say."),
}


def _may_touch(request: HttpRequest, user: User | None) -> bool:
    return user is None or not user.is_superuser or bool(request.user.is_superuser)


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):  # type: ignore[misc]
    list_display = ("name", "may", "members")
    filter_horizontal = ()
    compressed_fields = False
    warn_unsaved_form = True

    @admin.display(description="may")
    def may(self, group: Group) -> str:
        return MAY.get(group.name, "")

    @admin.display(description="members", ordering="members")
    def members(self, group: Any) -> int:
        return int(group.members)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Group]:
        groups: QuerySet[Group] = super().get_queryset(request)
        return groups.annotate(members=Count("user"))

    def formfield_for_manytomany(
        self, db_field: ManyToManyField[Any, Any], request: HttpRequest | None = None, **kwargs: Any
    ) -> forms.ModelMultipleChoiceField[Any] | None:
        # Only what has an effect: nobody adds a worker or deletes a job by hand, whatever they are permitted.
        permissions = Permission.objects.filter(reduce(or_, GROUPS.values())).order_by(
            "-content_type__app_label", "content_type", "codename"
        )
        return db_field.formfield(  # type: ignore[return-value]
            form_class=PermissionChoice,
            queryset=permissions,
            widget=UnfoldAdminCheckboxSelectMultipleWidget,
            help_text="",
        )
