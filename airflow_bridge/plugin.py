"""The links in Airflow's Admin menu and where they lead; no page is served here, and nothing here ever raises."""

from __future__ import annotations

import logging
from functools import cached_property

from airflow.plugins_manager import AirflowPlugin

from airflow_bridge import config

log = logging.getLogger(__name__)

#: Name in the menu, and path below the control plane's address.
LINKS = {
    "Edge Worker Hosts": "/admin/workers_app/worker/",
    "Edge Worker Jobs": "/admin/jobs_app/job/",
}


class EdgeControlPlugin(AirflowPlugin):
    """Found by the entry point `airflow.plugins` alone.

    What provider info lists under `plugins` is loaded only without [core] lazy_discover_providers, and would then be
    a second one of this name, which Airflow reports as an import error.
    """

    name = "edgecontrol"

    @cached_property
    def external_views(self) -> list[dict[str, str]]:
        """The links; none while nobody has said where the control plane is, or has said it wrongly.

        Made when Airflow's UI first asks, and the same list ever after: every process of Airflow loads plugins,
        each task's too, and must neither read this setting nor complain about it.
        """
        try:
            url = config.control_plane_url()
            complaint = config.url_complaint(url) if url else None
        except Exception as error:  # a setting can be a command or a secret to fetch: anything may go wrong
            url, complaint = "", f"[{config.SECTION}] control_plane_url cannot be read: {error}"
        if complaint:
            log.warning("EdgeControl: no links in Airflow's Admin menu: %s", complaint)
        # No `url_route`: with one, Airflow shows the page in a frame, which the Django admin forbids; without, the
        # menu item is a link that opens a tab.
        return [
            {"name": name, "href": url + path, "destination": "nav", "category": "admin"}
            for name, path in LINKS.items()
            if url and not complaint
        ]
