"""Prompts -> responses of one model of a pair, under edits: in batches padded on the left, with a KV cache.

A response depends on its prompt, its name and the seed alone, not on its neighbours: what is sampled comes from one
number a token, drawn for each prompt by itself. Budget forcing is that of s1 (Muennighoff et al. 2025, arXiv 2501.19393,
section 3): thinking is ended by writing its end, or extended by writing "Wait" in place of it. Knows no task and no grade.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from tunediff.edits import Edit, Sequences
from tunediff.models import ModelPair
from tunediff.shapes import Refused
from tunediff.text import encode, padded_groups, render_prompt

END_OF_THINKING = "</think>"


class Asked(NamedTuple):
    """A prompt as token ids; `name` stands for it in the seed."""

    name: str
    ids: list[int]


class Response(NamedTuple):
    """ids        token ids, the end token left out       text      the same, decoded, special tokens left out
    finished   false where the budget cut it off       opened    whether the prompt itself opened the thinking
    touched    for each edit, how many tokens of prompt and response it changed
    """

    ids: list[int]
    text: str
    finished: bool
    opened: bool
    touched: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """tokens      budget of a response             temperature   0 takes the most likely token
    top_p       the smallest set of tokens with this share of the probability is drawn from
    seed        of all draws
    stop        a response ends before the first of these strings, for models that never end by themselves
    think_at_most    tokens of thinking after which its end is written; None leaves it to the model
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

    @property
    def forces(self) -> bool:
        return self.think_at_most is not None or self.extensions > 0


class Engine(Protocol):
    """What computes responses."""

    def respond(
        self,
        pair: ModelPair,
        role: str,
        asked: Sequence[Asked],
        decoding: Decoding,
        edits: Sequence[Edit],
        tokenizer,
        alongside: Sequence[Response] | None,
    ) -> Iterator[tuple[int, Response]]:
        """Each response with the place of its prompt, in any order."""
        ...


def ask(questions: Sequence[tuple[str, str]], tokenizer) -> list[Asked]:
    """(name, question) -> prompts through the chat template."""
    return [
        Asked(name, list(encode(tokenizer, render_prompt(text, tokenizer))["input_ids"])) for name, text in questions
    ]


def generate(
    pair: ModelPair,
    role: str,
    asked: Sequence[Asked],
    decoding: Decoding,
    *,
    engine: Engine,
    edits: Sequence[Edit] = (),
    tokenizer=None,
    alongside: Sequence[Response] | None = None,
    title: str = "generating",
) -> list[Response]:
    """Responses in the order of the prompts. `tokenizer` is the one the prompts were made with, by default the pair's;
    `alongside` are the other model's own responses to the same prompts, which edits that patch then read.

    Raises Refused for a budget that the model's context does not hold."""
    tokenizer = tokenizer or pair.tokenizers[0]
    context = pair.configs[role].max_position_embeddings
    longest = max((len(one.ids) for one in asked), default=0)
    if longest + decoding.tokens > context:
        raise Refused(
            f"A prompt of {longest} tokens and decoding.tokens={decoding.tokens} are more than the {context} that "
            f"{pair.sources[role].path} can read: set decoding.tokens to at most {max(context - longest, 0)}."
        )
    found: list[Response | None] = [None] * len(asked)
    with tqdm(total=len(asked), desc=title, unit="response", leave=False, delay=2) as bar:
        for place, response in engine.respond(pair, role, asked, decoding, edits, tokenizer, alongside):
            found[place] = response
            bar.update()
    return found


@torch.no_grad()
def surprise(
    pair: ModelPair,
    role: str,
    asked: Sequence[Asked],
    responses: Sequence[Response],
    *,
    tokenizer,
    tokens_per_batch: int = 4096,
) -> list[float]:
    """For each response the sum over its tokens of -log p, in nats, under the unedited model; 0 where it has none."""
    found = [0.0] * len(asked)
    written = [place for place, response in enumerate(responses) if response.ids]
    lengths = [len(one.ids) + len(response.ids) for one, response in zip(asked, responses, strict=True)]
    for places in padded_groups(written, tokens_per_batch, lengths.__getitem__):
        prompts, ids = ([part[place].ids for place in places] for part in (asked, responses))
        known = Sequences.of_responses(tokenizer, prompts, ids, pair.device(role))
        logits, _ = pair.run(role, known)
        begins = int(known.response.any(0).nonzero()[0])
        said = known.ids[:, begins:, None]
        scores = logits[:, begins - 1 : -1].log_softmax(-1).gather(-1, said)[..., 0]
        sums = -(scores.double() * known.response[:, begins:]).sum(1)
        for place, value in zip(places, sums.tolist(), strict=True):
            found[place] = value
    return found


