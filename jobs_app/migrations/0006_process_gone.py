from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs_app", "0005_log_missing")]

    operations = [
        migrations.AddField(
            model_name="job",
            name="process_gone",
            field=models.BooleanField(db_default=False, editable=False),
        ),
    ]
