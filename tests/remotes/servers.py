"""A server for DVC remotes in a process of its own: `python servers.py s3|ssh|webdav FOLDER`, which prints its port.

It keeps what it is sent in FOLDER (S3: in memory), and listens on loopback, on a port that was free.
"""

import asyncio
import sys
from pathlib import Path

USER, PASSWORD = "alice", "correct horse"
BUCKET = "models"


def ready(port: int) -> None:
    print(port, flush=True)


def s3(folder: Path) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    ready(server.server_port)
    server.serve_forever()


def ssh(folder: Path) -> None:
    import asyncssh

    class Password(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return True

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == (USER, PASSWORD)

    async def serve() -> None:
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Password,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(folder).encode()),
        )
        ready(server.get_port())
        await server.wait_closed()

    asyncio.run(serve())


def webdav(folder: Path) -> None:
    from cheroot.wsgi import Server
    from wsgidav.wsgidav_app import WsgiDAVApp

    app = WsgiDAVApp(
        {
            "provider_mapping": {"/": str(folder)},
            "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
            "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
            "verbose": 0,
        }
    )
    server = Server(("127.0.0.1", 0), app)
    server.prepare()
    ready(server.bind_addr[1])
    server.serve()


if __name__ == "__main__":
    {"s3": s3, "ssh": ssh, "webdav": webdav}[sys.argv[1]](Path(sys.argv[2]))
