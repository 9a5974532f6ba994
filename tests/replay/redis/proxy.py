"""Proxy between clients and a server, which cuts connections at chosen moments."""

import select
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path

MOMENTS = ("in the request", "before the reply", "in the reply")


class Proxy:
    """Proxy that listens on a unix socket, passes all data on to a server's, and cuts connections as told."""

    def __init__(self, target: str, path: Path) -> None:
        self.cuts: Iterator[str | None] = repeat(None)
        """Moments, one for each request, at which its connection is cut; None: not at all."""
        self.only = b""
        """Bytes that a request must contain to be cut; other requests, such as a handshake, always pass."""
        self.done: Counter[str] = Counter()
        """Number of cuts by moment."""
        self.hold = threading.Event()
        """Event that lets data pass while it is set."""
        self.hold.set()
        self.url = f"unix://{path}"
        self._target = target
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._open = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """End all connections."""
        self.hold.set()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with self._listener, suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self._target)
            moment: str | None = None
            while True:
                for end in select.select([client, server], [], [])[0]:
                    if not (data := end.recv(1 << 20)):
                        return None
                    self.hold.wait()
                    if end is client and self.only in data:
                        with self._lock:
                            moment = next(self.cuts)
                    if moment == ("in the request" if end is client else "in the reply"):
                        (server if end is client else client).sendall(data[: len(data) // 2])
                        return self._cut(moment)
                    if moment == "before the reply" and end is server:
                        return self._cut(moment)
                    (client if end is server else server).sendall(data)

    def _cut(self, moment: str) -> None:
        with self._lock:
            self.done[moment] += 1
