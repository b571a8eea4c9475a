"""How fast, and in how much memory, transcoder adapters train.   python bench/adapters.py [--authors <folder>]

Two Qwen2 of random weights, adapters beside their MLPs, one sequence of random tokens a step, each contestant in a process
of its own, in rounds. On a CPU, one core and CPU seconds; the largest sum of all living tensors is taken in a run that is
not timed. The authors' contestant is the epoch of their trainer, run from a checkout of their code (arXiv 2602.20904) on the
same weights, tokens and cutoffs, in the precision of the models; what each of its terms came to is held against ours.

    python bench/adapters.py --shape 1.5b        50 steps of the 1.5B pair's shape, on a GPU
"""

import argparse
import functools
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import NamedTuple

import lightning
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, Qwen2Config

import adapter_authors
from tunediff import randomness
from tunediff.activations import WholeSequences
from tunediff.dictionary import L1, TranscoderAdapter
from tunediff.objectives import Distillation
from tunediff.schedules import Constant, Length
from tunediff.shapes import ADAPTER, BASE, TUNED, Stream
from tunediff.text import Batches, Example
from tunediff.training import TranscoderLearner
from tunediff.training.memory import adapter_memory

MB = 1e6
COEFFICIENT, BRIDGE, LEARNING_RATE, BETAS = 1e-3, 2.0, 8e-4, (0.9, 0.999)  # the published code's
TERMS = ("kl", "nmse", "penalty", "kl_adapter_first", "kl_tuned_first")


class Shape(NamedTuple):
    """Both models' shape, latents of each layer, tokens of a sequence; what frozen weights are kept in; how often."""

    width: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    latents: int
    tokens: int
    dtype: str
    precision: str
    device: str
    steps: int
    rounds: int

    @property
    def config(self) -> Qwen2Config:
        """Random weights wide enough for the two models to predict different tokens."""
        return Qwen2Config(
            vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=self.inner, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, max_position_embeddings=self.tokens,
            initializer_range=self.width**-0.5, tie_word_embeddings=False,
        )  # fmt: skip

    def models(self) -> dict[str, torch.nn.Module]:
        made = {}
        for seed, role in enumerate((BASE, TUNED)):
            torch.manual_seed(randomness.seed_for(seed, "models beside an adapter"))
            with torch.device(self.device):
                made[role] = AutoModelForCausalLM.from_config(self.config, dtype=getattr(torch, self.dtype))
            made[role].requires_grad_(False)
        return made

    def adapter(self) -> TranscoderAdapter:
        streams = [Stream(ADAPTER, "mlp_in", layer, self.width) for layer in range(self.layers)]
        return TranscoderAdapter(streams, latents=self.latents, sparsity=L1(COEFFICIENT))

    def sequences(self, steps: int) -> Batches:
        ids = torch.randint(
            self.vocabulary, (steps, self.tokens), generator=randomness.generator(0, "ids of sequences")
        ).tolist()
        return Batches([Example(some, [False] + [True] * (self.tokens - 1)) for some in ids], batch=1, micro_batch=1)


SHAPES = {
    "tiny": Shape(32, 3, 48, 4, 2, 100, 16, 24, "float32", "32-true", "cpu", 3, 1),
    "small": Shape(256, 6, 1536, 4, 2, 8192, 1024, 512, "float32", "32-true", "cpu", 4, 3),
    "1.5b": Shape(1536, 28, 8960, 12, 2, 151_936, 8192, 4000, "bfloat16", "bf16-mixed", "cuda", 50, 1),
}


class Living(TorchDispatchMode):
    """Bytes of all tensors that were made while it was on and live, now and at most."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.most = {}, 0, 0

    def release(self, place: int) -> None:
        self.now -= self.sizes.pop(place)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        for tensor in tree_iter(given):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            place = storage.data_ptr()
            if place and place not in self.sizes:
                self.sizes[place] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.release, place)
        return given


class Gauge:
    """Seconds of each step, of the processor on a CPU and of the wall on a GPU; the largest memory since `start`, which on a
    CPU takes `living`: counting, where nothing is timed."""

    def __init__(self, device: str, living: Living | None):
        self.on_gpu, self.living, self.times = device == "cuda", living, []

    def start(self) -> None:
        """All stands, nothing ran."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        elif self.living is not None:
            self.living.most = self.living.now

    def begin(self) -> None:
        self.begun = self.now()

    def end(self) -> None:
        self.times.append(self.now() - self.begun)

    def now(self) -> float:
        if not self.on_gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    @property
    def most(self) -> int | None:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated()
        return None if self.living is None else self.living.most


# -- contestants: (shape, steps, gauge) -> the terms of every step, unweighted but for L1


def ours(shape: Shape, steps: int, gauge: Gauge, *, separately: bool, checkpointing: bool) -> list[dict]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    models, adapter = shape.models(), shape.adapter()
    objective = Distillation(bridge=BRIDGE, lowest_cutoff=0, separately=separately)
    learner = TranscoderLearner(
        "m", adapter, objective, Constant(), Constant(), LEARNING_RATE, BETAS, clip_norm=1.0,
        sequences=WholeSequences(held_out=0, gradient_checkpointing=checkpointing),
    )  # fmt: skip
    module = learner.module(
        SimpleNamespace(models=models), shape.sequences(steps), held_out=None, loggers=[], state=None, seed=0
    )

    class Steps(lightning.Callback):
        def on_train_batch_start(self, *_):
            gauge.begin()

        def on_train_batch_end(self, *_):
            gauge.end()

    trainer = lightning.Trainer(
        accelerator="cpu" if shape.device == "cpu" else "gpu", devices=1, precision=shape.precision, max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Steps()],
    )  # fmt: skip
    gauge.start()
    trainer.fit(module)
    return [{name: record[name] for name in TERMS} for record in module.history]


