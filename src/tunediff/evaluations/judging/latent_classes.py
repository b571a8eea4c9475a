"""A latent's strongest examples and the tokens it raises -> what it is about and how it acts, as a language model sorts it.

    class       language         words, grammar and form, whatever the text is about
                domain           knowledge of a field: mathematics, science, code, other
                reasoning        how a problem is worked on: hesitations, checks, plans, turns, ends
                uninterpretable
    mechanism   output           acts through what it writes next
                input_simple     stands for a token or a word form
                input_abstract   stands for something about the context

The classes of arXiv 2602.20904 for latents of transcoder adapters, asked in our own words of any dictionary's. Raised are the
tokens of the direct path to the logits (logit_effect.py). Held-out text is sent to the endpoint that was given; where none
is, nobody is asked.
"""

# Differs from the paper: a mechanism is asked for wherever something could be interpreted, there of reasoning alone; a domain
# may be another than the paper's three; the layer is not told.

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from tunediff import randomness
from tunediff.evaluations.given import Trained
from tunediff.evaluations.judging.autointerp import windows_of
from tunediff.evaluations.judging.chat import Judge
from tunediff.evaluations.judging.examination import FEWEST, choice_in, passages, sentence_in
from tunediff.evaluations.latents.columns import layers_of
from tunediff.evaluations.latents.selection import chosen_latents
from tunediff.evaluations.latents.statistics import relative_decoder_norm
from tunediff.evaluations.reading.logit_effect import WRITTEN, strongest_effects, written_rows
from tunediff.measures import share
from tunediff.shapes import BASE, TUNED, Finding, Note, Refused, Table

SETTING = "evaluation.latent_classes"
RAISED = 15  # tokens that are shown, as many as in the authors' script
CLASSES = LANGUAGE, DOMAIN, REASONING, UNINTERPRETABLE = ("language", "domain", "reasoning", "uninterpretable")
DOMAINS = ("mathematics", "science", "code", "other")
MECHANISMS = ("output", "input_simple", "input_abstract")
ANSWERED = ("class", "domain", "mechanism", "reason")  # columns of a verdict
QUESTION = """You sort units inside a language model that works on problems step by step. Of one unit you are given the \
passages in which it is most active, and the tokens that it makes more likely to be written next when it is active. In the \
passages the tokens that make it active stand between << and >>, and below each passage they are listed with a strength from \
1 to 10. First decide what the unit is about:
language: words, grammar, punctuation or layout, as they occur in text about anything.
domain: knowledge of a field, such as its terms, symbols, quantities or objects.
reasoning: how a problem is worked on, such as hesitating, checking, planning, trying another way, concluding; in whatever \
field.
uninterpretable: the passages have nothing in common that could be said, or several things that are unrelated.
For a unit about a domain, say which: mathematics, science, code or other.
Then decide how it acts, unless it is uninterpretable:
output: the tokens that it makes more likely explain it best. They belong together, and they are, or would fit, what stands \
right behind its active tokens.
input_simple: it is active on one token or on forms of one word, wherever these stand.
input_abstract: it is active where something holds of the text so far, which the active tokens alone do not tell.
Do not mention the marks, the strengths or this task. End with four lines, with the word none where a line does not apply:
Reason: <one sentence: what the unit stands for, or why it cannot be said>
Class: <language, domain, reasoning or uninterpretable>
Domain: <mathematics, science, code, other or none>
Mechanism: <output, input_simple, input_abstract or none>"""


class Verdict(NamedTuple):
    """The class of a latent. The class domain alone has a `domain`, all but the uninterpretable have a `mechanism`; `reason`
    is "" where none was given."""

    kind: str
    domain: str | None
    mechanism: str | None
    reason: str


