"""A Hub on this machine, for tests.

It answers the requests that `datasets` and `huggingface_hub` make of repositories, reading and
writing, and fails on purpose.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Files that are kept by checksum, as the real Hub keeps large ones.
LARGE = (".safetensors", ".pt", ".bin", ".npz")


class LocalHub(ThreadingHTTPServer):
    """Serves `repos`, for each name its files, at `url`.

    `trouble(path)` may say that a request goes wrong: a status such as 503; a status with the Hub's
    own code, such as `(403, "GatedRepo")`; "cut" for half an answer; "rotten" for other bytes than
    the checksum is of. `token`, when given, is asked for before anything is written. `asked` lists
    the method and path of every request.
    """

    daemon_threads = True

    def __init__(
        self,
        repos: dict[str, dict[str, bytes]],
        trouble: Callable[[str], Any] = lambda path: None,
        token: str | None = None,
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.trouble = trouble
        self.token = token
        self.asked: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}  # large files that were sent, by checksum
        self.closed = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answers nobody from now on, not even over connections that are open."""
        self.closed = True
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        """The address that clients are given as `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@dataclass
class Request:
    """What a client asks for."""

    path: str
    body: bytes
    trouble: Any  # "cut", "rotten" or None
    repo: str = ""  # the repository in the path
    files: dict[str, bytes] = field(default_factory=dict)  # of that repository
    rest: str = ""  # what the route's pattern captures


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests; `ROUTES` says which method answers what."""

    protocol_version = "HTTP/1.1"
    server: LocalHub

    def log_message(self, *arguments: Any) -> None:
        """Keeps quiet."""

    def do_GET(self) -> None:
        """Answers a request of any method, or makes the trouble that was planned for it."""
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, path))
        if self.server.closed:
            self.close_connection = True
            return
        trouble = self.server.trouble(path)
        if isinstance(trouble, int):
            self._send(trouble, b"trouble")
        elif isinstance(trouble, tuple):
            self._refuse(*trouble)
        else:
            self._answer_by_route(Request(path, body, trouble))

    do_HEAD = do_GET
    do_POST = do_GET
    do_PUT = do_GET

    def _answer_by_route(self, request: Request) -> None:
        """Answers by the route that fits, and for the repository that it names."""
        for route in HUB_ROUTES:
            match = re.fullmatch(route.pattern, request.path)
            if match:
                self._reply(route, request, match)
                return
        for repo, files in self.server.repos.items():
            for route in REPO_ROUTES:
                match = re.fullmatch(route.pattern.format(re.escape(repo)), request.path)
                if match:
                    request.repo = repo
                    request.files = files
                    self._reply(route, request, match)
                    return
        self._refuse(404, "RepoNotFound")

    def _reply(self, route: "Route", request: Request, match: re.Match[str]) -> None:
        """Answers by one route, if the client may take it."""
        if match.groups():
            request.rest = match[1]
        if not route.needs_token or self._has_token():
            route.reply(self, request)

    def _has_token(self) -> bool:
        """Whether the client sent the right token; if not, it is told so."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.server.token in (None, token):
            return True
        self._send_json({"error": "Invalid username or password."}, 401)
        return False

    # Ways to answer

    def _send(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        cut: bool = False,  # send half of the body, then hang up
    ) -> None:
        """Sends a whole answer, or its head alone where that was asked for."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def _send_json(self, value: Any, status: int = 200) -> None:
        """Sends a value as JSON."""
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        """Sends an error with one of the Hub's own codes."""
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    # Reading

    def send_info(self, request: Request) -> None:
        """What the Hub says of a repository."""
        created = "2024-01-01T00:00:00.000Z"
        self._send_json(
            {
                "id": request.repo,
                "sha": COMMIT,
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": name} for name in request.files],
                "lastModified": created,
                "createdAt": created,
            }
        )

    def send_tree(self, request: Request) -> None:
        """The folders and files below a folder, or of the whole repository."""
        under = f"{request.rest}/" if request.rest else ""
        names = [name for name in request.files if name.startswith(under)]
        if not names:
            self._refuse(404, "EntryNotFound")
            return
        folders = folders_below(under, names)
        self._send_json([file_entry(request.files, name) for name in [*folders, *names]])

    def send_paths(self, request: Request) -> None:
        """Those of the wanted files and folders that exist."""
        try:
            wanted = json.loads(request.body)["paths"]
        except json.JSONDecodeError:
            wanted = parse_qs(request.body.decode()).get("paths", [])
        folders = folders_below("", request.files)
        exist = [name for name in wanted if name in request.files or name in folders]
        self._send_json([file_entry(request.files, name) for name in exist])

    def send_file(self, request: Request) -> None:
        """A file, or the range of its bytes that the client asks for."""
        name = request.rest
        if name not in request.files:
            self._refuse(404, "EntryNotFound")
            return
        content = request.files[name]
        headers = {
            "ETag": f'"{checksum(name, content)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if request.trouble == "rotten":
            content = content[:-1] + bytes([content[-1] ^ 1])
        cut = request.trouble == "cut"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            self._send(200, content, headers, cut)
            return
        begin = int(wanted[1])
        last = min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {begin}-{last}/{len(content)}"
        self._send(206, content[begin : last + 1], headers, cut)

    # Writing

    def create_repo(self, request: Request) -> None:
        """Makes a repository, or says that it exists."""
        wanted = json.loads(request.body)
        name = wanted["name"]
        if wanted.get("organization"):
            name = f"{wanted['organization']}/{name}"
        status = 409 if name in self.server.repos else 200
        self.server.repos.setdefault(name, {})
        answer = {
            "url": f"{self.server.url}/{name}",
            "name": name,
            "error": "You already created this model repo",
        }
        self._send_json(answer, status)

    def approve_yaml(self, request: Request) -> None:
        """Finds no fault with a model card."""
        self._send_json({"errors": [], "warnings": []})

    def choose_upload_modes(self, request: Request) -> None:
        """Says which files are sent by checksum and which within the commit."""
        files = []
        for file in json.loads(request.body)["files"]:
            mode = "lfs" if is_large(file["path"]) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self._send_json({"files": files})

    def offer_uploads(self, request: Request) -> None:
        """Says where large files are to be sent."""
        objects = []
        for wanted in json.loads(request.body)["objects"]:
            upload = {"href": f"{self.server.url}/objects/{wanted['oid']}", "header": {}}
            objects.append({**wanted, "authenticated": True, "actions": {"upload": upload}})
        self._send_json({"transfer": "basic", "objects": objects})

    def keep_object(self, request: Request) -> None:
        """Takes a large file; its checksum is in the address."""
        self.server.objects[request.rest] = request.body
        self._send(200)

    def commit(self, request: Request) -> None:
        """Puts files into a repository."""
        for line in request.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                request.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                request.files[value["path"]] = self.server.objects[value["oid"]]
        self._send_json(
            {
                "commitUrl": f"{self.server.url}/{request.repo}/commit/{COMMIT}",
                "commitOid": COMMIT,
                "pullRequestUrl": None,
                "success": True,
            }
        )


# Routes


@dataclass(frozen=True)
class Route:
    """What answers the addresses of a kind."""

    pattern: str  # of the whole path; {} is the repository, and a group becomes `Request.rest`
    reply: Callable[[_Handler, Request], None]
    needs_token: bool = False


HUB_ROUTES = [
    Route("/api/repos/create", _Handler.create_repo, needs_token=True),
    Route("/api/validate-yaml", _Handler.approve_yaml, needs_token=True),
    # such addresses carry their own permission
    Route("/objects/(.+)", _Handler.keep_object),
]
REPO_ROUTES = [
    Route("/api/(?:datasets|models)/{}/paths-info/.*", _Handler.send_paths),
    Route("/api/(?:datasets|models)/{}/tree/[^/]+/?(.*)", _Handler.send_tree),
    Route("/api/(?:datasets|models)/{}(?:/revision/[^/]+)?", _Handler.send_info),
    Route("(?:/datasets)?/{}/resolve/[^/]+/(.+)", _Handler.send_file),
    Route("/api/models/{}/preupload/.*", _Handler.choose_upload_modes, needs_token=True),
    Route("/{}.git/info/lfs/objects/batch", _Handler.offer_uploads, needs_token=True),
    Route("/api/models/{}/commit/.*", _Handler.commit, needs_token=True),
]


# Files


def is_large(name: str) -> bool:
    """Whether a file is kept by checksum."""
    return name.endswith(LARGE)


def checksum(name: str, content: bytes) -> str:
    """What the Hub identifies a file by."""
    algorithm = hashlib.sha256 if is_large(name) else hashlib.sha1
    return algorithm(content).hexdigest()


def folders_below(under: str, names: Iterable[str]) -> list[str]:
    """The folders that files lie in, sorted; only those whose path begins with `under`."""
    folders: set[str] = set()
    for name in names:
        parents = PurePosixPath(name).parents[:-1]  # without the root
        folders.update(str(parent) for parent in parents)
    return sorted(folder for folder in folders if folder.startswith(under))


def file_entry(files: dict[str, bytes], name: str) -> dict[str, Any]:
    """What the Hub says of a file, or of a folder."""
    if name not in files:
        return {"type": "directory", "path": name, "size": 0, "oid": COMMIT}
    content = files[name]
    entry: dict[str, Any] = {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }
    if is_large(name):
        entry["lfs"] = {
            "oid": checksum(name, content),
            "size": len(content),
            "pointerSize": 130,
        }
    return entry
