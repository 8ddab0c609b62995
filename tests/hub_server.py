"""A small server that answers what ``huggingface_hub`` asks of the Hub for model repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writer"


@dataclass
class Repository:
    """Revisions by name, each with its files; a private one is there for the token alone."""

    revisions: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    private: bool = False
    gated: bool = False
    messages: list[str] = field(default_factory=list)

    def commit(self, revision: str) -> str:
        """The hash of a revision."""
        files = self.revisions[revision]
        content = b"".join(name.encode() + files[name] for name in sorted(files))
        return hashlib.sha1(content).hexdigest()

    def files(self, revision: str) -> dict[str, bytes] | None:
        """The files of a revision, by its name or hash."""
        for name, files in self.revisions.items():
            if revision in (name, self.commit(name)):
                return files
        return None


@dataclass
class Hub:
    """Repositories by name, the requests so far, and files that break off in the middle."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    address: str = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        may_write = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/repos/create":
            self._create(json.loads(body), may_write)
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/([^/]+).*)?", path):
            self._api(found[1], found[2] or "revision", found[3] or "main", body, may_write)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3], may_write)
        else:
            self._fail(404, "EntryNotFound")

    def _repository(self, name: str, may_write: bool) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not may_write):
            self._fail(401 if not may_write else 404, "RepoNotFound")
            return None
        if repository.gated and not may_write:
            self._fail(403, "GatedRepo")
            return None
        return repository

    def _create(self, asked: dict[str, Any], may_write: bool) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if not may_write:
            self._fail(403)
        elif name in self.hub.repositories:
            self._send({"url": f"{self.hub.address}/{name}"}, 409)
        else:
            self.hub.repositories[name] = Repository(
                private=bool(asked.get("private") or asked.get("visibility") == "private")
            )
            self._send({"url": f"{self.hub.address}/{name}"})

    def _api(self, name: str, kind: str, revision: str, body: bytes, may_write: bool) -> None:
        repository = self._repository(name, may_write)
        if repository is None:
            return
        files = repository.files(revision)
        if files is None:
            self._fail(404, "RevisionNotFound")
        elif kind == "revision":
            sha = revision if revision not in repository.revisions else repository.commit(revision)
            self._send({"id": name, "modelId": name, "sha": sha, "siblings": [{"rfilename": one} for one in files]})
        elif kind == "tree":
            self._send([
                {"type": "file", "path": one, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for one, data in files.items()
            ])  # fmt: skip
        elif kind == "preupload":
            asked = json.loads(body)["files"]
            self._send(
                {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
            )
        else:
            self._commit(name, repository, body)

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                repository.messages.append(line["value"]["summary"])
            elif line["key"] == "file":
                repository.revisions["main"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = repository.commit("main")
        self._send({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.address}/{name}/commit/{sha}"})

    def _file(self, name: str, revision: str, path: str, may_write: bool) -> None:
        repository = self._repository(name, may_write)
        if repository is None:
            return
        files = repository.files(revision)
        if files is None:
            self._fail(404, "RevisionNotFound")
        elif path not in files:
            self._fail(404, "EntryNotFound")
        else:
            data = files[path]
            sha = revision if revision not in repository.revisions else repository.commit(revision)
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", sha)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[: len(data) // 2] if path in self.hub.broken else data)
                self.close_connection = path in self.hub.broken

    def _send(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fail(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code or "Forbidden")
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A Hub on this machine, at ``address``."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
