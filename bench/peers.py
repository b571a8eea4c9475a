"""A training step here against those of the field's libraries, installed as README.md says: python bench/peers.py

sae-lens, dictionary-learning and eai-sparsify have no crosscoder: they train their SAE on the two models side by side,
which has the same parameters and products. Each does the step of its own trainer (AuxK, clipping, unit-norm projections,
dead counters as it has them; eai-sparsify with Adam), on the same batches, on one core, each in a process of its own, in
rounds. Sparsify's is TopK: it has no BatchTopK. What is compared is CPU seconds of a step, as ratios.
"""

import argparse
import functools
import time

import torch

import step as bench
from step import SHAPES, Shape, contest, ours, resident, work


def timed(advance, batches, steps: int) -> list[float]:
    times = []
    for n in range(steps):
        begun = time.process_time()
        advance(n, batches[n % bench.BATCHES])
        times.append(time.process_time() - begun)
    return times


def sae_lens(kind: str, batches, shape: Shape, precision: str, dead: float | None, steps: int):
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
    )
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    before = resident()
    size = {"d_in": 2 * shape.width, "d_sae": shape.latents}
    if kind == "batchtopk":
        sae = BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(**size, k=shape.k, aux_loss_coefficient=0.0 if dead is None else 1 / 32)
        )
    else:
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(**size, l1_coefficient=2.0))
    settings = SAETrainerConfig(
        total_training_samples=shape.batch * 1000,
        train_batch_size_samples=shape.batch,
        lr=1e-4,
        lr_end=1e-4,
        autocast=precision == "bf16",
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=settings, sae=sae, data_provider=iter(()))
    count = round((dead or 0) * shape.latents)

    def advance(_, rows):
        trainer.n_forward_passes_since_fired[:count] = settings.dead_feature_window + 1
        trainer._train_step(sae, rows)

    return timed(advance, batches, steps), before, []


def dictionary_learning(kind: str, batches, shape: Shape, precision: str, dead: float | None, steps: int):
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    before = resident()
    common = {
        "steps": 100_000,
        "activation_dim": 2 * shape.width,
        "dict_size": shape.latents,
        "layer": 0,
        "lm_name": "-",
        "lr": 1e-4,
    }
    if kind == "batchtopk":
        trainer = BatchTopKTrainer(**common, k=shape.k, auxk_alpha=0.0 if dead is None else 1 / 32, device="cpu")
    else:
        trainer = StandardTrainerAprilUpdate(**common, l1_penalty=2.0, device="cpu")
    count = round((dead or 0) * shape.latents)

    def advance(n, rows):
        if kind == "batchtopk":
            trainer.num_tokens_since_fired[:count] = trainer.dead_feature_threshold
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            trainer.update(n + 1, rows)  # step 0 fits the geometric median

    return timed(advance, batches, steps), before, []


def sparsify(batches, shape: Shape, precision: str, dead: float | None, steps: int):
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    before = resident()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    coder = SparseCoder(2 * shape.width, SparseCoderConfig(num_latents=shape.latents, k=shape.k), dtype=dtype)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-4)
    fired = torch.zeros(shape.latents, dtype=torch.bool)
    mask = None
    if dead is not None:
        mask = torch.arange(shape.latents) < round(dead * shape.latents)

    def advance(_, rows):  # as its trainer's hook and step do
        rows = rows.to(dtype)
        coder.set_decoder_norm_to_unit_norm()
        out = coder(rows, dead_mask=mask, total_variance=(rows - rows.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        (out.fvu + (0 if mask is None else out.auxk_loss / 32)).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return timed(advance, batches, steps), before, []


BATCHTOPK = {
    "tunediff": functools.partial(ours, "batchtopk"),
    "sae-lens": functools.partial(sae_lens, "batchtopk"),
    "dictionary-learning": functools.partial(dictionary_learning, "batchtopk"),
    "eai-sparsify (TopK)": sparsify,
}
L1 = {
    "tunediff L1": functools.partial(ours, "l1"),
    "sae-lens L1": functools.partial(sae_lens, "l1"),
    "dictionary-learning L1": functools.partial(dictionary_learning, "l1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--shapes", nargs="*", default=["small"], choices=SHAPES)
    parser.add_argument("--precisions", nargs="*", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--dead", nargs="*", default=["none", "0", "0.1", "1"], help="dead shares; none: without AuxK")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--l1", action="store_true", help="the L1 dictionaries as well")
    asked = parser.parse_args()
    if asked.work:
        *words, steps = asked.work
        work({**BATCHTOPK, **L1}, *words, int(steps))
        return

    def show(title: str, contestants, shape: str, precision: str, dead: str) -> None:
        print(f"\n{title}\n", flush=True)
        found = contest(__file__, contestants, shape, precision, dead, steps=asked.steps, rounds=asked.rounds)
        print(bench.table(found, shape), flush=True)

    for shape in asked.shapes:
        for precision in asked.precisions:
            for dead in asked.dead:
                show(f"{shape} {SHAPES[shape]._asdict()}, {precision}, dead: {dead}", BATCHTOPK, shape, precision, dead)
            if asked.l1:
                show(f"{shape}, {precision}, L1", L1, shape, precision, "none")


if __name__ == "__main__":
    main()
