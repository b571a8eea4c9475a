"""A persona vector (arXiv 2507.21509, section 2): the model answers questions under system prompts that ask for a trait, and under
such that ask for its opposite; the vector is the mean hidden vector over the tokens of the ones' responses less that of the
others', each response the mean of its own tokens.

Published: five pairs of system prompts, 20 questions, 10 answers each at temperature 1; of them those that a judge gives more than
50 of 100, or less than 50 under the opposite prompts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunediff.directions.direction import Direction, Place, Source
from tunediff.directions.means import normalised, streams_at, told
from tunediff.edits import Sequences
from tunediff.generation import Asked, Batched, Decoding, Response, ask, generate
from tunediff.hookpoints import ForwardStopped, Point, reading
from tunediff.models import ModelPair
from tunediff.shapes import Refused, Stream
from tunediff.text import read_files

SIDES = ("pos", "neg")


class Answered(NamedTuple):
    """Responses under one system prompt, in the order of the questions and their rollouts."""

    questions: list[str]
    asked: list[Asked]
    responses: list[Response]


@dataclass(frozen=True, kw_only=True)
class PersonaVector(Source):
    """prompts     pairs of system prompts, {pos, neg}; None: those of the trait in `file`
    questions   what is asked under each; None: those of the trait in `file`
    file        persona traits: columns trait, split, instruction (pairs of prompts) and questions; of the split `extract`
    trait       its name there, and in messages
    rollouts    responses to each question under each prompt      tokens   of a response at most      temperature, seed   of all draws
    scorer      who scores responses from 0 to 100, verdicts((question, response)) as tunediff.evaluations.TraitJudge; None: all
                responses count
    from_score  score above which a response shows the trait; below it one does not
    batch       prompts that are answered, and read, at once
    """

    trait: str
    file: str | None = None
    prompts: Sequence[Mapping[str, str]] | None = None
    questions: Sequence[str] | None = None
    rollouts: int = 10
    tokens: int = 300
    temperature: float = 1.0
    scorer: Any = None
    from_score: float = 50.0
    hookpoint: str = "resid_post"
    normalise: str = "none"
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rollouts", "tokens", "batch"):
            if getattr(self, name) < 1:
                raise Refused(f"direction.{name}={getattr(self, name)}: give a number from 1.")
        if self.file is None and not (self.prompts and self.questions):
            raise Refused(
                "A persona vector needs prompts, pairs of pos and neg, and questions; or direction.file that has those of its trait."
            )

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        pair, streams = given.pair, streams_at(given.pair, role, self.hookpoint, layers)
        prompts, questions = self._asked()
        sums, counts = [torch.zeros(len(streams), streams[0].width).double() for _ in SIDES], [0, 0]
        for number, prompt in enumerate(prompts):
            for side, name in enumerate(SIDES):
                answered = self._answered(given, role, prompt[name], questions, f"{number} {name}")
                kept = self._kept(answered, shows=name == "pos")
                for means in self._means(pair, role, streams, answered, kept):
                    sums[side] += means
                    counts[side] += 1
        if not all(counts):
            which = SIDES[counts.index(0)]
            raise Refused(
                f"No response under the system prompts '{which}' of {self.trait} counts: {'the judge gives none such a score' if self.scorer else 'all are empty'}."
            )
        vectors = {s.layer: (sums[0][n] / counts[0] - sums[1][n] / counts[1]).float() for n, s in enumerate(streams)}
        said = told(self, pair, role, responses_with=counts[0], responses_without=counts[1])
        said.pop("prompts", None)
        return normalised(Direction(vectors, self.hookpoint, said), self.normalise)

    def _asked(self) -> tuple[Sequence[Mapping[str, str]], Sequence[str]]:
        """Pairs of system prompts, and questions."""
        if self.prompts and self.questions:
            return self._checked(self.prompts), list(self.questions)
        for row in read_files(str(self.file)):
            if row.get("trait") == self.trait and row.get("split") == "extract":
                questions = row.get("questions")
                questions = json.loads(questions) if isinstance(questions, str) else questions
                return self._checked(self.prompts or row.get("instruction") or ()), list(
                    self.questions or questions or ()
                )
        raise Refused(f"{self.file} has no trait {self.trait} of the split extract.")

    def _checked(self, prompts: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
        if not prompts or not all(
            isinstance(one, Mapping) and all(isinstance(one.get(side), str) for side in SIDES) for one in prompts
        ):
            raise Refused(
                f"The system prompts of {self.trait} are pairs, {{pos: ..., neg: ...}}, of which there is at least one."
            )
        return prompts

    def _answered(self, given: Place, role: str, system: str, questions: Sequence[str], name: str) -> Answered:
        """Responses to every question, so many times each, under a system prompt."""
        pair, manner = given.pair, dataclasses.replace(given.text.manner, system=system)
        tokenizer = pair.tokenizers[pair.entry(role)]
        every = [question for question in questions for _ in range(self.rollouts)]
        named = [(f"{self.trait} {name} {n}", question) for n, question in enumerate(every)]
        asked = ask(named, tokenizer, manner)
        decoding = Decoding(tokens=self.tokens, temperature=self.temperature, seed=self.seed)
        title = f"{self.trait}, {name}"
        found = generate(pair, role, asked, decoding, engine=Batched(self.batch), tokenizer=tokenizer, title=title)
        return Answered(every, asked, found)

    def _kept(self, answered: Answered, *, shows: bool) -> list[int]:
        """Places of the responses that count: those that say anything, and that the judge finds on their side."""
        said = [n for n, response in enumerate(answered.responses) if response.ids]
        if self.scorer is None or not said:
            return said
        asked = [(answered.questions[n], answered.responses[n].text) for n in said]
        verdicts, _ = self.scorer.verdicts(asked, f"{self.trait}, {'asked for' if shows else 'its opposite'}")
        scores = zip(said, (verdict.trait for verdict in verdicts), strict=True)
        return [
            n
            for n, score in scores
            if score is not None and (score > self.from_score if shows else score < self.from_score)
        ]

    @torch.no_grad()
    def _means(
        self, pair: ModelPair, role: str, streams: Sequence[Stream], answered: Answered, kept: Sequence[int]
    ) -> list[Tensor]:
        """Mean hidden vectors [layer, width] over the tokens of each response that counts."""
        found, model = [], pair.models[role]
        tokenizer, points = pair.tokenizers[pair.entry(role)], [Point(s.hookpoint, s.layer) for s in streams]
        for first in range(0, len(kept), self.batch):
            places = kept[first : first + self.batch]
            prompts, responses = [answered.asked[n].ids for n in places], [answered.responses[n].ids for n in places]
            known = Sequences.of_responses(tokenizer, prompts, responses, pair.device(role), layouts=pair.layouts)
            places_of = (known.real.long().cumsum(1) - 1).clamp(min=0)
            with reading(model, points) as read, suppress(ForwardStopped):
                model.base_model(
                    input_ids=known.ids, attention_mask=known.real.long(), position_ids=places_of, use_cache=False
                )
            stacked = torch.stack([read[point].double() for point in points], dim=1)  # [batch, layer, position, width]
            weights = known.response.double()[:, None, :, None]
            found += list(((stacked * weights).sum(2) / weights.sum(2)).cpu())
        return found
