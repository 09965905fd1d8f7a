"""Serve fine-tuned models by OpenAI's API, all adapters over one base in memory."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence

from finetune import cli
from finetune.errors import UserError

_KEY = "FINETUNE_API_KEY"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted. Raises UserError for an address that can't be had, or a model that can't be loaded."""
    parser = cli.parser(__doc__, prog="finetune serve", epilog=f"A key for clients is read from {_KEY}.")
    parser.add_argument(
        "--ckpt",
        type=cli.source,
        nargs="+",
        default=["workspace"],
        metavar="NAME",
        help=f"the models, each {cli.CHECKPOINTS}; base is added",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=cli.port, default=8000, help="(%(default)s)")
    parser.add_argument(
        "--max_new_tokens", type=cli.count, default=1024, metavar="N", help="tokens of an answer at most (%(default)s)"
    )
    parser.add_argument(
        "--at_a_time", type=cli.count, default=16, metavar="N", help="requests answered at a time (%(default)s)"
    )
    parser.add_argument(
        "--queue", type=cli.count, default=64, metavar="N", help="further requests that may wait (%(default)s)"
    )
    args = parser.parse_args(arguments)
    key = os.environ.get(_KEY) or None
    _check_key(args.host, key)
    listening = _listen(args.host, args.port)

    try:
        import uvicorn

        from finetune.serving.server import app
        from finetune.web import page
    except ModuleNotFoundError as missing:
        raise UserError(f"{missing.name} isn't installed: pip install 'finetune[serve]', or run make setup") from None

    from finetune import device
    from finetune.serving.worker import worker_of

    with device.enough_memory("name fewer models, or a smaller base"):
        worker = worker_of(args.ckpt, args.at_a_time, args.at_a_time + args.queue)
    served = app(worker, key, args.max_new_tokens, page.routes(worker, key, args.max_new_tokens))
    config = uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=2)
    host = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{host}:{listening.getsockname()[1]}"
    print(f"serving {', '.join(worker.names)}: page at {address}, API at {address}/v1", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # after the server has ended what it was doing
        print("stopped")
    finally:
        worker.close()


def _check_key(host: str, key: str | None) -> None:
    """Raise UserError if others could reach the server, and no key is asked of them."""
    try:
        own = ipaddress.ip_address(host).is_loopback
    except ValueError:
        own = host == "localhost"
    if not own and not key:
        raise UserError(
            f"--host: {host} can be reached by others; set {_KEY} to a key that they must send, or listen on 127.0.0.1"
        )


def _listen(host: str, port: int) -> socket.socket:
    """A socket on that address, had before anything is loaded."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"--host, --port: can't listen on {host}:{port} ({error.strerror}); give another one") from None
