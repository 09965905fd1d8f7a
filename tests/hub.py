"""A Hugging Face Hub on loopback, as much of it as fetching needs: repositories by commit, small files, large files on
another path that takes up a cut download, gated repositories; and a line that can be made to fail."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1234567890abcdef1234567890abcdef12345678"
LARGE = (".safetensors", ".parquet", ".bin")
"""What the Hub keeps apart from Git, and knows by its SHA-256."""
BLOCK = 2**20

Repositories = Mapping[str, Path | dict[str, Path]]
"""'models/owner/name' or 'datasets/owner/name' -> its folder, at `COMMIT`; or a folder for each commit, oldest first, of
which 'main' is the last. A folder called 'gated' belongs to a repository whose terms were not accepted."""


@dataclass
class Refusal:
    """Requests whose path holds `path` are answered by `status`, so many `times`."""

    path: str
    status: int
    times: int = 10**9
    headers: dict[str, str] = field(default_factory=lambda: {"Retry-After": "0"})


@dataclass
class Hub:
    """The Hub as it stands; what fails may be changed while it runs."""

    repositories: dict[str, dict[str, Path]]
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    """'GET /path', with ' bytes=5-' behind it where a part was asked for."""
    cuts: list[tuple[str, int]] = field(default_factory=list)
    """(name, bytes): the next answer with that file ends after so many bytes."""
    after_cut: list[Refusal] = field(default_factory=list)
    """What is refused from then on."""
    refusals: list[Refusal] = field(default_factory=list)
    spoilt: set[str] = field(default_factory=set)
    """Files that come with a byte turned over."""
    claimed: dict[str, int] = field(default_factory=dict)
    """Sizes that files are said to have."""
    also_listed: list[dict] = field(default_factory=list)
    """Files that are said to be there."""

    def found(self, repository: str, revision: str) -> tuple[str, Path] | None:
        """The commit that `revision` stands for, and its folder."""
        commits = self.repositories[repository]
        commit = list(commits)[-1] if revision == "main" else revision
        return (commit, commits[commit]) if commit in commits else None

    def refusal(self, path: str) -> Refusal | None:
        """The one that this request meets, which it uses up once."""
        for refusal in self.refusals:
            if refusal.path in path and refusal.times:
                refusal.times -= 1
                return refusal
        return None

    def cut(self, name: str) -> int | None:
        """After how many bytes the answer with this file ends."""
        for each in self.cuts:
            if each[0] == name:
                self.cuts.remove(each)
                self.refusals += self.after_cut
                return each[1]
        return None


@contextmanager
def serve(repositories: Repositories) -> Iterator[Hub]:
    """Serve `repositories` until the block ends."""
    served = {name: {COMMIT: it} if isinstance(it, Path) else it for name, it in repositories.items()}
    hub = Hub(served)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        part = self.headers.get("Range")
        self.hub.requests.append(f"GET {self.path}" + (f" {part}" if part else ""))
        self._answer()

    def do_HEAD(self) -> None:
        self.hub.requests.append(f"HEAD {self.path}")
        self._answer()

    def _answer(self) -> None:
        if refusal := self.hub.refusal(self.path):
            return self._send(refusal.status, headers=refusal.headers)
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            return self._describe("/".join(parts[1:4]), parts[4:])
        if parts[0] != "datasets":
            parts = ["models", *parts]
        # /[datasets/]owner/name/resolve/revision/path, or the same with 'large', where a redirect leads
        return self._file("/".join(parts[:3]), parts[3], parts[4], "/".join(parts[5:]))

    def _describe(self, repository: str, rest: list[str]) -> None:
        if repository not in self.hub.repositories:
            return self._send(404, headers={"X-Error-Code": "RepoNotFound"})
        found = self.hub.found(repository, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        commit, folder = found
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        if rest and rest[0] == "tree":
            tree = [{"type": "file", "path": name, **_described(folder / name, "oid", "oid")} for name in names]
            return self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        siblings = [{"rfilename": name} | _described(folder / name, "blobId", "sha256") for name in names]
        siblings += self.hub.also_listed
        for sibling in siblings:
            sibling["size"] = self.hub.claimed.get(str(sibling["rfilename"]), sibling.get("size", 1))
        told = {"id": repository.partition("/")[2], "sha": commit, "siblings": siblings}
        return self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, action: str, revision: str, name: str) -> None:
        if repository not in self.hub.repositories:
            return self._send(404, headers={"X-Error-Code": "RepoNotFound"})
        found = self.hub.found(repository, revision)
        if found is None:
            return self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        commit, folder = found
        if folder.name == "gated":
            return self._send(401, headers={"X-Error-Code": "GatedRepo"})
        path = folder / name
        if not path.is_file():
            return self._send(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if action == "large" or not name.endswith(LARGE):
            return self._send_file(path, commit)
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(path.stat().st_size),
            "X-Linked-ETag": f'"{_digest(path)}"',
            "Location": self.hub.endpoint + self.path.replace("/resolve/", "/large/"),
        }
        return self._send(302, headers=headers)

    def _send_file(self, path: Path, commit: str) -> None:
        size, start = path.stat().st_size, 0
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_digest(path)}"'}
        if part := self.headers.get("Range"):
            start = int(part.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self._send_headers(206 if part else 200, size - start, headers)
        if self.command == "HEAD":
            return
        end = size
        if (cut := self.hub.cut(path.name)) is not None:
            end, self.close_connection = min(end, start + cut), True
        with path.open("rb") as file:
            file.seek(start)
            for at in range(start, end, BLOCK):
                block = file.read(min(BLOCK, end - at))
                if path.name in self.hub.spoilt and at == start:
                    block = bytes([block[0] ^ 1]) + block[1:]
                self.wfile.write(block)

    def _send(self, status: int, content: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self._send_headers(status, len(content), headers or {})
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_headers(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def _described(path: Path, blob: str, large: str) -> dict[str, object]:
    """A file as the Hub tells of it: its hash under the name `blob`; if it is a large one, its SHA-256 as `large`."""
    size = path.stat().st_size
    told: dict[str, object] = {"size": size, blob: git_hash(path)}
    if path.name.endswith(LARGE):
        told[blob] = "0" * 40  # of the pointer in Git, which is never fetched
        told["lfs"] = {large: _digest(path), "size": size, "pointerSize": 134}
    return told


def _digest(path: Path) -> str:
    return _sha256(path, path.stat().st_mtime_ns) if path.name.endswith(LARGE) else git_hash(path)


@cache
def _sha256(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_hash(path: Path) -> str:
    """A file's name in Git."""
    content = path.read_bytes() if not path.name.endswith(LARGE) else b""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