@dataclass(frozen=True)
class Batched:
    """The models as they are loaded, under any edit. batch: prompts of one forward pass"""

    batch: int = 64

    @torch.no_grad()
    def respond(
        self,
        pair: ModelPair,
        role: str,
        asked: Sequence[Asked],
        decoding: Decoding,
        edits: Sequence[Edit],
        tokenizer,
        alongside: Sequence[Response] | None,
    ) -> Iterator[tuple[int, Response]]:
        order = sorted(range(len(asked)), key=lambda place: len(asked[place].ids))  # little padding
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            prompts = [asked[place].ids for place in places]
            others = None
            if alongside is not None:
                written = [alongside[place].ids for place in places]
                others = Sequences.of_responses(tokenizer, prompts, written, pair.device(role))
            writers = [Writer(asked[place].name, decoding, tokenizer) for place in places]
            responses = self._together(pair, role, prompts, writers, edits, tokenizer, others)
            yield from zip(places, responses, strict=True)

    def _together(
        self,
        pair: ModelPair,
        role: str,
        prompts: Sequence[Sequence[int]],
        writers: Sequence[Writer],
        edits: Sequence[Edit],
        tokenizer,
        others: Sequences | None,
    ) -> list[Response]:
        known = Sequences.of_prompts(tokenizer, prompts, pair.device(role))
        caches, going = pair.new_caches(), list(range(len(prompts)))
        opened = known.opened.tolist()
        for row, writer in enumerate(writers):
            writer.thinking = opened[row]
        touched = torch.zeros(len(prompts), len(edits), dtype=torch.long)
        while True:
            logits, marks = pair.run(role, known, edits, caches=caches, alongside=others, last=True)
            for n, mark in enumerate(marks):
                touched[going, n] += mark.sum(1).cpu()
            ids = next_tokens(logits[:, -1], [writers[row] for row in going])
            kept = [at for at, row in enumerate(going) if not writers[row].ended]
            if not kept:
                break
            if len(kept) <= len(going) // 2:  # half of the batch is done: the others go on alone
                rows = torch.tensor(kept, device=known.ids.device)
                known.select(rows)
                if others is not None:
                    others.select(rows)
                for cache in caches.values():
                    if cache.get_seq_length():
                        cache.batch_select_indices(rows)
                going, ids = [going[at] for at in kept], [ids[at] for at in kept]
            real = torch.tensor([[not writers[row].ended] for row in going])
            column = torch.tensor(ids)[:, None]
            known.extend(column.to(known.ids.device), real.to(known.ids.device))
        return [
            Response(writer.ids, tokenizer.decode(writer.ids, skip_special_tokens=True), writer.finished, begun, marks)
            for writer, begun, marks in zip(writers, opened, map(tuple, touched.tolist()), strict=True)
        ]


