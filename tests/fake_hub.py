"""A Hub on this machine, of models and data sets whose branch main moves, for the clients of the real one."""

import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Repositories by (kind, name), with kind models or datasets, each a list of commits (sha, {file: bytes}), the last of
    which main stands for. `asked` has the paths of all requests."""

    def __init__(self):
        self.commits, self.asked = {}, []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):  # noqa: N802
                hub.asked.append(f"{self.command} {self.path}")
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, body = hub.answer(unquote(urlsplit(self.path).path).strip("/").split("/"))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_POST = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def push(self, kind, name, files):
        """Another commit, to which main moves; returns it."""
        before = self.commits.setdefault((kind, name), [])
        sha = hashlib.sha1(f"{name}{len(before)}".encode()).hexdigest()
        before.append((sha, files))
        return sha

    def at(self, kind, name, revision):
        found = self.commits.get((kind, name), [])
        return next((one for one in found[::-1] if revision in (one[0], "main")), None)

    def answer(self, parts):
        if parts[0] == "api":
            kind, name, what, revision = parts[1], "/".join(parts[2:4]), *(*parts[4:6], "", "")[:2]
            found = self.at(kind, name, revision)
            if found is None or what not in ("revision", "tree"):
                return self.nothing("RepoNotFound")
            sha, files = found
            told = {"id": name, "sha": sha, "siblings": [{"rfilename": file} for file in files], "tags": []}
            if len(parts) > 6:
                return self.nothing("EntryNotFound", **{"X-Repo-Commit": sha})
            if what == "tree":
                told = [{"type": "file", "path": f, "size": len(b), "oid": self.etag(b)} for f, b in files.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()
        kind = "datasets" if parts[0] == "datasets" else "models"
        parts = parts[1:] if kind == "datasets" else parts
        found = self.at(kind, "/".join(parts[:2]), parts[3]) if len(parts) > 4 else None
        if found is None:
            return self.nothing("RepoNotFound")
        sha, files = found
        if (file := "/".join(parts[4:])) not in files:
            return self.nothing("EntryNotFound", **{"X-Repo-Commit": sha})
        return 200, {"X-Repo-Commit": sha, "ETag": f'"{self.etag(files[file])}"'}, files[file]

    @staticmethod
    def etag(content):
        return hashlib.sha1(content).hexdigest()

    @staticmethod
    def nothing(code, **headers):
        return 404, {"X-Error-Code": code, **headers}, b"{}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
