"""One module per command of the agent: its help, its flags, and whom it calls; `agent.cli` knows them all."""

from __future__ import annotations
