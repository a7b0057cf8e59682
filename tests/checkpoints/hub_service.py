"""Hugging Face and ModelScope on loopback: the few routes that a download needs, and the ways in which they fail."""
from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubService:
    """A repository, and what goes wrong with it."""

    repo: str
    files: dict[str, bytes]
    url: str = ""
    drops: dict[str, list[int]] = field(default_factory=dict)  # path -> bytes after which a reply breaks off, one by one
    stall: threading.Event | None = None  # a reply that breaks off waits for this first
    stalled: threading.Event = field(default_factory=threading.Event)
    corrupt: Counter[str] = field(default_factory=Counter)  # path -> replies with a wrong byte
    refuse: int | None = None  # a status for every request
    ranges: bool = True
    redirect: bool = False  # files are on another address, as on the real hubs
    sent: Counter[str] = field(default_factory=Counter)  # path -> bytes that went out
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)  # method, path, range, authorization

    def is_lfs(self, path: str) -> bool:
        return path.endswith((".safetensors", ".pth"))

    def etag(self, path: str) -> str:
        data = self.files[path]
        return hashlib.sha256(data).hexdigest() if self.is_lfs(path) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def hugging_face_listing(self) -> dict[str, Any]:
        siblings = []
        for path, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": self.etag(path)}
            if self.is_lfs(path):
                entry["lfs"] = {"sha256": self.etag(path), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": self.repo, "modelId": self.repo, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []}

    def modelscope_listing(self) -> dict[str, Any]:
        files: list[dict[str, Any]] = [{"Path": "google", "Type": "tree", "Size": 0}]
        for path, data in self.files.items():
            files.append({"Path": path, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()})
        return {"Code": 200, "Data": {"Files": files}}


@contextmanager
def served(service: HubService) -> Iterator[HubService]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(service))
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


def handler_of(service: HubService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            service.requests.append((self.command, self.path, self.headers["Range"], self.headers["Authorization"]))
            if service.refuse:
                self.reply_json({"error": "refused"}, status=service.refuse)
                return
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            path = unquote(url.path)
            if re.fullmatch(rf"/api/models/{service.repo}/revision/(main|{COMMIT})", path):
                self.reply_json(service.hugging_face_listing())
            elif path.startswith("/api/models/"):
                self.reply_json({"error": "no"}, status=404, headers={"X-Error-Code": "RevisionNotFound"})
            elif path == f"/api/v1/models/{service.repo}/repo/files" and query["Revision"] == "master":
                self.reply_json(service.modelscope_listing())
            elif path == f"/api/v1/models/{service.repo}/repo":
                self.reply_file(query["FilePath"])
            elif match := re.fullmatch(rf"/{service.repo}/resolve/(?:main|{COMMIT})/(.+)", path):
                self.reply_file(match[1])
            elif path.startswith("/storage/"):
                self.reply_content(path.removeprefix("/storage/"))
            else:
                self.reply_json({"error": "no"}, status=404)

        def reply_json(self, content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def reply_file(self, path: str) -> None:
            if path not in service.files:
                self.reply_json({"error": "no"}, status=404, headers={"X-Error-Code": "EntryNotFound"})
            elif service.redirect and self.command == "GET":
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{self.server.server_port}/storage/{path}")  # type: ignore[attr-defined]
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.reply_content(path)

        def reply_content(self, path: str) -> None:
            data = service.files[path]
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "") if service.ranges else None
            start = int(asked[1]) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", f'"{service.etag(path)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "HEAD":
                return
            body = data[start:]
            if service.corrupt[path] > 0:
                service.corrupt[path] -= 1
                body = bytes([body[0] ^ 1]) + body[1:]
            if service.drops.get(path):
                body = body[: service.drops[path].pop(0)]
            service.sent[path] += len(body)
            self.wfile.write(body)
            if service.stall and start + len(body) < len(data):
                service.stalled.set()
                service.stall.wait(60)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    return Handler
