"""A prompt -> the answer of a language model behind an OpenAI-compatible endpoint, asked again while that one is busy.

Knows nothing of latents. The key is read from the environment at every call: it goes into the header of the request,
never along with a redirection, and into no setting, log or message.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from tunediff.shapes import Refused

Item = TypeVar("Item")
Answer = TypeVar("Answer")

PAUSE = 1.0  # seconds before the second try; twice as long before each further one
LONGEST_PAUSE = 60.0
BUSY = (408, 429, 500, 502, 503, 504, 529)


class Busy(Exception):
    """Raised where the endpoint may answer later; `wait` is how many seconds it asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def each(
    ask: Callable[[Item], Answer], items: Sequence[Item], *, at_once: int, title: str, unit: str
) -> tuple[dict[int, Answer], Refused | None]:
    """Number of an item -> its answer, in the items' order. After a call that failed for good no further item is begun, and
    its refusal is returned with what was answered."""
    done: dict[int, Answer] = {}
    failure = None
    pool = ThreadPoolExecutor(at_once)
    try:
        under_way = {pool.submit(ask, item): n for n, item in enumerate(items)}
        for future in tqdm(as_completed(under_way), total=len(items), desc=title, unit=unit, leave=False, delay=2):
            if future.cancelled():
                continue
            try:
                done[under_way[future]] = future.result()
            except Refused as refusal:
                failure = failure or refusal
                for waiting in under_way:
                    waiting.cancel()
    finally:
        pool.shutdown(cancel_futures=True)
    return dict(sorted(done.items())), failure


class Chat:
    """endpoint       address of the interface, such as http://localhost:8000/v1
    model          name of the model there
    setting        key of these settings on the command line, for messages
    key_variable   environment variable that holds the key; None sends none
    timeout        seconds for one answer             retries   further tries when the endpoint is busy or not reached
    answer_tokens  tokens of the longest answer

    Raises Refused for an invalid address, for one that carries a password, or for a key that is not there."""

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        setting: str,
        key_variable: str | None,
        timeout: float,
        retries: int,
        answer_tokens: int,
    ):
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused(f"{setting}.endpoint={endpoint} is no address: give one such as http://localhost:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise Refused(
                f"{setting}.endpoint carries a user, a password or a query, which would be stored with the run: give the "
                f"plain address, and name the environment variable of the key in {setting}.key_variable."
            )
        self.endpoint, self.model, self.setting, self.key_variable = endpoint.rstrip("/"), model, setting, key_variable
        self.timeout, self.retries, self.answer_tokens = timeout, retries, answer_tokens
        self._key()

    def allow(self, calls: int, most: int, *, counted: str, fewer: str) -> None:
        """Raises Refused where calls could be more than `most`, naming what they were counted from and the setting that asks
        for fewer."""
        if calls > most:
            raise Refused(
                f"{self.setting} would call {self.model} up to {calls:,} times ({counted}), more than "
                f"{self.setting}.most_calls={most:,}. Ask about fewer {fewer}, or allow more calls."
            )

    def ask(self, system: str, question: str) -> str:
        """The answer, without what a reasoning model thought first; "" where it said nothing. May be called from several
        threads. Raises Refused when there is no answer, naming the endpoint, the reason and the setting to look at."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        asked = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.answer_tokens}
        attempt = 0
        while True:
            try:
                return self._answer(json.dumps(asked).encode()).rpartition("</think>")[2].strip()
            except Busy as busy:
                if attempt == self.retries:
                    tries = f"{attempt + 1} {'try' if attempt == 0 else 'tries'}"
                    raise Refused(
                        f"{self.endpoint} gave no answer after {tries}: {busy}. Is it running, and is "
                        f"{self.setting}.endpoint its address? {self.setting}.timeout and {self.setting}.retries say "
                        f"how long to wait."
                    ) from None
                time.sleep(min(max(busy.wait, PAUSE * 2**attempt), LONGEST_PAUSE))
                attempt += 1

    def _answer(self, asked: bytes) -> str:
        request = urllib.request.Request(
            f"{self.endpoint}/chat/completions", data=asked, headers={"Content-Type": "application/json"}
        )
        key = self._key()
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                said = response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                said = _without(key, " ".join(error.read().decode(errors="replace").split())[:300])
            if error.code in BUSY:
                wait = error.headers.get("Retry-After", "")
                raise Busy(f"status {error.code}: {said}", float(wait) if wait.isdecimal() else 0.0) from None
            raise Refused(
                f"{self.endpoint} refused the call with status {error.code}: {said}. Look at {self.setting}.endpoint, "
                f"{self.setting}.model={self.model} and {self.setting}.key_variable."
            ) from None
        except (OSError, http.client.HTTPException) as error:  # not found, refused, cut off, too slow
            raise Busy(_without(key, str(getattr(error, "reason", error)) or type(error).__name__)) from None
        try:
            return json.loads(said)["choices"][0]["message"]["content"] or ""
        except (ValueError, LookupError, TypeError):
            raise Refused(
                f"{self.endpoint} does not answer as a chat endpoint ({_without(key, said)[:200]!r}): is "
                f"{self.setting}.endpoint the address up to and with /v1?"
            ) from None

    def _key(self) -> str:
        if self.key_variable is None:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise Refused(
                f"{self.setting}.key_variable={self.key_variable}: this environment variable holds no key. Set it, or "
                f"{self.setting}.key_variable=null for an endpoint that wants none."
            )
        return key


def _without(key: str, text: str) -> str:
    """The text without the key: an endpoint may repeat in its answer what it was sent."""
    return text.replace(key, "<key>") if key else text
