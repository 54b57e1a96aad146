"""A Hub on this machine for tests: the requests that `datasets` and `huggingface_hub` make of public dataset repositories, and failures on purpose."""
import hashlib, json, re, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub(ThreadingHTTPServer):
    "Serves `repos`, for each name its files, at `url`; `trouble(path)` may say that a request fails: a status such as 503, or \"cut\" for half an answer."
    daemon_threads = True

    def __init__(self, repos: dict[str, dict[str, bytes]], trouble: Callable[[str], Any] = lambda path: None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.trouble, self.asked = repos, trouble, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str: return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None: pass
    def do_HEAD(self) -> None: self.do_GET()
    def do_POST(self) -> None: self.do_GET()

    def do_GET(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, path))
        trouble = self.server.trouble(path)
        if isinstance(trouble, int): return self._answer(trouble, b"trouble")
        for repo, files in self.server.repos.items():
            for pattern, reply in (("/api/datasets/{}/paths-info/.*", self._paths), ("/api/datasets/{}/tree/[^/]+/?(.*)", self._tree),
                                   ("/api/datasets/{}(?:/revision/[^/]+)?", self._about), ("/datasets/{}/resolve/[^/]+/(.+)", self._file)):
                if found := re.fullmatch(pattern.format(repo), path): return reply(repo, files, found, body, trouble)
        self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items(): self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD": return
        self.wfile.write(body[:len(body)//2] if cut else body)
        self.close_connection = self.close_connection or cut

    def _json(self, value: Any) -> None: self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _entry(self, files: dict[str, bytes], name: str) -> dict[str, Any]:
        if name in files: return {"type": "file", "path": name, "size": len(files[name]), "oid": hashlib.sha1(files[name]).hexdigest()}
        return {"type": "directory", "path": name, "size": 0, "oid": COMMIT}

    def _about(self, repo: str, files: dict[str, bytes], *rest: Any) -> None:
        times = dict.fromkeys(("lastModified", "createdAt"), "2024-01-01T00:00:00.000Z")
        self._json({"id": repo, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": [{"rfilename": name} for name in files], **times})

    def _tree(self, repo: str, files: dict[str, bytes], found: re.Match, *rest: Any) -> None:
        under = found[1] + "/" if found[1] else ""
        names = [name for name in files if name.startswith(under)]
        folders = {name[:i] for name in names for i, letter in enumerate(name) if letter == "/" and i >= len(under)}
        self._json([self._entry(files, name) for name in [*sorted(folders), *names]])

    def _paths(self, repo: str, files: dict[str, bytes], found: re.Match, body: bytes, trouble: Any) -> None:
        try: wanted = json.loads(body)["paths"]
        except json.JSONDecodeError: wanted = parse_qs(body.decode()).get("paths", [])
        self._json([self._entry(files, name) for name in wanted if name in files or any(other.startswith(name + "/") for other in files)])

    def _file(self, repo: str, files: dict[str, bytes], found: re.Match, body: bytes, trouble: Any) -> None:
        if found[1] not in files: return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data = files[found[1]]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not part: return self._answer(200, data, headers, trouble == "cut")
        begin, end = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        self._answer(206, data[begin:end + 1], {**headers, "Content-Range": f"bytes {begin}-{end}/{len(data)}"}, trouble == "cut")
