"""A file for a credential: it is there before the credential is made, and only its owner can read it."""

from __future__ import annotations

import os
from pathlib import Path

from airflow_bridge.cli.endings import Failed


class SecretFile:
    """In a `with` block: a new file, of which nothing is left unless `keep` was called.

    Raises Failed when the file exists or cannot be made, so that no token is made that could not be stored.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = False

    def __enter__(self) -> SecretFile:
        try:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise Failed(f"{self.path} exists; name another file, or remove it") from None
        except OSError as error:
            raise Failed(f"cannot write {self.path}: {error.strerror}") from None
        return self

    def keep(self, text: str) -> None:
        """Write the credential and let the file stay. Raises Failed when that fails, though the credential exists."""
        self._kept = True
        try:
            os.write(self._descriptor, text.encode())
            os.fsync(self._descriptor)
        except OSError as error:
            raise Failed(
                f"the token was made but cannot be written to {self.path}: {error.strerror}; revoke it"
            ) from None

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        if not self._kept:
            self.path.unlink(missing_ok=True)
