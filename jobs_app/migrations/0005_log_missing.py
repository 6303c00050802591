from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs_app', '0004_log_paths'),
    ]

    operations = [
        migrations.AddField(
            model_name='job',
            name='log_full',
            field=models.BooleanField(db_default=False),
        ),
        migrations.AddField(
            model_name='job',
            name='log_trouble',
            field=models.TextField(blank=True, db_default=''),
        ),
    ]
