"""What came of an operation on many subjects: those it was done to, and those it skipped, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """Names as people know them. Nothing done and nothing skipped means that nothing was named."""

    done: list[str] = field(default_factory=list)
    #: (name, why).
    skipped: list[tuple[str, str]] = field(default_factory=list)
    #: The primary keys of `done` and of `skipped`, in the same order; only where names do not tell subjects apart.
    done_ids: list[Any] = field(default_factory=list)
    skipped_ids: list[Any] = field(default_factory=list)

    def skip(self, name: str, why: str, *, id: Any = None) -> None:
        self.skipped.append((name, why))
        if id is not None:
            self.skipped_ids.append(id)

    def sentence(self, what: str) -> str:
        """For people: `Request maintenance: 2 done, 1 skipped (press-7: it is offline).`"""
        text = f"{what}: {len(self.done)} done"
        if self.skipped:
            shown = [f"{name}: {why}" for name, why in self.skipped[:10]]
            if len(self.skipped) > len(shown):
                shown.append(f"and {len(self.skipped) - len(shown)} more")
            text += f", {len(self.skipped)} skipped ({'; '.join(shown)})"
        return f"{text}."
