"""A real Chromium, driven through its debugging pipe: pages are opened, asked, and their complaints collected."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
QUIET = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --remote-debugging-pipe").split()  # fmt: skip
# what the scripts of tests are written with
WORDS = """
const wait = async (test) => { for (let n = 0; n < 500 && !test(); n += 1) await new Promise((done) => setTimeout(done, 10)); if (!test()) throw Error(`never: ${test}`); };
const pick = (name) => document.querySelector(`[aria-label="${name}"]`);
const set = (name, value) => { pick(name).value = value; pick(name).dispatchEvent(new Event(pick(name).tagName === 'SELECT' ? 'change' : 'input')); };
const rows = () => [...document.querySelectorAll('#latents tr.latent')].map((row) => row.cells[0].textContent).join(' ');
const key = (name) => dispatchEvent(new KeyboardEvent('keydown', { key: name }));
const panel = () => document.querySelector('#panel');
"""


class Browser:
    """One process for many pages."""

    def __init__(self, profile: Path):
        hears, said = os.pipe()
        tells, heard = os.pipe()
        command = f'exec "$0" "$@" 3<&{hears} 4>&{heard}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *QUIET, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(hears, heard),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(hears)
        os.close(heard)
        self._out, self._in = os.fdopen(said, "wb", buffering=0), os.fdopen(tells, "rb", buffering=0)
        self._numbers, self._left = itertools.count(1), b""
        self.complaints: list[str] = []

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._out.close()
        self._in.close()

    def __call__(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer; what the page complains of meanwhile is kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._listen(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = os.read(self._in.fileno(), 1 << 20)
            if not part:
                raise RuntimeError("The browser has gone.")
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def _listen(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(parameters["args"])[:500])
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])

    def open(self, page: Path, fragment: str = "") -> Page:
        """The page, once it is drawn."""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log"):
            self(f"{part}.enable", session)
        self("Page.navigate", session, url=f"file://{page}{fragment}")
        shown = Page(self, session)
        shown.run("await wait(() => document.readyState === 'complete' && document.body.dataset.drawn);")
        return shown


class Page:
    def __init__(self, browser: Browser, session: str):
        self.browser, self.session = browser, session

    def run(self, script: str) -> Any:
        """What an async function with this body returns. Fails on any complaint of the page."""
        expression = f"(async () => {{ {WORDS} {script} }})()"
        found = self.browser(
            "Runtime.evaluate", self.session, expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]["exception"].get("description")
        assert not self.browser.complaints, self.browser.complaints
        return found["result"].get("value")

    def dom(self) -> str:
        return self.run("return document.documentElement.outerHTML;")
