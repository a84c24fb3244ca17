"""A stand-in for the hub on 127.0.0.1: the part of its HTTP that downloads need, with its headers and its refusals."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000
"""Files of more bytes than this are kept under their SHA-256 and served from `/store/`, as on the hub."""


@dataclass
class Repo:
    files: dict[str, bytes]
    gated: bool = False


@dataclass
class Hub:
    repos: dict[str, Repo]
    members: set[str] = field(default_factory=set)
    """Tokens that are known."""
    accepted: set[str] = field(default_factory=set)
    """Tokens whose account accepted the licence."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    hold_after: int | None = None
    """Bytes of a large file after which the server sends no more until `release`."""
    release: threading.Event = field(default_factory=threading.Event)
    damage: bool = False
    url: str = ""
    store_url: str = ""

    def ranges(self) -> list[str]:
        """The Range header of each request for a large file's bytes, in order ("" for the whole file)."""
        return [
            h.get("range", "") for method, path, h in self.requests if method == "GET" and path.startswith("/store/")
        ]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.store_url = f"http://localhost:{server.server_port}/store/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.command, path, headers))
        try:
            if path.startswith("/store/"):
                self._store(path.removeprefix("/store/"), headers.get("range"))
            elif path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/").split("/"))
            else:
                self._resolve(path.lstrip("/").split("/"), headers.get("authorization", "").removeprefix("Bearer "))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _api(self, parts: list[str]) -> None:
        repo = self.hub.repos.get("/".join(parts[:2]))
        if repo is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif len(parts) > 3 and parts[3] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {parts[3]}")
        elif len(parts) > 2 and parts[2] == "tree":
            self._json([{"type": "file", "path": name, **_facts(data)} for name, data in repo.files.items()])
        else:
            siblings = [{"rfilename": name, **_facts(data)} for name, data in repo.files.items()]
            self._json({"id": "/".join(parts[:2]), "sha": COMMIT, "gated": "manual", "siblings": siblings})

    def _resolve(self, parts: list[str], token: str) -> None:
        repo = self.hub.repos.get("/".join(parts[:2]))
        name = "/".join(parts[4:])
        if repo is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif token and token not in self.hub.members:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif repo.gated and not token:
            self._refuse(
                401, "GatedRepo", "Access to this model is restricted. You must be authenticated to access it."
            )
        elif repo.gated and token not in self.hub.accepted:
            self._refuse(403, "GatedRepo", "Access to this model is restricted and you are not in the authorized list.")
        elif name not in repo.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._file(repo.files[name])

    def _file(self, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        if len(data) <= LARGE:
            self._send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
            return
        self._send(
            302,
            b"",
            {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "Location": self.hub.store_url + digest,
            },
        )

    def _store(self, digest: str, wanted: str | None) -> None:
        files = [data for repo in self.hub.repos.values() for data in repo.files.values()]
        data = next(data for data in files if hashlib.sha256(data).hexdigest() == digest)
        total = len(data)
        begin = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if self.hub.damage:
            data = bytes(total)
        headers = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {begin}-{total - 1}/{total}"
        self._send(206 if wanted else 200, data[begin:], headers, self.hub.hold_after)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str], hold_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if hold_after is not None:
            self.wfile.write(body[:hold_after])
            self.wfile.flush()
            self.hub.release.wait()
            body = body[hold_after:]
        self.wfile.write(body)


def _facts(data: bytes) -> dict[str, Any]:
    """What the hub's API tells of a file."""
    facts: dict[str, Any] = {"size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    facts["blobId"] = facts["oid"]
    if len(data) > LARGE:
        digest = hashlib.sha256(data).hexdigest()
        facts["lfs"] = {"sha256": digest, "oid": digest, "size": len(data), "pointerSize": 134}
    return facts
