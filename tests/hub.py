"""A Hugging Face Hub on loopback, as much of it as fetching needs."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1234567890abcdef1234567890abcdef12345678"


@contextmanager
def serve(repositories: dict[str, Path]):
    """Serve folders as repositories ('models/org/name' or 'datasets/org/name'); yield the endpoint's URL.

    A folder named 'gated' answers as a repository whose terms were not accepted.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(body=True)

        def do_HEAD(self):
            self._answer(body=False)

        def _answer(self, body: bool):
            parts = self.path.split("?")[0].strip("/").split("/")
            api = parts[0] == "api"
            parts = parts[1:] if api else parts if parts[0] == "datasets" else ["models", *parts]
            folder = repositories.get("/".join(parts[:3]))
            if folder is None or parts[4:5] == ["no-such-revision"]:
                code = "RevisionNotFound" if folder else "RepoNotFound"
                return self._send(404, b"", body, {"X-Error-Code": code})
            if folder.name == "gated":
                return self._send(403, b"", body, {"X-Error-Code": "GatedRepo"})
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            if api and "tree" in parts:
                listing = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in files]
                return self._send(200, json.dumps(listing).encode(), body, {"Content-Type": "application/json"})
            if api:
                info = {"id": "/".join(parts[1:3]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                return self._send(200, json.dumps(info).encode(), body, {"Content-Type": "application/json"})
            path = folder / "/".join(parts[5:])
            if not path.is_file():
                return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            content = path.read_bytes()
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self._send(200, content, body, {"ETag": etag, "X-Repo-Commit": COMMIT})

        def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str]):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
