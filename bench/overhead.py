"""What Lightning costs a dictionary step: the same tiny dictionaries trained by the Trainer and by a bare loop.

    python bench/overhead.py [--steps 2000]

The work of a step is next to nothing here, so the difference is the loop: hooks, optimizer wrappers, callbacks. Printed
in microseconds a dictionary step, for groups of one and of eight.
"""

import argparse
import statistics
import time
from functools import partial

import lightning
import torch

from tunediff import randomness
from tunediff.activations import Reader, ShuffledRows
from tunediff.dictionary import BatchTopK, Crosscoder, Normalisation
from tunediff.objectives import Reconstruction
from tunediff.schedules import Constant, Length
from tunediff.shapes import Rows, Stream
from tunediff.training import DictionaryTraining, Learner, Pulse, TokenProgress

STREAMS = [Stream("base", "resid_post", 0, 8), Stream("tuned", "resid_post", 0, 8)]


class Noise:
    """A source that costs nothing."""

    streams, broken = STREAMS, {}

    def __init__(self):
        self.rows = Rows(torch.randn(8192, 16, generator=randomness.generator(0, "noise")))

    def __next__(self) -> Rows:
        return self.rows


def group(members: int, steps: int) -> tuple[DictionaryTraining, ShuffledRows]:
    torch.manual_seed(randomness.seed_for(0, "group"))
    plain = partial(Normalisation, kind="none", sink_multiple=None)
    made = [
        Learner(
            f"m{n}", Crosscoder(STREAMS, latents=16, sparsity=BatchTopK(2, k_schedule=Constant()), normalisation=plain, seed=n),
            Reconstruction(), Constant(), Constant(),
        )
        for n in range(members)
    ]  # fmt: skip
    stream = ShuffledRows(Noise(), [Reader(STREAMS)] * members, batch=64, capacity=8192, steps=steps, seed=0)
    return DictionaryTraining(made, length=Length(steps, 64)), stream


def by_lightning(members: int, steps: int) -> float:
    module, stream = group(members, steps)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[TokenProgress(steps * 64), Pulse(lambda step: None)],
    )  # fmt: skip
    begun = time.perf_counter()
    trainer.fit(module, train_dataloaders=stream)
    return time.perf_counter() - begun


def by_hand(members: int, steps: int) -> float:
    """The same steps with nothing around them."""
    module, stream = group(members, steps)
    optimizers = module.configure_optimizers()
    module.manual_backward, module.scalers = lambda loss: loss.backward(), [None] * members
    begun = time.perf_counter()
    for drawn in stream:
        for n, (learner, optimizer) in enumerate(zip(module.learners, optimizers, strict=True)):
            module.advance(n, learner, optimizer, drawn.of(n))
        module.step += 1
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    asked = parser.parse_args()
    by_lightning(1, 50)
    for members in (1, 8):
        pairs = [(by_lightning(members, asked.steps), by_hand(members, asked.steps)) for _ in range(3)]
        each = 1e6 / (members * asked.steps)
        with_it, without = (statistics.median(column) * each for column in zip(*pairs, strict=True))
        print(
            f"{members} dictionaries: {with_it:.0f} us a dictionary step, {without:.0f} us without Lightning: overhead {with_it - without:.0f} us"
        )


if __name__ == "__main__":
    main()
