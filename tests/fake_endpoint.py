"""A language model's endpoint that answers by rule."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tunediff.evaluations.judging.examination import EXPLAIN


class Endpoint(ThreadingHTTPServer):
    """Answers POST with rule(asked) -> a text, or (status, body, headers); remembers what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.gone_to, self.rule = [], [], reader
        self.endpoint = f"http://127.0.0.1:{self.server_port}/v1"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), asked))
        said = self.server.rule(asked)
        plain = (200, {"choices": [{"message": {"content": said}}]})
        status, body, *headers = said if isinstance(said, tuple) else plain
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self):
        self.server.gone_to.append((self.path, dict(self.headers)))
        self.send_error(501)

    def log_message(self, *_):
        pass


def parts(asked):
    """System prompt, explanation and texts of a request."""
    system, question = (message["content"] for message in asked["messages"])
    explanation = re.search(r"^Explanation: (.*)$", question, re.M)
    return system, explanation and explanation[1], re.findall(r"^Text \d+: (.*)$", question, re.M)


def reader(asked):
    """Explains by the word that is marked most, and says yes where that word is, or is marked."""
    system, word, texts = parts(asked)
    if system == EXPLAIN:
        words = re.findall(r"<<\s*(\w+)", asked["messages"][1]["content"])
        return f"Let me see.\nExplanation: {max(set(words), key=words.count)}"
    pattern = rf"<<\s*{word}\s*>>" if "<<" in system else rf"\b{word}\b"
    return f"<think>[1] or [0]?</think>My list: {[int(bool(re.search(pattern, text))) for text in texts]}"
