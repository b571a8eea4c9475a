"""Explanations of latents in words, and whether they hold: a language model explains each latent and is then examined.

1. Explanation: half of a latent's strongest held-out examples are shown, active tokens marked, with their strengths.
2. Detection: which of these texts does the explanation fit? Held-back examples among random windows without the latent.
3. Fuzzing: in which of these texts are the right tokens marked? Held-back examples with their active tokens marked, or
   with as many of their silent tokens; a text never stands in one question both ways.

A score is balanced accuracy, the mean of the shares of right answers on either kind: an explanation that says nothing
reaches 0.5. After Paulo et al. 2024 (arXiv 2410.13928). Differs from their Delphi, whose fuzzing by default marks tokens of
windows without the latent: these can be told apart as in detection.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from tunediff.evaluations.given import Trained
from tunediff.evaluations.judging.chat import Chat, each
from tunediff.evaluations.judging.examination import (
    DETECTION,
    EXPLAIN,
    FEWEST,
    FUZZING,
    JUDGE,
    RANDOM,
    STRONGEST,
    TESTS,
    Subject,
    Window,
    balanced_accuracy,
    examined_on,
    sentence_in,
    verdicts_in,
)
from tunediff.evaluations.latents.selection import chosen_latents
from tunediff.evaluations.reading.examples import Examples
from tunediff.measures.clustered import mean_of
from tunediff.shapes import Finding, Note, Refused, Table

log = logging.getLogger(__name__)

SETTING = "evaluation.autointerp"


class Examined(NamedTuple):
    """The explanation of a latent and its scores, None where no answer could be read. `calls` counts answers, `unread` those
    of them that could not be read."""

    latent: int
    explanation: str | None
    scores: dict[str, float | None]
    calls: int
    unread: int


class Autointerp:
    """endpoint         address of an OpenAI-compatible interface            model   name of the model there
    latents          their indices; an expression that chooses them; or how many: those alive that belong most to one model
    examples         examples per latent: half of them explain, up to as many are held back
    texts_per_call   texts that are judged by one answer
    key_variable     environment variable that holds the key; null: none is sent
    most_calls       most calls of one evaluation; more are refused before anything is asked
    price_per_million_tokens   price of prompt tokens, for the estimate  at_once   calls under way
    timeout          seconds for one answer                              retries   tries when the endpoint is busy
    answer_tokens    tokens of the longest answer, thoughts included

    Raises Refused before a model is loaded where calls could be more than `most_calls`, or address or key are missing; before
    anything is asked where an expression chooses so many."""

    def __init__(
        self,
        *,
        endpoint: str,
        model: str,
        latents: int | str | Sequence[int] = 20,
        examples: int = 20,
        texts_per_call: int = 5,
        key_variable: str | None = None,
        most_calls: int = 500,
        price_per_million_tokens: float | None = None,
        at_once: int = 4,
        timeout: float = 120.0,
        retries: int = 5,
        answer_tokens: int = 2000,
    ):
        if examples < FEWEST or texts_per_call < 1:
            raise Refused(f"{SETTING} needs examples={FEWEST} or more and texts_per_call=1 or more.")
        self.chat = Chat(
            endpoint,
            model,
            setting=SETTING,
            key_variable=key_variable,
            timeout=timeout,
            retries=retries,
            answer_tokens=answer_tokens,
        )
        self.latents, self.examples, self.texts_per_call = latents, examples, texts_per_call
        self.price, self.at_once, self.most_calls = price_per_million_tokens, at_once, most_calls
        if not isinstance(latents, str):  # how many an expression chooses is known once the text was read
            self._allow(latents if isinstance(latents, int) else len(latents))

    def _allow(self, count: int) -> None:
        """Raises Refused where so many latents could take more calls than are allowed."""
        half = self.examples // 2
        each = 1 + math.ceil(2 * half / self.texts_per_call) + 2 * math.ceil(half / self.texts_per_call)
        counted = f"{count:,} latents, {each} calls each"
        self.chat.allow(count * each, self.most_calls, counted=counted, fewer=f"{SETTING}.latents")

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        """Explains and examines the latents. Raises Refused where the endpoint gives no answer at all; once it has answered,
        what is known is reported."""
        subjects, passed_over = self._subjects(trained)
        if passed_over:
            yield Note(
                f"autointerp passed over latents {', '.join(map(str, passed_over))}: too few held-out documents activate "
                f"them, or no window was found in which they are silent."
            )
        if not subjects:
            yield Note("autointerp was not measured: no latent has enough held-out examples.")
            return
        self._announce(subjects)
        done, failure = each(self._examine_one, subjects, at_once=self.at_once, title="autointerp", unit="latent")
        examined = list(done.values())
        if failure is not None and not examined:
            raise failure
        if failure is not None:
            yield Note(f"autointerp stopped with {len(examined)} of {len(subjects)} latents examined: {failure}")
        unread, calls = sum(one.unread for one in examined), sum(one.calls for one in examined)
        if unread:
            yield Note(
                f"autointerp could not read {unread} of {calls} answers of {self.chat.model}: no line 'Explanation:', or "
                f"no list of 0 and 1 for every text. They are left out of the scores."
            )
        for test, what in ((DETECTION, "which texts activate the latent"), (FUZZING, "where its tokens are marked")):
            yield self._finding(test, what, [one.scores[test] for one in examined])
        yield Table(
            "autointerp",
            {
                "latent": [one.latent for one in examined],
                "explanation": [one.explanation for one in examined],
                **{test: [one.scores[test] for one in examined] for test in TESTS},
                "calls": [one.calls for one in examined],
            },
        )

    def _finding(self, test: str, what: str, scores: Sequence[float | None]) -> Finding:
        known = [score for score in scores if score is not None]
        name = f"autointerp/{test}/balanced_accuracy"
        meaning = (
            f"balanced accuracy of {self.chat.model} in telling {what} by an explanation of its own, mean over "
            f"{len(known)} latents, 95 % interval over these; 0.5 is chance"
        )
        return Finding(name, *mean_of(torch.tensor(known, dtype=torch.float64), least=0.0, most=1.0), meaning)

    def _subjects(self, trained: Trained) -> tuple[list[Subject], list[int]]:
        """The latents that will be asked about, and those that were wanted but have too few examples."""
        half = self.examples // 2
        chosen = chosen_latents(trained, self.latents, setting=f"{SETTING}.latents")
        self._allow(len(chosen))
        windows = windows_of(trained, chosen, strongest=self.examples, silent=half)
        made = [examined_on(latent, windows[latent], half, self.texts_per_call) for latent in chosen]
        passed_over = [latent for latent, subject in zip(chosen, made, strict=True) if subject is None]
        return [subject for subject in made if subject is not None], passed_over

    def _announce(self, subjects: Sequence[Subject]) -> None:
        tokens = sum(subject.characters for subject in subjects) // 4
        price = "" if self.price is None else f", {tokens / 1e6 * self.price:.2f} at {self.price:g} a million"
        calls = sum(subject.calls for subject in subjects)
        log.info(
            "autointerp: %s latents, %s calls of %s at %s, about %s prompt tokens (characters / 4)%s; answers come on top",
            *(f"{len(subjects):,}", f"{calls:,}", self.chat.model, self.chat.endpoint, f"{tokens:,}", price),
        )

    def _examine_one(self, subject: Subject) -> Examined:
        explanation = sentence_in(self.chat.ask(EXPLAIN, subject.passages), "explanation")
        if explanation is None:
            return Examined(subject.latent, None, dict.fromkeys(TESTS), calls=1, unread=1)
        scores, unread = {}, 0
        for test in TESTS:
            answers: list[tuple[bool, bool]] = []
            for question in subject.questions[test]:
                said = verdicts_in(self.chat.ask(JUDGE[test], question.about(explanation)), len(question.texts))
                if said is None:
                    unread += 1
                else:
                    answers += zip(question.truth, said, strict=True)
            scores[test] = balanced_accuracy(answers)
        return Examined(subject.latent, explanation, scores, subject.calls, unread)


# -- windows of text -------------------------------------------------------------------------------------------------


def windows_of(trained: Trained, latents: Sequence[int], *, strongest: int, silent: int) -> dict[int, list[Window]]:
    """The strongest windows of each latent, strongest first, and random ones in which it fires nowhere, as far as there are
    so many."""
    windows: dict[int, list[Window]] = {latent: [] for latent in latents}
    examples = Examples(strongest=strongest, quantiles=0, random=2 * silent, latents=latents)
    for columns in (table.columns for table in examples.run(trained)):
        names = ("latent", "kind", "document", "tokens", "activations")
        for latent, *window in zip(*(columns[name] for name in names), strict=True):
            mine, one = windows[latent], Window(*window)
            if (
                one.kind == STRONGEST
                or not any(one.activations)
                and sum(other.kind == RANDOM for other in mine) < silent
            ):
                mine.append(one)
    return windows
