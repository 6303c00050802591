from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs_app", "0007_storable_rows")]

    operations = [
        migrations.AddField(
            model_name="job",
            name="token_until",
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="job",
            name="first_failed_start_at",
            field=models.DateTimeField(editable=False, null=True),
        ),
    ]
