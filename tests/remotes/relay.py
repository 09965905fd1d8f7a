"""A relay before a server, which can cut it off in mid-transfer."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class Relay:
    """Passes connections to `port` of this machine on, until it is told to cut them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._left: float = float("inf")
        self._then: Callable[[], None] | None = None
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.own_port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, sent: int, then: Callable[[], None] | None = None) -> None:
        """After `sent` more bytes to the server call `then`, end all connections and take no more."""
        self._left, self._then = sent, then

    def restore(self, port: int) -> None:
        """Pass connections on again, to `port`."""
        self.port, self._left = port, float("inf")

    @property
    def is_cut(self) -> bool:
        return self._left <= 0

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.port)) if not self.is_cut else None
            except OSError:
                server = None
            if server is None:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
                )  # small answers, which would wait for each other
            self._open += [client, server]
            for source, target, counts in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=(source, target, counts), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                if counts and self._is_past(len(data)):
                    return
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _is_past(self, sent: int) -> bool:
        """Count what is sent; who comes to the end cuts."""
        with self._lock:
            if self.is_cut:
                return True
            self._left -= sent
            if self.is_cut:
                if self._then:
                    self._then()
                for end in self._open:
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                self._open.clear()
            return self.is_cut