class Writer:
    """One response as it grows: which token comes next, and when it ends."""

    def __init__(self, name: str, decoding: Decoding, tokenizer):
        self.decoding, self.tokenizer = decoding, tokenizer
        self.ids: list[int] = []
        self.finished = self.ended = False
        self.thinking = False
        self.extended = 0
        self.forced: list[int] = []
        drawn = torch.Generator().manual_seed(seed_of(name, decoding))
        draws = torch.rand(decoding.tokens, generator=drawn, dtype=torch.float64)
        self.draws: list[float] = draws.tolist() if decoding.temperature > 0 else []
        self.ends = {tokenizer.eos_token_id}

    @property
    def draw(self) -> float:
        return self.draws[len(self.ids)]

    def take(self, token: int) -> int:
        """The token that is written where the model would write `token`."""
        if self.ended:
            return token
        if self.decoding.forces:
            token = self._forced(token)
        if token in self.ends:
            self.finished = self.ended = True
            return token
        self.ids.append(token)
        if self.decoding.forces:
            self._follow()
        if self.decoding.stop:
            self._stop()
        self.ended |= len(self.ids) == self.decoding.tokens
        return token

    def _forced(self, token: int) -> int:
        if self.forced:
            return self.forced.pop(0)
        if not self.thinking:
            return token
        at_end = token in self.ends or self._text([*self.ids[-8:], token]).rstrip().endswith(END_OF_THINKING)
        if at_end and self.extended < self.decoding.extensions:
            self.extended += 1
            return self._force(self.decoding.extension)
        limit = self.decoding.think_at_most
        if not at_end and limit is not None and len(self.ids) >= limit:
            return self._force(f"\n{END_OF_THINKING}\n\n{self.decoding.conclusion}")
        return token

    def _force(self, text: str) -> int:
        self.forced = list(encode(self.tokenizer, text)["input_ids"])
        return self.forced.pop(0)

    def _follow(self) -> None:
        tail = self._text(self.ids[-8:])
        self.thinking |= "<think>" in tail
        if END_OF_THINKING in tail:
            self.thinking = False

    def _stop(self) -> None:
        for stop in self.decoding.stop:
            if stop in self._text(self.ids[-8 - len(stop) :]):
                before = self._text(self.ids).index(stop)
                while len(self._text(self.ids)) > before:
                    self.ids.pop()
                self.finished = self.ended = True

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)


def seed_of(name: str, decoding: Decoding) -> int:
    """The same for a prompt whatever stands beside it."""
    return int.from_bytes(hashlib.sha256(f"{decoding.seed} {name}".encode()).digest()[:4], "big")


def next_tokens(logits: Tensor, writers: Sequence[Writer]) -> list[int]:
    """One token for each row of [batch, vocabulary]: the most likely, or the one where the row's draw falls when the
    probabilities of its nucleus are laid side by side, the largest first (Holtzman et al. 2020, arXiv 1904.09751)."""
    decoding = writers[0].decoding
    if decoding.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        shares, order = (logits.double() / decoding.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = shares.cumsum(-1) - shares
        shares = shares * (before < decoding.top_p)
        draws = torch.tensor([0.0 if w.ended else w.draw for w in writers], dtype=torch.float64, device=logits.device)
        reached = shares.cumsum(-1) > (draws * shares.sum(-1))[:, None]
        tokens = order.gather(1, reached.long().argmax(-1, keepdim=True))[:, 0]
    return [writer.take(token) for writer, token in zip(writers, tokens.tolist(), strict=True)]


@dataclass(frozen=True)
class VLLM:
    """vLLM, which must be installed (pip install "tunediff[vllm]"): faster on GPUs, and without edits and budget forcing.
    share: of the GPU's memory that it takes"""

    share: float = 0.9

    def respond(
        self,
        pair: ModelPair,
        role: str,
        asked: Sequence[Asked],
        decoding: Decoding,
        edits: Sequence[Edit],
        tokenizer,
        alongside: Sequence[Response] | None,
    ) -> Iterator[tuple[int, Response]]:
        if edits or decoding.forces:
            raise Refused("vLLM runs neither edits nor budget forcing: choose engine=tunediff.generation.Batched.")
        try:
            import vllm
        except ImportError as error:
            raise Refused('engine=tunediff.generation.VLLM needs vLLM: pip install "tunediff[vllm]".') from error
        source = pair.sources[role]
        model = vllm.LLM(
            source.location, revision=source.revision, dtype=source.dtype, gpu_memory_utilization=self.share
        )
        settings = [
            vllm.SamplingParams(
                max_tokens=decoding.tokens,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                stop=list(decoding.stop),
                seed=seed_of(one.name, decoding),
            )
            for one in asked
        ]
        prompts = [vllm.TokensPrompt(prompt_token_ids=one.ids) for one in asked]
        for place, output in enumerate(model.generate(prompts, settings)):
            best = output.outputs[0]
            ids = [token for token in best.token_ids if token != tokenizer.eos_token_id]
            opened = tokenizer.decode(asked[place].ids[-8:]).rstrip().endswith("<think>")
            text = tokenizer.decode(ids, skip_special_tokens=True)
            yield place, Response(ids, text, best.finish_reason == "stop", opened)
