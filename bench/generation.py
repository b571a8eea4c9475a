"""How fast responses are written: 200 problems of the embedded pair, beside transformers' own generate, and under edits.

    python bench/generation.py [--threads 2] [--rounds 3]

Each way in turn, `rounds` times; of each the fastest. Responses are checked to be the same token by token.
"""

from __future__ import annotations

import argparse
import time

import torch

from toy_pair import held_out_problems
from tunediff import randomness
from tunediff.dictionary import BatchTopK, Crosscoder, Normalisation
from tunediff.edits import Add, Directions, Edit, Latents, Zero
from tunediff.generation import Batched, Decoding, ask, generate
from tunediff.models import ModelPair, ModelSource
from tunediff.shapes import BASE, TUNED, Rows

PROBLEMS, TOKENS = 200, 256


@torch.no_grad()
def by_transformers(pair: ModelPair, asked) -> list[list[int]]:
    tokenizer, model = pair.tokenizers[0], pair.models[TUNED]
    longest = max(len(one.ids) for one in asked)
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(one.ids)) + one.ids for one in asked])
    mask = (ids != tokenizer.pad_token_id).long()
    written = model.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False)[:, longest:].tolist()
    ends = [row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row) for row in written]
    return [row[:end] for row, end in zip(written, ends, strict=True)]


def edits_of(pair: ModelPair) -> dict[str, list[Edit]]:
    """One along a direction, and one of a crosscoder's latents, for which the other model runs beside."""
    streams = [pair.streams("resid_post", 3, reads=role)[0] for role in (BASE, TUNED)]
    dictionary = Crosscoder(
        streams, latents=768, sparsity=BatchTopK(12), normalisation=lambda widths: Normalisation(widths)
    )
    dictionary.fit(Rows(torch.randn(512, 192, generator=randomness.generator(0, "sample"))))
    some, one = torch.arange(10), torch.ones(1)
    return {
        "adding a direction": [Edit(streams[1], Directions(torch.ones(1, 96), 0 * one, 0 * one), Add(1.0))],
        "ten latents of a crosscoder to zero": [
            Edit(streams[1], Latents(dictionary.requires_grad_(False), some, 0.0 * some, 0.0 * some), Zero())
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pair = ModelPair(*(ModelSource(f"pkg://tunediff.toy/weights/{r}", dtype="float32") for r in (BASE, TUNED))).load()
    problems = held_out_problems(PROBLEMS, 0)
    asked = ask([(str(n), problem.text) for n, problem in enumerate(problems)], pair.tokenizers[0])

    def ours(batch: int, edits=()):
        found = generate(pair, TUNED, asked, Decoding(tokens=TOKENS), engine=Batched(batch), edits=edits)
        return [response.ids for response in found]

    ways = {"transformers, one batch": lambda: by_transformers(pair, asked), "one batch": lambda: ours(PROBLEMS)}
    ways |= {"batches of 64": lambda: ours(64)}
    ways |= {name: lambda edits=edits: ours(64, edits) for name, edits in edits_of(pair).items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    written: dict[str, list[list[int]]] = {}
    for _ in range(given.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            written[name] = way()
            seconds[name].append(time.perf_counter() - began)
    reference = "transformers, one batch"
    assert written[reference] == written["one batch"] == written["batches of 64"]
    for name, taken in seconds.items():
        tokens = sum(map(len, written[name]))
        ratio = min(seconds[reference]) / tokens_ratio(written, reference, name) / min(taken)
        print(f"{name:38s} {min(taken):6.2f} s   {tokens / min(taken):8,.0f} tokens/s   {ratio:5.2f} times {reference}")


def tokens_ratio(written, reference: str, name: str) -> float:
    """How many tokens the reference wrote for one of this way: an edit may change lengths."""
    return sum(map(len, written[reference])) / sum(map(len, written[name]))


if __name__ == "__main__":
    main()
