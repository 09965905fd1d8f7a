"""A Hugging Face Hub on loopback, as much of it as uploading needs: who is there, a repository, its files in a commit."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from finetune import yaml_file

LICENCES = {"apache-2.0", "mit", "cc-by-nc-4.0", "other"}
TOKENS = {"hf_write": "write", "hf_read": "read"}


@dataclass
class Uploads:
    """What reached the hub."""

    endpoint: str
    folder: Path
    """A folder for each repository that was made, with the files of its last commit."""
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve(folder: Path, refuse: str = ""):
    """Take uploads into `folder`; a request whose path holds `refuse` is answered by 403. Yields `Uploads`.

    'hf_write' and 'hf_read' are the tokens of the user 'me', who belongs to the organisation 'org'. A card is taken if
    its front matter is YAML, with a licence of the Hub's, and ids where ids belong.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(b"")

        def do_POST(self):
            self._answer(self._body())

        def do_PUT(self):
            self._answer(self._body())

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, body: bytes):
            path = self.path.split("?")[0]
            uploads.requests.append(f"{self.command} {path}")
            role = TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
            if refuse and refuse in path:
                return self._send(403, {"error": "You don't have the rights to do this"})
            if path.startswith("/stored/"):
                (lfs / path.rpartition("/")[2]).write_bytes(body)
                return self._send(200, {})
            if role is None:
                return self._send(401, {"error": "Invalid username or password."})
            if path == "/api/whoami-v2":
                return self._send(
                    200, {"name": "me", "orgs": [{"name": "org"}], "auth": {"accessToken": {"role": role}}}
                )
            if path == "/api/repos/create":
                told = json.loads(body)
                name = f"{told.get('organization') or 'me'}/{told['name']}"
                (folder / name).mkdir(parents=True, exist_ok=True)
                return self._send(200, {"url": f"{uploads.endpoint}/{name}"})
            if path == "/api/validate-yaml":
                errors = card_errors(json.loads(body)["content"])
                return self._send(400 if errors else 200, {"errors": errors, "warnings": []})
            if "/preupload/" in path:
                files = [
                    {"path": told["path"], "uploadMode": mode(told["path"]), "shouldIgnore": False}
                    for told in json.loads(body)["files"]
                ]
                return self._send(200, {"files": files})
            if path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**told, "actions": {"upload": {"href": f"{uploads.endpoint}/stored/{told['oid']}"}}}
                    for told in json.loads(body)["objects"]
                ]
                return self._send(200, {"transfer": "basic", "objects": objects})
            if "/commit/" in path:
                name = "/".join(path.split("/")[3:5])
                self._commit(folder / name, body)
                return self._send(200, {"commitUrl": f"{uploads.endpoint}/{name}/commit/1", "commitOid": "1" * 40})
            return self._send(404, {"error": f"nothing at {path}"})

        def _commit(self, target: Path, body: bytes):
            for line in body.splitlines():
                told = json.loads(line)
                value = told["value"]
                if told["key"] == "file":
                    content = base64.b64decode(value["content"])
                elif told["key"] == "lfsFile":
                    content = (lfs / value["oid"]).read_bytes()
                    assert hashlib.sha256(content).hexdigest() == value["oid"]
                else:
                    continue
                (target / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                (target / value["path"]).write_bytes(content)

        def _send(self, status: int, told: dict):
            content = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    uploads = Uploads(f"http://127.0.0.1:{server.server_port}", folder)
    lfs = folder / ".lfs"
    lfs.mkdir(parents=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield uploads
    finally:
        server.shutdown()
        server.server_close()


def mode(path: str) -> str:
    """How the Hub wants a file: large ones apart."""
    return "lfs" if path.endswith((".safetensors", ".gguf")) else "regular"


def card_errors(content: str) -> list[dict]:
    """What is wrong with a card's front matter, by the rules of the Hub's metadata."""
    parts = content.split("---\n")
    if len(parts) < 3 or parts[0]:
        return [{"message": "no front matter"}]
    told = yaml_file.parse(parts[1])
    wrong = []
    if told.get("license", "mit") not in LICENCES:
        wrong.append(f'"license" must be one of the known ones, got {told["license"]}')
    if told.get("license") == "other" and not told.get("license_name"):
        wrong.append('"license_name" is needed beside "license: other"')
    wrong += [
        f'"{key}" holds {name!r}, which is no id'
        for key in ("base_model", "datasets")
        for name in ([told[key]] if isinstance(told.get(key), str) else told.get(key) or [])
        if not 1 <= len(name.split("/")) <= 2 or " " in name
    ]
    return [{"message": message} for message in wrong]
