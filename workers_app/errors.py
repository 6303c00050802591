"""What every refusal has in common: a stable code for machines and a sentence for people."""

from __future__ import annotations


class Refusal(Exception):
    """A request that the rules do not allow. The docstring of each kind is its default sentence."""

    code = "refused"

    def __init__(self, detail: str = "", **extra: object) -> None:
        self.detail = detail or " ".join((self.__doc__ or "").split())
        #: Further fields of the API's answer.
        self.extra = extra
        super().__init__(self.detail)
