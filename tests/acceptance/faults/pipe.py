"""A TCP line to a PostgreSQL server that can be cut or go dead; bytes are never looked at."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

BLOCK = 65536


class Pipe:
    """Listens on loopback and carries each connection to the server's Unix socket."""

    def __init__(self, *, target: Path) -> None:
        self.target = target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._losing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait(10)

    def freeze(self) -> None:
        """Swallow everything: connections stay open, nobody answers."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def thaw(self) -> None:
        """Carry on where it stopped."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def cut(self) -> None:
        """Break every open connection; new ones are carried."""
        self._loop.call_soon_threadsafe(self._break)

    def lose_answer(self) -> None:
        """Break the next connection on which the server answers, before anybody has heard a word of it."""
        self._loop.call_soon_threadsafe(self._losing.set)

    @property
    def lost(self) -> bool:
        """Whether the answer that was to be lost has been."""
        return not self._losing.is_set()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _break(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port: int = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        try:
            their_reader, their_writer = await asyncio.open_unix_connection(str(self.target))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, their_writer}
        try:
            await asyncio.gather(self._copy(reader, their_writer), self._copy(their_reader, writer, answers=True))
        finally:
            self._writers -= {writer, their_writer}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(BLOCK):
                await self._flowing.wait()
                if answers and self._losing.is_set():
                    self._losing.clear()
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()
        writer.close()
