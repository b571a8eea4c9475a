"""Prompts that a model is asked, how its responses are decoded, and the responses.

A response depends on its prompt, its name and the seed, not on its neighbours: what is sampled comes from one number a
token, drawn for each prompt by itself. That holds to the bit in float32; in half precision another batch rounds otherwise,
and now and then another token is the likelier one. Budget forcing is that of s1 (Muennighoff et al. 2025, arXiv
2501.19393, section 3): thinking is ended by writing its end, or extended by writing "Wait" in place of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from tqdm import tqdm

from tunediff.edits import Edit, Sequences
from tunediff.models import LOGITS_MB, ModelPair, head_of
from tunediff.shapes import Refused
from tunediff.text import CLOSINGS, Tokenizer, encode, padded_groups, render_prompt


class Asked(NamedTuple):
    """A prompt as token ids; `name` stands for it in the seed."""

    name: str
    ids: list[int]


class Response(NamedTuple):
    """ids        token ids, the end token left out       text      the same, decoded
    finished   false where the budget cut it off       opened    whether the prompt itself opened the thinking
    touched    for each edit, how many tokens of prompt and response it changed
    change     for each edit, the mean norm of these changes; 0 where there are none
    """

    ids: list[int]
    text: str
    finished: bool
    opened: bool
    touched: tuple[int, ...] = ()
    change: tuple[float, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """tokens      budget of a response             temperature   0 takes the most likely token
    top_p       the smallest set of tokens with this share of the probability is drawn from
    seed        of all draws
    stop        a response ends before the first of these strings, for models that never end by themselves
    think_at_most    tokens of a response after which the end of its thinking is written; None leaves it to the model
    conclusion       what is written after such an end, such as "Final Answer:"
    extensions       how often the end of thinking is replaced by `extension`

    Raises Refused for a setting out of range."""

    tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    think_at_most: int | None = None
    conclusion: str = ""
    extensions: int = 0
    extension: str = "Wait"

    def __post_init__(self):
        for name, value, legal in (
            ("tokens", self.tokens, self.tokens >= 1),
            ("temperature", self.temperature, self.temperature >= 0),
            ("top_p", self.top_p, 0 < self.top_p <= 1),
            ("extensions", self.extensions, self.extensions >= 0),
            ("think_at_most", self.think_at_most, self.think_at_most is None or self.think_at_most >= 0),
        ):
            if not legal:
                raise Refused(f"decoding.{name}={value} is out of range.")
        if self.extensions and not self.extension:
            raise Refused("decoding.extension is empty: name the word that takes the place of the end of thinking.")

    @property
    def forces(self) -> bool:
        return self.think_at_most is not None or self.extensions > 0


class Request(NamedTuple):
    """The question that an engine is given: responses of one model of a pair to prompts made with a tokenizer, as in generate(...)."""

    pair: ModelPair
    role: str
    asked: Sequence[Asked]
    decoding: Decoding
    edits: Sequence[Edit]
    tokenizer: Tokenizer
    alongside: Sequence[Response] | None


class Engine(Protocol):
    """An engine computes responses."""

    def respond(self, request: Request) -> Iterator[tuple[int, Response]]:
        """Each response with the place of its prompt, in any order."""
        ...


def ask(questions: Sequence[tuple[str, str]], tokenizer: Tokenizer, system: str | None = None) -> list[Asked]:
    """(name, question) -> prompts through the chat template, each behind the same system message where there is one."""
    return [
        Asked(name, list(encode(tokenizer, render_prompt(text, tokenizer, system))["input_ids"]))
        for name, text in questions
    ]


def generate(
    pair: ModelPair,
    role: str,
    asked: Sequence[Asked],
    decoding: Decoding,
    *,
    engine: Engine,
    edits: Sequence[Edit] = (),
    tokenizer: Tokenizer | None = None,
    alongside: Sequence[Response] | None = None,
    title: str = "generating",
    keep: Callable[[int, Response], None] | None = None,
) -> list[Response]:
    """Responses in the order of the prompts. `tokenizer` is the one the prompts were made with, by default the pair's;
    `alongside` are the other model's own responses to the same prompts, which edits that patch then read; `keep` is
    given each response with the place of its prompt as soon as it is there.

    Raises Refused for a budget that the model's context does not hold, and for a tokenizer that spells the end of thinking
    in pieces where it is to be replaced."""
    tokenizer = tokenizer or pair.tokenizers[0]
    if decoding.extensions and len(encode(tokenizer, CLOSINGS[0])["input_ids"]) > 1:
        raise Refused(
            f"This tokenizer spells {CLOSINGS[0]} in pieces, of which the first stand before the last is known: "
            "decoding.extensions needs one that has it as a token, such as the tuned model's (model_pair.tokenizer=tuned)."
        )
    context = pair.configs[role].max_position_embeddings
    longest = max((len(one.ids) for one in asked), default=0)
    if longest + decoding.tokens > context:
        raise Refused(
            f"A prompt of {longest} tokens and decoding.tokens={decoding.tokens} are more than the {context} that "
            f"{pair.source(role).path} can read: set decoding.tokens to at most {max(context - longest, 0)}."
        )
    found: dict[int, Response] = {}
    request = Request(pair, role, asked, decoding, edits, tokenizer, alongside)
    with tqdm(total=len(asked), desc=title, unit="response", leave=False, delay=2) as bar:
        for place, response in engine.respond(request):
            found[place] = response
            if keep is not None:
                keep(place, response)
            bar.update()
    return [found[place] for place in range(len(asked))]


@torch.no_grad()
def surprise(
    pair: ModelPair,
    role: str,
    asked: Sequence[Asked],
    responses: Sequence[Response],
    *,
    tokenizer: Tokenizer,
    tokens_per_batch: int = 2048,
    logits_mb: float = LOGITS_MB,
) -> list[float]:
    """Surprise of each response: the sum over its tokens of -log p, in nats, under the unedited model; 0 where it has
    none."""
    found, head = [0.0] * len(asked), head_of(pair.models[role])
    written = [place for place, response in enumerate(responses) if response.ids]
    lengths = [len(one.ids) + len(response.ids) for one, response in zip(asked, responses, strict=True)]
    rows = head.rows(logits_mb, 2)
    for places in padded_groups(written, tokens_per_batch, lengths.__getitem__):
        prompts, ids = ([part[place].ids for place in places] for part in (asked, responses))
        known = Sequences.of_responses(tokenizer, prompts, ids, pair.device(role))
        columns = max(map(len, ids))
        hidden = pair.last_hidden(role, known)[:, -columns - 1 :]
        for row, place in enumerate(places):
            count = len(ids[row])
            said = known.ids[row, -columns:][:count, None]
            for some, tokens in zip(hidden[row, :count].split(rows), said.split(rows), strict=True):
                found[place] -= float(head(some).log_softmax(-1).gather(-1, tokens).double().sum())
    return found
