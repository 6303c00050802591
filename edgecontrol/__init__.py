"""The control plane's project package: settings, URLs, and what the two apps share at run time."""

from __future__ import annotations

__version__ = "0.1.0"
