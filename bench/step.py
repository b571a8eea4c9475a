"""What a training step of a dictionary costs, of each kind, dense and sparse.   python bench/step.py [--shapes small medium]

One core, every contestant in a process of its own, in rounds, so that whatever else the machine does falls on all. Steps
are those of the training module under Lightning's Trainer, with its clipping, counters and schedules. Prints the median
of the steps, tokens a second, the ratio to the first line, and the memory above what was there before the dictionary.

    python bench/step.py --agreement        the loss of sparse codes against dense ones over 200 steps
"""

import argparse
import functools
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from tunediff import randomness


class Shape(NamedTuple):
    """width of each of two models, latents, active latents a token, tokens a step."""

    width: int
    latents: int
    k: int
    batch: int


SHAPES = {"tiny": Shape(64, 1024, 16, 512), "small": Shape(512, 8192, 64, 2048), "medium": Shape(896, 14336, 100, 2048)}
BATCHES = 3


def write_batches(shape: Shape, path: Path) -> None:
    """Sparse sums of 4 x width random directions: what a dictionary is meant for."""
    draw = randomness.generator(0, "batches")
    width = 2 * shape.width
    directions = torch.nn.functional.normalize(torch.randn(2 * width, width, generator=draw), dim=-1)
    rows = []
    for _ in range(BATCHES * shape.batch // 256):
        strengths = torch.relu(torch.randn(256, len(directions), generator=draw) - 1.7)
        rows.append(strengths @ directions * 10)
    torch.save(torch.cat(rows), path)


def resident() -> float:
    """Megabytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# -- contestants: (batches, shape, precision, share of latents that are dead or none for no AuxK, steps) -> seconds of steps


def ours(
    kind: str,
    batches,
    shape: Shape,
    precision: str,
    dead: float | None,
    steps: int,
    *,
    sparse: bool | None = None,
    compiled: str | None = None,
    noting_dense: bool = False,
):
    """noting_dense: the losses given back are those of dense codes with the same weights."""
    import lightning
    from lightning.pytorch.plugins.environments import LightningEnvironment

    from tunediff.dictionary import L1, BatchTopK, Crosscoder, JumpReLU, Normalisation, TopK
    from tunediff.objectives import AuxK, Reconstruction
    from tunediff.schedules import Constant, Length, WarmupCooldown
    from tunediff.shapes import Rows, Stream
    from tunediff.training import DictionaryTraining, Learner

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    before = resident()
    sparsity = {
        "batchtopk": functools.partial(BatchTopK, shape.k),
        "topk": functools.partial(TopK, shape.k),
        "l1": functools.partial(L1, 2.0),
        "jumprelu": functools.partial(JumpReLU, 10.0),
    }[kind]()
    dictionary = Crosscoder(
        [Stream(role, "resid_post", 0, shape.width) for role in ("base", "tuned")],
        latents=shape.latents,
        sparsity=sparsity,
        normalisation=functools.partial(Normalisation, kind="none", sink_multiple=None),
        sparse_codes=sparse,
    )
    objective = Reconstruction(terms={} if dead is None else {"auxk": AuxK(1 / 32)}, look_every=10**9)
    learner = Learner(
        "m", dictionary, objective, Constant(), WarmupCooldown(0.1, 0.2), learning_rate=1e-4, compile=compiled
    )
    module = DictionaryTraining([learner], length=Length(steps, shape.batch), log_every=10**9)
    module.silent_for_0[: round((dead or 0) * shape.latents)] = objective.dead_after + 1  # looked at in the first step

    class Prepared:
        """What the module takes of a batch."""

        def __init__(self, rows):
            self.rows, self.stream = rows, self

        def check(self, reader: int) -> None:
            """None is turned away."""

        def of(self, reader: int) -> Rows:
            return Rows(self.rows)

    class Batches:
        def __len__(self):
            return steps

        def __iter__(self):
            return (Prepared(batches[n % BATCHES]) for n in range(steps))

    class Clock(lightning.Callback):
        times: list[float] = []
        losses: list[float] = []

        def on_train_batch_start(self, *_):
            self.begun = time.process_time()

        def on_train_batch_end(self, *_):
            self.times.append(time.process_time() - self.begun)

    loss = learner.loss

    def watched(*arguments, **options):
        if noting_dense:
            dictionary.sparse_codes = False
            with torch.no_grad():
                Clock.losses.append(float(loss(*arguments, **options).total))
            dictionary.sparse_codes = sparse
        losses = loss(*arguments, **options)
        if not noting_dense:
            Clock.losses.append(float(losses.total.detach()))
        return losses

    learner.loss = watched
    clock = Clock()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, precision={"fp32": "32-true", "bf16": "bf16-mixed"}[precision], max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[clock], plugins=[LightningEnvironment()],
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=Batches())
    if learner.error is not None:
        raise learner.error
    return clock.times, before, clock.losses


CONTESTANTS = {
    "BatchTopK, sparse codes": functools.partial(ours, "batchtopk", sparse=True),
    "BatchTopK, dense codes": functools.partial(ours, "batchtopk", sparse=False),
    "TopK, sparse codes": functools.partial(ours, "topk", sparse=True),
    "TopK, dense codes": functools.partial(ours, "topk", sparse=False),
    "L1": functools.partial(ours, "l1"),
    "L1, compiled": functools.partial(ours, "l1", compiled="inductor"),
    "JumpReLU": functools.partial(ours, "jumprelu"),
}
REVERSED = "BatchTopK, dense codes, rows in reverse"
SAME_WEIGHTS = "BatchTopK, dense codes on the weights of sparse ones"
WARM_UP = 3


def work(contestants, name: str, rows: str, shape: str, precision: str, dead: str, steps: int) -> None:
    """One contestant, in this process: prints its seconds and its memory."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(randomness.seed_for(0, "contestants"))
    batches = torch.load(rows).split(SHAPES[shape].batch)
    if name == REVERSED:
        name, batches = "BatchTopK, dense codes", [part.flip(0).contiguous() for part in batches]
    contestants = {**contestants, SAME_WEIGHTS: functools.partial(ours, "batchtopk", sparse=True, noting_dense=True)}
    share = None if dead == "none" else float(dead)
    times, before, losses = contestants[name](batches, SHAPES[shape], precision, share, steps + WARM_UP)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before
    print("RESULT " + json.dumps({"times": times[WARM_UP:], "memory": peak, "losses": losses}))


def contest(script: str, names, shape: str, precision: str, dead: str, *, steps: int, rounds: int) -> dict[str, dict]:
    """Every contestant once a round."""
    found: dict[str, dict] = {name: {"times": [], "memory": 0.0} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.pt"
        write_batches(SHAPES[shape], rows)
        for _ in range(rounds):
            for name in names:
                command = [sys.executable, script, "--work", name, str(rows), shape, precision, dead, str(steps)]
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
                )
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if not lines:
                    sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
                result = json.loads(lines[0].removeprefix("RESULT "))
                found[name]["times"] += result["times"]
                found[name]["memory"] = max(found[name]["memory"], result["memory"])
                found[name]["losses"] = result["losses"]
    return found


def table(found: dict[str, dict], shape: str) -> str:
    first = statistics.median(next(iter(found.values()))["times"])
    lines = ["| | ms a step | tokens a second | against the first | MB |", "|---|---|---|---|---|"]
    for name, result in found.items():
        step = statistics.median(result["times"])
        rate = SHAPES[shape].batch / step
        lines.append(f"| {name} | {1000 * step:.0f} | {rate:,.0f} | {step / first:.2f} | {result['memory']:.0f} |")
    return "\n".join(lines)


def agreement(shape: str, steps: int) -> None:
    """Sparse codes against dense ones on the same weights at every step; then each in a run of its own, beside dense ones
    against themselves with the rows of each batch in reverse: the same sums in another order. Two scores that are nearly
    equal at the limit change places sooner or later, and runs part, in either."""
    dense, sparse = "BatchTopK, dense codes", "BatchTopK, sparse codes"
    for dead in ("none", "0.1"):
        found = contest(
            __file__, (dense, sparse, SAME_WEIGHTS, REVERSED), shape, "fp32", dead, steps=steps - WARM_UP, rounds=1
        )
        for name, reference in ((sparse, SAME_WEIGHTS), (sparse, dense), (REVERSED, dense)):
            pairs = zip(found[name]["losses"], found[reference]["losses"], strict=True)
            apart = [abs(a - b) / abs(b) for a, b in pairs]
            parted = next((n for n, value in enumerate(apart) if value > 1e-6), len(apart))
            before = max(apart[:parted], default=0.0)
            print(
                f"{shape}, dead: {dead}, {name} against {reference.removeprefix('BatchTopK, ')}: "
                f"within {before:.1e} until step {parted}, {max(apart):.1e} in {steps} steps"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--shapes", nargs="*", default=["small"], choices=SHAPES)
    parser.add_argument("--precisions", nargs="*", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--dead", nargs="*", default=["0"], help="shares of latents that are dead; none: without AuxK")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--agreement", action="store_true")
    asked = parser.parse_args()
    if asked.work:
        *words, steps = asked.work
        work(CONTESTANTS, *words, int(steps))
        return
    for shape in asked.shapes:
        if asked.agreement:
            agreement(shape, 200)
            continue
        for precision in asked.precisions:
            for dead in asked.dead:
                print(f"\n{shape} {SHAPES[shape]._asdict()}, {precision}, dead: {dead}\n", flush=True)
                print(
                    table(
                        contest(__file__, CONTESTANTS, shape, precision, dead, steps=asked.steps, rounds=asked.rounds),
                        shape,
                    )
                )


if __name__ == "__main__":
    main()
