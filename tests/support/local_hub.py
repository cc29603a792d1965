"""A local Hugging Face hub with the few endpoints that ``huggingface_hub`` needs to download and upload a model.

The real client talks to it over HTTP, in another process whose ``HF_ENDPOINT`` names it. It counts what it serves,
keeps the tokens it was shown, and can be gated, slow, or damage what it sends. Only the owner that a token belongs to
(``owners``) may write.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from jsfree.publishing.base_model import front_matter

ASK = """
import json, sys
from jsfree.config import ModelFiles
from jsfree.errors import ModelError
from jsfree.models.references import local_folder, look_up
from jsfree.models.contents import CAPTIONER, CLIP
for line in sys.stdin:
    asked = json.loads(line)
    kind = {"captioner": CAPTIONER, "clip": CLIP}[asked.get("kind", "captioner")]
    act = look_up if asked.get("look_up") else local_folder
    try:
        found = act(asked["ref"], kind, ModelFiles(**asked.get("files", {})))
        answer = {"found": found if isinstance(found, dict) else str(found)}
    except ModelError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Repo:
    """A model repository; large files are stored by content (LFS), as on the hub."""

    files: dict[str, bytes]
    token: str | None = None
    damaged: str | None = None
    private: bool = False
    branches: tuple[str, ...] = ("main",)
    written: list[tuple[str, str]] = field(default_factory=list)
    """Branch and message of each uploaded commit; all branches share their files."""

    @property
    def about(self) -> dict[str, Any]:
        """The hub's metadata of the repository."""
        card = front_matter(self.files.get("README.md", b"").decode())
        return {"sha": self.commit, "siblings": [], "cardData": dict(card)}

    @property
    def commit(self) -> str:
        hashes = sorted((name, git_hash(content)) for name, content in self.files.items())
        return hashlib.sha1(repr(hashes).encode()).hexdigest()

    def entry(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        entry = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
        if name.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        return entry

    def etag(self, name: str) -> str:
        entry = self.entry(name)
        return str(entry.get("lfs", entry)["oid"])


@dataclass
class LocalHub:
    repos: dict[str, Repo] = field(default_factory=dict)
    served: Counter[str] = field(default_factory=Counter)
    tokens: set[str] = field(default_factory=set)
    owners: dict[str, str] = field(default_factory=dict)
    listed: int = 0
    seconds: float = 0.0

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def do_POST(self) -> None:
                hub.take(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a process that uses this hub only and has an empty cache."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "JSFREE_"))}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HOME": str(home), **more}

    def ask(self, home: Path, *requests: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
        """The answers that a new process gets to its requests, in order."""
        process = self.start(home, **environment)
        told, errors = process.communicate("".join(json.dumps(request) + "\n" for request in requests), timeout=60)
        answers = [json.loads(line) for line in told.splitlines()]
        assert len(answers) == len(requests), errors
        return answers

    def start(self, home: Path, **environment: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command, env = [sys.executable, "-c", ASK], self.environment(home, **environment)
        return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token:
            self.tokens.add(token)
        owner_name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        repo = self.repos.get(owner_name)
        if repo is None:
            return _send(request, 404, {"X-Error-Code": "RepoNotFound"})
        rest = path.split(owner_name, 1)[1].strip("/").split("/", 2)
        if rest[0] == "tree":
            self.listed += 1
            return _send(request, 200, {}, json.dumps([repo.entry(name) for name in repo.files]).encode())
        if rest[0] == "resolve" and repo.token not in (None, token):
            return _send(request, 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if rest[0] == "resolve":
            return self._file(request, repo, rest[2])
        if rest[0] == "revision" and rest[1] not in ("main", repo.commit):
            return _send(request, 404, {"X-Error-Code": "RevisionNotFound"})
        return _send(request, 200, {}, json.dumps({"id": owner_name, **repo.about}).encode())

    def take(self, request: BaseHTTPRequestHandler) -> None:
        """Create a repository, a branch or a commit."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(request.path).path).removeprefix("/api/")
        if path == "validate-yaml":
            return _send(request, 200 if front_matter(json.loads(body)["content"]) else 400, {}, b"{}")
        owner = self.owners.get((request.headers.get("Authorization") or "").removeprefix("Bearer "))
        if owner is None:
            return _send(request, 401, {})
        told = json.loads(body or b"{}") if path.split("/")[-2] != "commit" else {}
        if path == "repos/create":
            return self._make(request, owner, told)
        name = "/".join(path.split("/")[1:3])
        repo = self.repos.get(name)
        act, branch = path.split("/")[3:]
        if repo is None:
            return _send(request, 404, {"X-Error-Code": "RepoNotFound"})
        if act == "branch":
            repo.branches += (branch,)
            return _send(request, 200, {}, b"{}")
        if act == "preupload":
            modes = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in told["files"]]
            return _send(request, 200, {}, json.dumps({"files": modes}).encode())
        return self._commit(request, name, branch, [json.loads(line) for line in body.splitlines()])

    def _make(self, request: BaseHTTPRequestHandler, owner: str, told: dict[str, Any]) -> None:
        name = f"{told['organization']}/{told['name']}"
        if told["organization"] != owner:
            return _send(request, 403, {})
        address = json.dumps({"url": f"{self.url}/{name}"}).encode()
        if name in self.repos:
            return _send(request, 409, {}, address)
        self.repos[name] = Repo({}, private=bool(told.get("private")) or told.get("visibility") == "private")
        return _send(request, 200, {}, address)

    def _commit(self, request: BaseHTTPRequestHandler, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        repo = self.repos[name]
        if branch not in repo.branches:
            return _send(request, 404, {"X-Error-Code": "RevisionNotFound"})
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo.written.append((branch, value["summary"]))
            elif line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            else:
                del repo.files[value["path"]]
        told = {"commitUrl": f"{self.url}/{name}/commit/{repo.commit}", "commitOid": repo.commit}
        return _send(request, 200, {}, json.dumps(told).encode())

    def _file(self, request: BaseHTTPRequestHandler, repo: Repo, name: str) -> None:
        if name not in repo.files:
            return _send(request, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
        if request.command == "GET":
            self.served[name] += 1
            time.sleep(self.seconds)
        content = repo.files[name]
        if name == repo.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        return _send(request, 200, {"ETag": f'"{repo.etag(name)}"', "X-Repo-Commit": repo.commit}, content)


@cache
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes = b"") -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(content))}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
