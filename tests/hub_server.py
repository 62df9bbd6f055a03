"""A Hugging Face Hub on 127.0.0.1, in memory: what its clients need to publish and load models and data sets.

Faults are planned by the tests: `Hub.plan` makes the next requests that match fail in a chosen way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet")
TOKEN = "hf_test"


class Fault(Enum):
    UNAVAILABLE = "an answer of status 503"
    DROPPED = "the connection closes without an answer"
    CUT = "the connection closes in the middle of the body"
    CORRUPT = "a byte in the middle of the body is another"
    DROPPED_AFTER = "the request is obeyed, and the connection closes without an answer"


@dataclass
class Repo:
    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    def sha(self, number: int = -1) -> str:
        content = {path: hashlib.sha256(data).hexdigest() for path, data in self.commits[number].items()}
        return hashlib.sha1(json.dumps([number % len(self.commits), content]).encode()).hexdigest()

    def files(self, revision: str) -> dict[str, bytes] | None:
        if revision == "main":
            return self.commits[-1]
        return next((files for n, files in enumerate(self.commits) if self.sha(n).startswith(revision)), None)

    def revision(self, revision: str) -> str:
        return self.sha() if revision == "main" else revision


def entry(path: str, data: bytes) -> dict:
    sha256 = hashlib.sha256(data).hexdigest()
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found = {"type": "file", "path": path, "rfilename": path, "size": len(data), "oid": oid, "blobId": oid}
    large = {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": 128}
    return found | ({"lfs": large} if path.endswith(LARGE) else {})


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Hub(ThreadingHTTPServer):
    """The server; a context in which it answers.

    Attributes:
        repos: Repositories by kind (``models``, ``datasets``) and id.
        requests: Method and path of every request so far.
        role: What the token may do: ``write`` or ``read``.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[list] = []
        self.role = "write"
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def plan(self, fault: Fault, match: str, times: int = 1) -> None:
        """Let the next ``times`` requests whose ``METHOD path`` matches fail."""
        self.faults.append([fault, re.compile(match), times])

    def fault_of(self, request: str) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for plan in self.faults:
                if plan[2] and plan[1].search(request):
                    plan[2] -= 1
                    return plan[0]
        return None

    def count(self, match: str) -> int:
        return sum(bool(re.search(match, request)) for request in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.fault = self.server.fault_of(f"{self.command} {unquote(url.path)}")
        try:
            if self.fault is Fault.DROPPED:
                self.close_connection = True
                return
            if self.fault is Fault.UNAVAILABLE:
                raise Refusal(503, "come back later")
            self.route(unquote(url.path))
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self.reply({"error": str(refusal)}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def reply(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        if self.fault is Fault.DROPPED_AFTER:
            self.close_connection = True
            return
        if self.fault is Fault.CORRUPT and self.command == "GET":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self.send_response(status)
        for name, text in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.fault is Fault.CUT and self.command == "GET":
            data, self.close_connection = data[: len(data) // 2], True
        if self.command != "HEAD":
            self.wfile.write(data)

    def route(self, path: str) -> None:
        for pattern, action in ROUTES:
            if match := re.fullmatch(pattern, path):
                return action(self, **match.groupdict())
        raise Refusal(404, f"there is no {self.command} {path}")

    def authorised(self) -> bool:
        header = self.headers.get("Authorization")
        if header not in (None, f"Bearer {TOKEN}"):
            raise Refusal(401, "invalid credentials")
        return header is not None

    def repo(self, kind: str | None, name: str) -> Repo:
        repo, known = self.server.repos.get((kind or "models", name)), self.authorised()
        if repo is None or (repo.private and not known):
            raise Refusal(404 if known else 401, "Repository not found", "RepoNotFound")
        if self.command == "POST" and not self.path.endswith(("/paths-info", "/validate-yaml")):
            self.may_write(name)
        return repo

    def may_write(self, name: str) -> None:
        if not self.authorised():
            raise Refusal(401, "no token")
        if self.server.role != "write" or name.split("/")[0] != "me":
            raise Refusal(403, f"you may not write to {name}")

    def whoami(self) -> None:
        if not self.authorised():
            raise Refusal(401, "no token")
        self.reply({"name": "me", "orgs": [], "auth": {"accessToken": {"role": self.server.role}}})

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        self.may_write(name)
        if ("models", name) in self.server.repos:
            return self.reply({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
        self.server.repos["models", name] = Repo(bool(wanted.get("private")) or wanted.get("visibility") == "private")
        self.reply({"url": f"{self.server.url}/{name}", "name": name, "id": "0"})

    def validate(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        repo = self.repo(kind, name)
        files = [entry(path, data) for path, data in sorted(self.at(repo, revision or "main").items())]
        sha = repo.revision(revision or "main")
        self.reply({"id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": [], "siblings": files})

    def at(self, repo: Repo, revision: str) -> dict[str, bytes]:
        files = repo.files(revision)
        if files is None:
            raise Refusal(404, f"no revision {revision}", "RevisionNotFound")
        return files

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        repo, prefix = self.repo(kind, name), f"{folder}/" if folder else ""
        files = {path: data for path, data in self.at(repo, revision).items() if path.startswith(prefix)}
        if prefix and not files:
            raise Refusal(404, "no such folder", "EntryNotFound")
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found = [entry(path, data) for path, data in files.items() if deep or "/" not in path[len(prefix) :]]
        inner = [path[len(prefix) :].split("/")[:-1] for path in files]
        folders = {prefix + "/".join(names[:n]) for names in inner for n in range(1, (len(names) if deep else 1) + 1)}
        found += [{"type": "directory", "path": path, "oid": "0", "size": 0} for path in sorted(folders - {prefix})]
        self.reply(found)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        wanted = parse_qs(self.body.decode()).get("paths", [])
        files = self.at(self.repo(kind, name), revision)
        self.reply([entry(path, data) for path, data in files.items() if path in wanted])

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        repo = self.repo(kind, name)
        files, headers = self.at(repo, revision), {"X-Repo-Commit": repo.revision(revision)}
        if path not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        found, data = entry(path, files[path]), files[path]
        headers["ETag"] = f'"{found["lfs"]["oid"] if "lfs" in found else found["oid"]}"'
        if span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(span[1])
            self.reply(data[first:], 206, headers | {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"})
        else:
            self.reply(data, 200, headers)

    def preupload(self, kind: str, name: str, revision: str) -> None:
        known = self.at(self.repo(kind, name), revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            answer = {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
            if path in known:
                old = entry(path, known[path])
                answer["oid"] = old["lfs"]["oid"] if "lfs" in old else old["oid"]
            answers.append(answer)
        self.reply({"files": answers})

    def batch(self, kind: str | None, name: str) -> None:
        self.repo(kind, name)
        answers = []
        for item in json.loads(self.body)["objects"]:
            missing = item["oid"] not in self.server.objects
            upload = {"actions": {"upload": {"href": f"{self.server.url}/storage/{item['oid']}"}}} if missing else {}
            answers.append({"oid": item["oid"], "size": item["size"], **upload})
        self.reply({"transfer": "basic", "objects": answers})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "not the announced content")
        self.server.objects[oid] = self.body
        self.reply(b"")

    def commit(self, kind: str, name: str, revision: str) -> None:
        repo = self.repo(kind, name)
        files = dict(self.at(repo, revision))
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        if self.fault is Fault.CORRUPT:
            files["model.safetensors"] = files["model.safetensors"][:-1] + b"?"
        repo.commits.append(files)
        self.reply({"commitOid": repo.sha(), "commitUrl": f"{self.server.url}/{name}/commit/{repo.sha()}"})


KIND, NAME, REVISION = r"(?P<kind>models|datasets)", r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"/api/whoami-v2", Handler.whoami),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (rf"/api/{KIND}/{NAME}(?:/revision/{REVISION})?", Handler.info),
    (rf"/api/{KIND}/{NAME}/tree/{REVISION}(?:/(?P<folder>.+))?", Handler.tree),
    (rf"/api/{KIND}/{NAME}/paths-info/{REVISION}", Handler.paths_info),
    (rf"/api/{KIND}/{NAME}/preupload/{REVISION}", Handler.preupload),
    (rf"/api/{KIND}/{NAME}/commit/{REVISION}", Handler.commit),
    (rf"/(?:{KIND}/)?{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"/storage/(?P<oid>\w+)", Handler.store),
    (rf"/(?:{KIND}/)?{NAME}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]
