"""A Hub on this machine for tests: the requests that `datasets` and `huggingface_hub` make of repositories, reading and writing, and failures on purpose."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# kept by checksum, as the real Hub keeps large files
LARGE = (".safetensors", ".pt", ".bin", ".npz")


class LocalHub(ThreadingHTTPServer):
    """Serves `repos`, for each name its files, at `url`. `trouble(path)` may say that a request
    goes wrong: a status such as 503, a status with the Hub's
    own code such as `(403, "GatedRepo")`, "cut" for half an answer, "rotten" for other bytes than
    the checksum is of. `token`, when given, is asked for before anything is written.
    """

    daemon_threads = True

    def __init__(
        self,
        repos: dict[str, dict[str, bytes]],
        trouble: Callable[[str], Any] = lambda path: None,
        token: str | None = None,
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.trouble, self.token, self.asked, self.objects = (
            repos,
            trouble,
            token,
            [],
            {},
        )
        self.closed = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answers nobody from now on, not even over connections that are open."""
        self.closed = True
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, body = (
            unquote(urlsplit(self.path).path),
            self.rfile.read(int(self.headers.get("Content-Length") or 0)),
        )
        self.server.asked.append((self.command, path))
        if self.server.closed:
            self.close_connection = True
            return
        trouble = self.server.trouble(path)
        if isinstance(trouble, int):
            return self._answer(trouble, b"trouble")
        if isinstance(trouble, tuple):
            return self._answer(
                trouble[0], b"{}", {"X-Error-Code": trouble[1], "X-Error-Message": trouble[1]}
            )
        for pattern, reply in (
            ("/api/repos/create", self._create),
            ("/api/validate-yaml", self._fine),
            ("/objects/(.+)", self._object),
        ):
            # addresses of objects carry their own permission
            if found := re.fullmatch(pattern, path):
                return (path.startswith("/objects/") or self._allowed()) and reply(found, body)
        for repo, files in self.server.repos.items():
            for pattern, reply in (
                ("/api/(?:datasets|models)/{}/paths-info/.*", self._paths),
                ("/api/(?:datasets|models)/{}/tree/[^/]+/?(.*)", self._tree),
                ("/api/(?:datasets|models)/{}(?:/revision/[^/]+)?", self._about),
                ("(?:/datasets)?/{}/resolve/[^/]+/(.+)", self._file),
            ):
                if found := re.fullmatch(pattern.format(repo), path):
                    return reply(repo, files, found, body, trouble)
            for pattern, reply in (
                ("/api/models/{}/preupload/.*", self._preupload),
                ("/{}.git/info/lfs/objects/batch", self._batch),
                ("/api/models/{}/commit/.*", self._commit),
            ):
                if re.fullmatch(pattern.format(repo), path):
                    return self._allowed() and reply(repo, files, body)
        self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        cut: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _allowed(self) -> bool:
        known = self.server.token in (
            None,
            (self.headers.get("Authorization") or "").removeprefix("Bearer "),
        )
        if not known:
            self._json({"error": "Invalid username or password."}, 401)
        return known

    def _entry(self, files: dict[str, bytes], name: str) -> dict[str, Any]:
        if name not in files:
            return {"type": "directory", "path": name, "size": 0, "oid": COMMIT}
        large = (
            {
                "lfs": {
                    "oid": hashlib.sha256(files[name]).hexdigest(),
                    "size": len(files[name]),
                    "pointerSize": 130,
                }
            }
            if name.endswith(LARGE)
            else {}
        )
        return {
            "type": "file",
            "path": name,
            "size": len(files[name]),
            "oid": hashlib.sha1(files[name]).hexdigest(),
            **large,
        }

    def _about(self, repo: str, files: dict[str, bytes], *rest: Any) -> None:
        times = dict.fromkeys(("lastModified", "createdAt"), "2024-01-01T00:00:00.000Z")
        self._json(
            {
                "id": repo,
                "sha": COMMIT,
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": name} for name in files],
                **times,
            }
        )

    def _tree(self, repo: str, files: dict[str, bytes], found: re.Match, *rest: Any) -> None:
        under = found[1] + "/" if found[1] else ""
        names = [name for name in files if name.startswith(under)]
        if not names:
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        folders = {
            name[:i]
            for name in names
            for i, letter in enumerate(name)
            if letter == "/" and i >= len(under)
        }
        self._json([self._entry(files, name) for name in [*sorted(folders), *names]])

    def _paths(
        self, repo: str, files: dict[str, bytes], found: re.Match, body: bytes, trouble: Any
    ) -> None:
        try:
            wanted = json.loads(body)["paths"]
        except json.JSONDecodeError:
            wanted = parse_qs(body.decode()).get("paths", [])
        self._json(
            [
                self._entry(files, name)
                for name in wanted
                if name in files or any(other.startswith(name + "/") for other in files)
            ]
        )

    def _file(
        self, repo: str, files: dict[str, bytes], found: re.Match, body: bytes, trouble: Any
    ) -> None:
        if found[1] not in files:
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data = files[found[1]]
        mark = (hashlib.sha256 if found[1].endswith(LARGE) else hashlib.sha1)(data).hexdigest()
        if trouble == "rotten":
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{mark}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not part:
            return self._answer(200, data, headers, trouble == "cut")
        begin, end = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        self._answer(
            206,
            data[begin : end + 1],
            {**headers, "Content-Range": f"bytes {begin}-{end}/{len(data)}"},
            trouble == "cut",
        )

    def _create(self, found: re.Match, body: bytes) -> None:
        about = json.loads(body)
        name = (
            f"{about['organization']}/{about['name']}"
            if about.get("organization")
            else about["name"]
        )
        there = name in self.server.repos
        self.server.repos.setdefault(name, {})
        self._json(
            {
                "url": f"{self.server.url}/{name}",
                "name": name,
                "error": "You already created this model repo",
            },
            409 if there else 200,
        )

    def _fine(self, *rest: Any) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, repo: str, files: dict[str, bytes], body: bytes) -> None:
        self._json(
            {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                    }
                    for each in json.loads(body)["files"]
                ]
            }
        )

    def _batch(self, repo: str, files: dict[str, bytes], body: bytes) -> None:
        self._json(
            {
                "transfer": "basic",
                "objects": [
                    {
                        **each,
                        "authenticated": True,
                        "actions": {
                            "upload": {
                                "href": f"{self.server.url}/objects/{each['oid']}",
                                "header": {},
                            }
                        },
                    }
                    for each in json.loads(body)["objects"]
                ],
            }
        )

    def _object(self, found: re.Match, body: bytes) -> None:
        self.server.objects[found[1]] = body
        self._answer(200)

    def _commit(self, repo: str, files: dict[str, bytes], body: bytes) -> None:
        for each in map(json.loads, body.splitlines()):
            if each["key"] == "file":
                files[each["value"]["path"]] = base64.b64decode(each["value"]["content"])
            if each["key"] == "lfsFile":
                files[each["value"]["path"]] = self.server.objects[each["value"]["oid"]]
        self._json(
            {
                "commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}",
                "commitOid": COMMIT,
                "pullRequestUrl": None,
                "success": True,
            }
        )