class LatentClasses:
    """judge        the language model that is asked; without an endpoint none is
    latents      their indices; an expression that chooses them; or how many: those alive that belong most to one model. null:
                 `each_layer` of every layer
    each_layer   number drawn per layer among those alive; in all, where each latent reads several layers
    seed         seed of the draw

    Raises Refused before a model is loaded where the judge cannot be asked; before anything is asked where calls would be
    more than its `most_calls`."""

    def __init__(
        self,
        *,
        judge: Judge,
        latents: int | str | Sequence[int] | None = None,
        each_layer: int = 50,
        seed: int = 0,
    ):
        if each_layer < 1:
            raise Refused(f"{SETTING} needs each_layer=1 or more.")
        self.latents, self.each_layer, self.seed = latents, each_layer, seed
        self.chat = judge.chat(f"{SETTING}.judge")
        if latents is not None and not isinstance(latents, str):  # how many others are is known once the text was read
            self._allow(latents if isinstance(latents, int) else len(latents))

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        """Sorts the latents. Raises Refused where the endpoint gives no answer at all; once it has answered, what is known is
        reported."""
        if self.chat is None:
            yield Note(
                f"latent_classes asked nobody: {SETTING}.judge.endpoint=<...> and .model=<...> name who sorts latents."
            )
            return
        chosen = self._chosen(trained)
        self._allow(len(chosen))
        windows = windows_of(trained, chosen, strongest=self.chat.judge.examples, silent=0)
        shown = [latent for latent in chosen if len(windows[latent]) >= FEWEST]
        if short := len(chosen) - len(shown):
            yield Note(
                f"latent_classes passed over {short} latents: fewer than {FEWEST} held-out documents activate them."
            )
        if not shown:
            yield Note("latent_classes sorted nothing: no latent has enough held-out examples.")
            return
        raised = raised_by(trained, shown)
        if not raised:
            yield Note(
                "latent_classes showed no raised tokens: what latents write is not added to the residual stream."
            )
        questions = [_question(passages(windows[latent]), raised.get(latent)) for latent in shown]
        answers, notes = self.chat.answers(QUESTION, questions, evaluation="latent_classes", units="latents")
        yield from notes
        verdicts = {shown[n]: verdict_in(answer) for n, answer in answers.items()}
        yield from self._findings(self.chat.model, list(verdicts.values()))
        layers, rows = layers_of(trained.dictionary), []
        for latent, verdict in verdicts.items():
            layer = None if layers is None else int(layers[latent])
            said = dict(zip(ANSWERED, verdict, strict=True)) if verdict else dict.fromkeys(ANSWERED)
            rows.append({"latent": latent, "layer": layer, **said})
        yield Table.of("latent_classes", rows)

    def _allow(self, count: int) -> None:
        if self.chat is not None:
            fewer = f"{SETTING}.{'each_layer' if self.latents is None else 'latents'}"
            self.chat.allow(count, counted=f"{count:,} latents", fewer=fewer)

    def _chosen(self, trained: Trained) -> list[int]:
        if self.latents is not None:
            return chosen_latents(trained, self.latents, setting=f"{SETTING}.latents")
        alive, layers = trained.statistics.alive, layers_of(trained.dictionary)
        layers = torch.zeros(len(alive)) if layers is None else layers
        generator, chosen = randomness.generator(self.seed, "latents of each layer"), []
        for layer in layers.unique():
            here = (alive & (layers == layer)).nonzero()[:, 0]
            drawn = here[torch.randperm(len(here), generator=generator)[: self.each_layer]]
            chosen += drawn.sort().values.tolist()
        return chosen

    def _findings(self, model: str, given: Sequence[Verdict | None]) -> Iterator[Finding]:
        read = [verdict for verdict in given if verdict is not None]
        about = {name: [verdict for verdict in read if verdict.kind == name] for name in CLASSES}
        drawn = f"up to {self.each_layer} drawn among those alive of each layer"
        how = f"sorted by {model}, {drawn if self.latents is None else 'chosen by the setting latents'}"
        for name in CLASSES:
            what = f"share of {len(read)} latents, {how}, that are of the class {name}; each counts alike"
            yield _share(f"latent_classes/{name}/share", len(about[name]), len(read), what)
        for group, parts, field in ((DOMAIN, DOMAINS, "domain"), (REASONING, MECHANISMS, "mechanism")):
            said = [getattr(verdict, field) for verdict in about[group]]
            for part in parts:
                what = f"share of {len(said)} latents of the class {group}, {how}, whose {field} is {part}"
                yield _share(f"latent_classes/{group}/{part}/share", said.count(part), len(said), what)
        meaning = (
            f"of {len(given)} answers, those that could not be read: no class, domain or mechanism that was asked for. "
            "They are left out of the shares"
        )
        yield Finding("latent_classes/unreadable", len(given) - len(read), meaning=meaning)


def verdict_in(answer: str) -> Verdict | None:
    """The verdict of an answer; None where the class is none of those asked for, or lacks the domain or the mechanism that
    belongs to it."""
    kind = choice_in(answer, "class", CLASSES)
    domain = choice_in(answer, "domain", DOMAINS) if kind == DOMAIN else None
    mechanism = choice_in(answer, "mechanism", MECHANISMS) if kind != UNINTERPRETABLE else None
    if kind is None or (kind == DOMAIN and domain is None) or (kind != UNINTERPRETABLE and mechanism is None):
        return None
    return Verdict(kind, domain, mechanism, sentence_in(answer, "reason") or "")


def raised_by(trained: Trained, latents: Sequence[int]) -> dict[int, list[str]]:
    """The tokens that each latent raises most, the strongest first, in the model in which its decoder row is the longer one; none
    where what latents write is not added to the residual stream."""
    roles = dict.fromkeys(latents, trained.roles[0])
    if set(trained.roles) == {BASE, TUNED}:
        relative = relative_decoder_norm(trained)
        roles = {latent: TUNED if relative[latent] >= 0.5 else BASE for latent in latents}
    raised = {}
    for role in dict.fromkeys(roles.values()):
        hookpoint, rows = written_rows(trained, role)
        if hookpoint not in WRITTEN:
            return {}
        here = [latent for latent in latents if roles[latent] == role]
        for n, _, tokens, _ in strongest_effects(trained, role, rows[here], tokens=RAISED, signs=(1,)):
            raised[here[n]] = tokens
    return raised


def _question(shown: str, raised: Sequence[str] | None) -> str:
    tokens = "not known" if raised is None else ", ".join(json.dumps(token, ensure_ascii=False) for token in raised)
    return f"{shown}\n\nMade more likely: {tokens}"


def _share(name: str, count: int, of: int, what: str) -> Finding:
    return Finding(name, *share(count, of), f"{what}; Wilson interval", over="latents")
