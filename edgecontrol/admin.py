"""The admin pages that belong to no app of the fleet."""

from __future__ import annotations

from edgecontrol import people_admin as people_admin
