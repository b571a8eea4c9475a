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

import functools
import math
from collections.abc import Iterator, Sequence

import torch

from tunediff.evaluations.given import Trained
from tunediff.evaluations.judging.chat import Judge
from tunediff.evaluations.judging.examination import (
    DETECTION,
    FUZZING,
    RANDOM,
    STRONGEST,
    Subject,
    Window,
    examined,
    examined_on,
)
from tunediff.evaluations.latents.selection import chosen_latents
from tunediff.evaluations.reading.examples import Examples
from tunediff.measures import mean_of
from tunediff.shapes import Finding, Note, Refused, Table

SETTING = "evaluation.autointerp"


class Autointerp:
    """judge            the language model that explains and is examined: of a latent's examples half explain, up to as many are
                     held back
    latents          their indices; an expression that chooses them; or how many: those alive that belong most to one model
    texts_per_call   texts that are judged by one answer
    price_per_million_tokens   price of prompt tokens, for the estimate

    Raises Refused before a model is loaded where calls could be more than the judge's `most_calls`, or address or key are
    missing; before anything is asked where an expression chooses so many."""

    def __init__(
        self,
        *,
        judge: Judge,
        latents: int | str | Sequence[int] = 20,
        texts_per_call: int = 5,
        price_per_million_tokens: float | None = None,
    ):
        if texts_per_call < 1:
            raise Refused(f"{SETTING} needs texts_per_call=1 or more.")
        chat = judge.chat(f"{SETTING}.judge")
        if chat is None:
            raise Refused(f"{SETTING}.judge.endpoint=null: nobody would be asked; give an address.")
        self.chat, self.half = chat, judge.examples // 2
        self.latents, self.texts_per_call, self.price = latents, texts_per_call, price_per_million_tokens
        if not isinstance(latents, str):  # how many an expression chooses is known once the text was read
            self._allow(latents if isinstance(latents, int) else len(latents))

    def _allow(self, count: int) -> None:
        """Raises Refused where so many latents could take more calls than are allowed."""
        each = 1 + math.ceil(2 * self.half / self.texts_per_call) + 2 * math.ceil(self.half / self.texts_per_call)
        self.chat.allow(count * each, counted=f"{count:,} latents, {each} calls each", fewer=f"{SETTING}.latents")

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        """Explains and examines the latents. Raises Refused where the endpoint gives no answer at all; once it has answered,
        what is known is reported."""
        made = self._subjects(trained)
        subjects = [subject for subject in made.values() if subject is not None]
        passed_over = [str(latent) for latent, subject in made.items() if subject is None]
        if passed_over:
            yield Note(
                f"autointerp passed over latents {', '.join(passed_over)}: too few held-out documents activate them, or no "
                "window was found in which they are silent."
            )
        if not subjects:
            yield Note("autointerp was not measured: no latent has enough held-out examples.")
            return
        calls, characters = sum(s.calls for s in subjects), sum(s.characters for s in subjects)
        self.chat.announce(f"autointerp: {len(subjects):,} latents,", calls, characters, self.price)
        examine = functools.partial(examined, self.chat.ask)
        done, notes = self.chat.each(examine, subjects, evaluation="autointerp", done="latents examined")
        yield from notes
        found = list(done.values())
        unread, calls = sum(one.unread for one in found), sum(one.calls for one in found)
        if unread:
            yield Note(
                f"autointerp could not read {unread} of {calls} answers of {self.chat.model}: no line 'Explanation:', or "
                f"no list of 0 and 1 for every text. They are left out of the scores."
            )
        for test, what in ((DETECTION, "which texts activate the latent"), (FUZZING, "where its tokens are marked")):
            known = [one.scores[test] for one in found if one.scores[test] is not None]
            meaning = (
                f"balanced accuracy of {self.chat.model} in telling {what} by an explanation of its own, mean over "
                f"{len(known)} latents, 95 % interval over these; 0.5 is chance"
            )
            bounded = mean_of(torch.tensor(known, dtype=torch.float64), least=0.0, most=1.0)
            yield Finding(f"autointerp/{test}/balanced_accuracy", *bounded, meaning, over="latents")
        rows = ({"latent": s.latent, "explanation": s.explanation, **s.scores, "calls": s.calls} for s in found)
        yield Table.of("autointerp", rows)

    def _subjects(self, trained: Trained) -> dict[int, Subject | None]:
        """The latents that are wanted, with what will be asked about each; None for one that has too few examples."""
        chosen = chosen_latents(trained, self.latents, setting=f"{SETTING}.latents")
        self._allow(len(chosen))
        windows = windows_of(trained, chosen, strongest=self.chat.judge.examples, silent=self.half)
        return {latent: examined_on(latent, windows[latent], self.half, self.texts_per_call) for latent in chosen}


# -- windows of text -------------------------------------------------------------------------------------------------


def windows_of(trained: Trained, latents: Sequence[int], *, strongest: int, silent: int) -> dict[int, list[Window]]:
    """The strongest windows of each latent, strongest first, and random ones in which it fires nowhere, as far as there are
    so many."""
    windows: dict[int, list[Window]] = {latent: [] for latent in latents}
    (table,) = Examples(strongest=strongest, quantiles=0, random=2 * silent, latents=latents).run(trained)
    columns = (table.columns.get(name, []) for name in ("latent", "kind", "document", "tokens", "activations"))
    for latent, *window in zip(*columns, strict=True):
        mine, one = windows[latent], Window(*window)
        enough = sum(other.kind == RANDOM for other in mine) >= silent
        if one.kind == STRONGEST or not (any(one.activations) or enough):
            mine.append(one)
    return windows
