"""A prompt -> the answer of a language model behind an OpenAI-compatible endpoint, asked again while that one is busy.

Knows no classes and no units. Held-out text is sent to the endpoint that was given; where none is, there is nobody to ask.
The key is read from the environment at every call: it goes into the header of the request, and into no setting, log, message
or answer.
"""

from __future__ import annotations

import functools
import http.client
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from tunediff.evaluations.judging.endpoint import PrivateAddress, Reply, TooLarge, inside, post, proxy_of, without
from tunediff.evaluations.judging.examination import FEWEST
from tunediff.shapes import Note, Refused
from tunediff.terminal import printable

log = logging.getLogger(__name__)

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


@dataclass(frozen=True, kw_only=True)
class Judge:
    """endpoint        address of an OpenAI-compatible interface; null: nobody is asked       model   name of the model there
    examples        number of examples shown per unit, its strongest
    key_variable    environment variable that holds the key; null: none is sent
    most_calls      most calls of one evaluation; more are refused before anything is asked             at_once   calls under way
    timeout         seconds for one answer                              retries   tries when the endpoint is busy
    answer_tokens   tokens of the longest answer, thoughts included
    private         true: the endpoint may stand in a private network, such as 10.0.0.7, 169.254.1.1 or a cluster's node; this
                    machine itself needs no leave"""

    endpoint: str | None
    model: str | None
    examples: int
    key_variable: str | None = None
    most_calls: int
    at_once: int = 4
    timeout: float = 120.0
    retries: int = 5
    answer_tokens: int = 2000
    private: bool = False

    def chat(self, setting: str) -> Chat | None:
        """The endpoint, or None where nobody is asked. Raises Refused, naming the setting, for an address that is invalid or
        carries a password, for one of a private network without leave, for too few examples, and where model or key are
        missing."""
        if self.endpoint is None:
            return None
        if self.model is None:
            raise Refused(f"{setting}.endpoint={self.endpoint} is asked for no model: name it, {setting}.model=<...>.")
        if self.examples < FEWEST:
            raise Refused(f"{setting} needs examples={FEWEST} or more.")
        try:
            parts = urlsplit(self.endpoint)
            known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:  # a port or brackets that are none
            known = False
        if not known or not self.endpoint.isascii() or not self.endpoint.isprintable() or " " in self.endpoint:
            raise Refused(
                f"{setting}.endpoint={printable(self.endpoint)} is no address: give one such as http://localhost:8000/v1."
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise Refused(
                f"{setting}.endpoint carries a user, a password or a query, which would be stored with the run: give the "
                f"plain address, and name the environment variable of the key in {setting}.key_variable."
            )
        if not self.private and (why := inside(parts.hostname or "")):
            raise Refused(_needs_leave(setting, self.endpoint, why))
        proxy_of(parts)
        chat = Chat(self, setting, self.endpoint.rstrip("/"), self.model)
        chat.key()
        return chat


@dataclass(frozen=True)
class Chat:
    """A judge that can be asked. `setting` is the key of its settings on the command line, for messages."""

    judge: Judge
    setting: str
    endpoint: str
    model: str

    def allow(self, calls: int, *, counted: str, fewer: str) -> None:
        """Raises Refused where calls could be more than `most_calls`, naming what they were counted from and the setting that
        asks for fewer."""
        if calls > self.judge.most_calls:
            raise Refused(
                f"{self.setting} would call {self.model} up to {calls:,} times ({counted}), more than "
                f"{self.setting}.most_calls={self.judge.most_calls:,}. Ask about fewer {fewer}, or allow more calls."
            )

    def announce(self, what: str, calls: int, characters: int, price: float | None = None) -> None:
        """Logs how much will be sent, and what it costs where a million tokens have a price."""
        tokens = characters // 4
        cost = "" if price is None else f", {tokens / 1e6 * price:.2f} at {price:g} a million"
        proxy = proxy_of(urlsplit(self.endpoint))
        by = "" if proxy is None else f" through the proxy {proxy.hostname} of the environment"
        log.info(
            "%s %s calls of %s at %s%s, about %s prompt tokens (characters / 4)%s; answers come on top",
            *(what, f"{calls:,}", self.model, self.endpoint, by, f"{tokens:,}", cost),
        )

    def each(
        self, ask: Callable[[Item], Answer], items: Sequence[Item], *, evaluation: str, done: str
    ) -> tuple[dict[int, Answer], list[Note]]:
        """Index of an item -> its answer, in the items' order, and a note where some have none: after a call that failed for
        good no further item is begun. Raises Refused where the endpoint gives no answer at all. `done` says in the note what
        the answered items are, such as "latents judged"."""
        found: dict[int, Answer] = {}
        failure = None
        pool = ThreadPoolExecutor(self.judge.at_once)
        try:
            under_way = {pool.submit(ask, item): n for n, item in enumerate(items)}
            for future in tqdm(as_completed(under_way), total=len(items), desc=done, leave=False, delay=2):
                if future.cancelled():
                    continue
                try:
                    found[under_way[future]] = future.result()
                except Refused as refusal:
                    failure = failure or refusal
                    for waiting in under_way:
                        waiting.cancel()
        finally:
            pool.shutdown(cancel_futures=True)
        if failure is not None and not found:
            raise failure
        stopped = f"{evaluation} stopped with {len(found)} of {len(items)} {done}: {failure}"
        return dict(sorted(found.items())), [] if failure is None else [Note(stopped)]

    def answers(
        self, system: str, questions: Sequence[str], *, evaluation: str, units: str
    ) -> tuple[dict[int, str], list[Note]]:
        """Index of a question -> its answer, as `each` gives them. The amount that will be sent is logged first."""
        characters = sum(len(system) + len(question) for question in questions)
        self.announce(f"{evaluation}:", len(questions), characters)
        ask = functools.partial(self.ask, system)
        return self.each(ask, questions, evaluation=evaluation, done=f"{units} judged")

    def ask(self, system: str, question: str) -> str:
        """The answer, without what a reasoning model thought first; "" where it said nothing. May be called from several
        threads. Raises Refused when there is no answer, naming the endpoint, the reason and the setting to look at."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        asked = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.judge.answer_tokens}
        attempt = 0
        while True:
            try:
                return self._answer(json.dumps(asked).encode())
            except Busy as busy:
                if attempt == self.judge.retries:
                    tries = f"{attempt + 1} {'try' if attempt == 0 else 'tries'}"
                    raise Refused(
                        f"{self.endpoint} gave no answer after {tries}: {busy}. Is it running, and is "
                        f"{self.setting}.endpoint its address? {self.setting}.timeout and {self.setting}.retries say "
                        f"how long to wait."
                    ) from None
                time.sleep(min(max(busy.wait, PAUSE * 2**attempt), LONGEST_PAUSE))
                attempt += 1

    def _answer(self, asked: bytes) -> str:
        """The answer without the key, which an endpoint may repeat. Raises Busy where the endpoint may answer later, Refused for
        all that is no answer."""
        key = self.key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        address, timeout = f"{self.endpoint}/chat/completions", self.judge.timeout
        try:
            reply = post(address, asked, headers, timeout=timeout, private=self.judge.private)
        except PrivateAddress as private:
            raise Refused(_needs_leave(self.setting, self.endpoint, str(private))) from None
        except TooLarge as large:
            raise Refused(f"{self.endpoint} sends {large}, which no chat endpoint does. {self._address()}") from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # not found, refused, cut off, too slow
            raise Busy(_short(key, str(error)) or type(error).__name__) from None
        if reply.status != 200:
            raise self._refusal(reply, key)
        try:
            said = json.loads(reply.text)["choices"][0]["message"]["content"]
            if not isinstance(said, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Refused(
                f"{self.endpoint} does not answer as a chat endpoint ({_short(key, reply.text)!r}): is "
                f"{self.setting}.endpoint the address up to and with /v1?"
            ) from None
        answer = (said or "").rpartition("</think>")[2].strip()
        return without(key, answer.encode(errors="replace").decode())

    def _refusal(self, reply: Reply, key: str) -> Exception:
        """The error for a status that is not that of an answer."""
        said = _short(key, reply.text)
        if reply.status in BUSY:
            wait = reply.headers.get("retry-after", "")
            return Busy(f"status {reply.status}: {said}", float(wait) if wait.isdecimal() else 0.0)
        if 300 <= reply.status < 400:
            there = _short(key, reply.headers.get("location", "")) or "somewhere else"
            return Refused(
                f"{self.endpoint} sends its callers on to {there} (status {reply.status}), where neither text nor key are taken. "
                f"{self._address()}"
            )
        return Refused(
            f"{self.endpoint} refused the call with status {reply.status}: {said}. Look at {self.setting}.endpoint, "
            f"{self.setting}.model={self.model} and {self.setting}.key_variable."
        )

    def _address(self) -> str:
        return f"Is {self.setting}.endpoint the address of the endpoint itself, up to and with /v1?"

    def key(self) -> str:
        """The key from its environment variable, "" where none is sent. Raises Refused where the variable holds none."""
        variable = self.judge.key_variable
        if variable is None:
            return ""
        key = os.environ.get(variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise Refused(
                f"{self.setting}.key_variable={variable}: this environment variable holds no key. Set it, or "
                f"{self.setting}.key_variable=null for an endpoint that wants none."
            )
        return key


def _short(key: str, text: str) -> str:
    """The beginning of what was said, in one line that a terminal shows, without the key: what is cut first may leave a part of
    it that is not known any more."""
    return printable(without(key, " ".join(text.split())[:20_000])[:300])


def _needs_leave(setting: str, endpoint: str, why: str) -> str:
    return (
        f"{setting}.endpoint={endpoint}: {why}, to which text is sent where you say so alone. If it is yours, add "
        f"{setting}.private=true."
    )
