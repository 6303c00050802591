"""`doctor`: a module for each side that it looks at, `checks` for their order, `look` for inside a task interpreter."""

from __future__ import annotations
