"""Prompts that a model is asked, how its responses are decoded, and the responses.

A response depends on its prompt, its name and the seed, not on its neighbours: what is sampled comes from one number a
token, drawn for each prompt by itself. That holds to the bit in float32; in half precision another batch rounds otherwise,
and now and then another token is the likelier one. Budget forcing is that of s1 (Muennighoff et al. 2025, arXiv
2501.19393, section 3): thinking is ended by writing its end, or extended by writing "Wait" in place of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from tqdm import tqdm

from tunediff.edits import Edit, Sequences
from tunediff.models import LOGITS_MB, ModelPair, head_of
from tunediff.shapes import Refused
from tunediff.text import Manner, Tokenizer, encode, padded_groups, render_prompt

# what a model's generation_config.json may say of how it is decoded, and what is not followed if it says something else
OWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
NOT_FOLLOWED = {
    "num_beams": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None, "penalty_alpha": None,
    "no_repeat_ngram_size": 0, "suppress_tokens": None, "begin_suppress_tokens": None, "bad_words_ids": None,
    "sequence_bias": None, "exponential_decay_length_penalty": None, "min_length": 0, "min_new_tokens": 0, "guidance_scale": 1.0,
}  # fmt: skip


class Asked(NamedTuple):
    """A prompt as token ids; `name` stands for it in the seed."""

    name: str
    ids: list[int]


class Response(NamedTuple):
    """ids        token ids, the end token left out       text      the same, decoded
    finished   false where the budget cut it off       opened    the mark with which the prompt itself opened the thinking, or ""
    touched    for each edit, how many tokens of prompt and response it changed
    change     for each edit, the mean norm of these changes; 0 where there are none
    """

    ids: list[int]
    text: str
    finished: bool
    opened: str
    touched: tuple[int, ...] = ()
    change: tuple[float, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """tokens      budget of a response; None: the task's     temperature   0 takes the most likely token
    top_k       tokens that are drawn from; 0 for all       top_p   share of the probability that is drawn from
    min_p       tokens at least so likely, as a share of the likeliest, are drawn from
    repetition_penalty    logits of tokens in the prompt or response are divided by it, or multiplied where negative
    generation_config     true: what a model's own generation_config.json says of these takes the place of what is set here
    seed        of all draws
    stop        a response ends before the first of these strings, for models that never end by themselves
    think_at_most    tokens of a response after which the end of its thinking is written; None leaves it to the model
    conclusion       what is written after such an end, such as "Final Answer:"
    extensions       how often the end of thinking is replaced by `extension`

    Raises Refused for a setting out of range."""

    tokens: int | None = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    generation_config: bool = False
    seed: int = 0
    stop: Sequence[str] = ()
    think_at_most: int | None = None
    conclusion: str = ""
    extensions: int = 0
    extension: str = "Wait"

    def __post_init__(self):
        for name, value, legal in (
            ("tokens", self.tokens, self.tokens is None or self.tokens >= 1),
            ("temperature", self.temperature, self.temperature >= 0),
            ("top_k", self.top_k, self.top_k >= 0),
            ("top_p", self.top_p, 0 < self.top_p <= 1),
            ("min_p", self.min_p, 0 <= self.min_p <= 1),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0),
            ("extensions", self.extensions, self.extensions >= 0),
            ("think_at_most", self.think_at_most, self.think_at_most is None or self.think_at_most >= 0),
        ):
            if not legal:
                raise Refused(f"decoding.{name}={value} is out of range.")
        if self.extensions and not self.extension:
            raise Refused("decoding.extension is empty: name the word that takes the place of the end of thinking.")

    @property
    def budget(self) -> int:
        """Tokens of a response at most. Raises Refused where nobody said how many."""
        if self.tokens is None:
            raise Refused(
                "decoding.tokens=null takes a task's own budget, and there is no task that has one: name a number."
            )
        return self.tokens

    @property
    def forces(self) -> bool:
        return self.think_at_most is not None or self.extensions > 0

    def of_model(self, named: Mapping[str, Any]) -> Decoding:
        """The decoding of one model whose generation_config.json has these names. What it does not name stays as set here:
        transformers would draw from 50 tokens where it names no top_k."""
        if not self.generation_config:
            return self
        own = {name: named[name] for name in OWN if named.get(name) is not None}
        if named.get("do_sample") is False:
            own["temperature"] = 0.0
        elif named.get("do_sample"):
            own.setdefault("temperature", 1.0)
        own["top_k"] = max(own.get("top_k", self.top_k), 0)  # some write -1 for all
        return dataclasses.replace(self, generation_config=False, **own)


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


def ask(
    questions: Sequence[tuple[str, str]],
    tokenizer: Tokenizer,
    manner: Manner = Manner(),  # noqa: B008
) -> list[Asked]:
    """(name, question) -> prompts through the chat template, each behind the same system message where there is one. The
    instruction of a text is not put before them: a task has words of its own."""
    manner = dataclasses.replace(manner, instruction="")
    return [
        Asked(name, list(encode(tokenizer, render_prompt(text, tokenizer, manner))["input_ids"]))
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
    tokenizer, decoding = tokenizer or pair.tokenizers[0], decoding.of_model(pair.source(role).generation_config)
    if decoding.extensions and len(encode(tokenizer, pair.layout.closing)["input_ids"]) > 1:
        raise Refused(
            f"This tokenizer spells {pair.layout.closing} in pieces, of which the first stand before the last is known: "
            "decoding.extensions needs one that has it as a token, such as the tuned model's (model_pair.tokenizer=tuned)."
        )
    context = pair.configs[role].max_position_embeddings
    longest = max((len(one.ids) for one in asked), default=0)
    if longest + decoding.budget > context:
        raise Refused(
            f"A prompt of {longest} tokens and decoding.tokens={decoding.budget} are more than the {context} that "
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
        known = Sequences.of_responses(tokenizer, prompts, ids, pair.device(role), layouts=pair.layouts)
        columns = max(map(len, ids))
        hidden = pair.last_hidden(role, known)[:, -columns - 1 :]
        for row, place in enumerate(places):
            count = len(ids[row])
            said = known.ids[row, -columns:][:count, None]
            for some, tokens in zip(hidden[row, :count].split(rows), said.split(rows), strict=True):
                found[place] -= float(head(some).log_softmax(-1).gather(-1, tokens).double().sum())
    return found
