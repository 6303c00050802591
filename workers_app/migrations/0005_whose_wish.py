from django.db import migrations, models

# Until now only operators had wishes, and the control plane itself when an end time had come.
_WHOSE = """
UPDATE worker SET requested_by_kind = CASE requested_by WHEN 'control plane' THEN 'automatic' ELSE 'operator' END
 WHERE requested_by <> ''
"""


class Migration(migrations.Migration):
    dependencies = [
        ("workers_app", "0004_replaced_session"),
    ]

    operations = [
        migrations.AddField(
            model_name="worker",
            name="heard_wish",
            field=models.UUIDField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="worker",
            name="requested_by_kind",
            field=models.TextField(
                blank=True,
                choices=[("operator", "operator"), ("machine", "machine"), ("automatic", "automatic")],
                db_default="",
            ),
        ),
        migrations.RunSQL(_WHOSE, migrations.RunSQL.noop),
        migrations.AddConstraint(
            model_name="worker",
            constraint=models.CheckConstraint(
                condition=models.Q(("requested_by_kind__in", ["", "operator", "machine", "automatic"])),
                name="worker_requested_by_known",
            ),
        ),
    ]
