"""Python runs this at its start, where this folder is on PYTHONPATH: every try to reach another machine is noted in the
file that NETWORK_TRIES names, a swallowed one too."""

import contextlib
import ipaddress
import os
import sys

_LOG = os.environ["NETWORK_TRIES"]


def _is_local(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if not isinstance(name, str) or name in ("", "localhost"):  # a socket of this machine's own kind, or none named
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name.split("%")[0]).is_loopback
    return False


def _note(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if not _is_local(host):
        with open(_LOG, "a") as log:
            log.write(f"{event} {host!r} by {sys.argv}\n")


sys.addaudithook(_note)