def cutoffs(shape: Shape, steps: int) -> list[int]:
    """Those that `ours` draws."""
    objective = Distillation(bridge=BRIDGE, lowest_cutoff=0).teach(shape.adapter(), Constant())
    last = [objective.terms(step, Length(steps, shape.tokens), 0)[-1] for step in range(steps)]
    learning = [term.choices.count(ADAPTER) for term in last]
    return [n if term.name == "adapter_first" else shape.layers - n for n, term in zip(learning, last, strict=True)]


def theirs(shape: Shape, steps: int, gauge: Gauge, *, folder: str) -> list[dict]:
    drawn, models, adapter = cutoffs(shape, steps), shape.models(), shape.adapter()
    model, tuned = adapter_authors.model_of(folder, models, adapter), models[TUNED]
    del models, adapter
    gauge.start()
    return adapter_authors.epoch(
        model, tuned, shape.sequences(steps), drawn, gauge,
        coefficient=COEFFICIENT, bridge=BRIDGE, learning_rate=LEARNING_RATE,
    )  # fmt: skip


WAYS = {
    "tunediff": {"separately": False, "checkpointing": False},
    "tunediff, separately": {"separately": True, "checkpointing": False},
    "tunediff, checkpointed": {"separately": False, "checkpointing": True},
    "tunediff, separately, checkpointed": {"separately": True, "checkpointing": True},
}
AUTHORS = "the authors"


def run(
    name: str, shape: Shape, steps: int, *, folder: str | None = None, counting: bool = False
) -> tuple[list[float], float | None, list[dict]]:
    """In this process: seconds of the steps, largest bytes where they were counted, terms of every step."""
    way = functools.partial(theirs, folder=folder) if name == AUTHORS else functools.partial(ours, **WAYS[name])
    living = Living() if counting else None
    gauge = Gauge(shape.device, living)
    with living or nullcontext():
        told = way(shape, steps, gauge)
        return gauge.times, gauge.most, told


def apart(mine: list[dict], theirs: list[dict]) -> dict[str, float]:
    """Term -> largest relative difference of any step; both have it at the same steps."""
    found = {}
    for name in TERMS:
        pairs = [
            (a[name], b[name]) for a, b in zip(mine, theirs, strict=True) if a[name] is not None or b[name] is not None
        ]
        found[name] = max((abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in pairs), default=0.0)
    return found


# -- all of them -----------------------------------------------------------------------------------------------------


def elsewhere(name: str, shape: str, steps: int, folder: str | None, *, counting: bool) -> dict:
    """`run` in a process of its own."""
    work = json.dumps([name, shape, steps, folder, counting])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if SHAPES[shape].device == "cpu" else None
    done = subprocess.run([sys.executable, __file__, "--work", work], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    return dict(zip(("times", "memory", "told"), json.loads(lines[0].removeprefix("RESULT ")), strict=True))


def estimated(name: str, shape: Shape) -> float | None:
    if name == AUTHORS:
        return None
    return adapter_memory(
        shape.config, shape.config, shape.dtype, latents=shape.latents, block=shape.tokens, micro_batch=1,
        precision=shape.precision, gradient_checkpointing=WAYS[name]["checkpointing"], logits_mb=Distillation().logits_mb,
        residuals=True,
    ).total  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--authors", help="a checkout of the authors' code; left out without it")
    parser.add_argument("--steps", type=int, help="that count; one more warms up")
    parser.add_argument("--rounds", type=int)
    asked = parser.parse_args()
    if asked.work:
        warnings.filterwarnings("ignore")
        name, shape, steps, folder, counting = json.loads(asked.work)
        if SHAPES[shape].device == "cpu":
            torch.set_num_threads(1)
        print("\nRESULT " + json.dumps(run(name, SHAPES[shape], steps, folder=folder, counting=counting)))
        return

    shape = SHAPES[asked.shape]
    if shape.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--shape {asked.shape} is measured on a GPU, and torch sees none here: choose --shape small.")
    names = ([AUTHORS] if asked.authors else []) + [
        name for name, way in WAYS.items() if way["checkpointing"] or shape.device == "cpu"
    ]
    steps, rounds = asked.steps or shape.steps, asked.rounds or shape.rounds
    found: dict[str, dict] = {name: {"times": []} for name in names}
    for number in range(rounds):
        for name in names:
            result = elsewhere(name, asked.shape, steps + 1, asked.authors, counting=False)
            found[name] |= result | {"times": found[name]["times"] + result["times"][1:]}
            print(f"round {number + 1}, {name}: {statistics.median(result['times'][1:]):.2f} s a step", flush=True)
    print(f"\n{asked.shape}: {shape._asdict()}\n")
    print("| | s a step | tokens a second | times the first | MB | MB estimated |\n|---|---|---|---|---|---|")
    first = statistics.median(found[names[0]]["times"])
    for name in names:
        step, memory = statistics.median(found[name]["times"]), found[name]["memory"]
        if memory is None:
            memory = elsewhere(name, asked.shape, 2, asked.authors, counting=True)["memory"]
        guess = estimated(name, shape)
        said = "" if guess is None else f"{guess / MB:,.0f}"
        print(
            f"| {name} | {step:.2f} | {shape.tokens / step:,.0f} | {first / step:.2f} | {memory / MB:,.0f} | {said} |"
        )
    for name in names[1:]:
        terms = apart(found[name]["told"], found[names[0]]["told"])
        print(f"{name} against {names[0]}, largest relative difference in {steps + 1} steps:", end=" ")
        print(", ".join(f"{term} {value:.1e}" for term, value in terms.items()))


if __name__ == "__main__":
    main()
