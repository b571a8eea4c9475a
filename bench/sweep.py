"""A packed sweep against the same members one after the other, end to end by the commands that are typed.

    python bench/sweep.py [--tokens 8192] [--latents 1024,2048] [--layers 8,12]

A pair of randomly initialised models in the shape of Qwen2.5-0.5B (24 layers, width 896, bfloat16) reads word problems;
2 layers x {L1, BatchTopK} x 2 widths, no evaluation. Both ways run in turn on this machine and one ratio is printed. Afterwards the
packed group runs once more inside this process with clocks around the models, the buffer and the dictionaries.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hydra
import torch
import transformers

from tunediff import randomness
from tunediff.activations import Drawn, LiveRows, ShuffledRows
from tunediff.models import ModelSource
from tunediff.study.run import Run
from tunediff.study.train import train
from tunediff.training import DictionaryTraining

ROOT = Path(__file__).resolve().parent.parent


def make_pair(folder: Path) -> None:
    tokenizer = ModelSource("pkg://tunediff.toy/weights/base").tokenizer()
    config = transformers.Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    for seed, role in enumerate(("base", "tuned")):
        torch.manual_seed(randomness.seed_for(seed, "models of a sweep"))
        transformers.Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)


def call(*words: str) -> float:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-3000:])
    return time.perf_counter() - begun


def timed(owner: type, name: str, spent: dict[str, float], key: str) -> None:
    """Adds the seconds inside owner.name to spent[key]; what is spent deeper is counted there alone."""
    plain = getattr(owner, name)

    def around(*arguments, **options):
        before, begun = sum(spent.values()), time.perf_counter()
        try:
            return plain(*arguments, **options)
        finally:
            spent[key] += time.perf_counter() - begun - (sum(spent.values()) - before)

    setattr(owner, name, around)


def shares(folder: Path, common: list[str], members: list[tuple[str, ...]]) -> dict[str, float]:
    """Seconds of the packed group by what they were spent on."""
    spent = {"models": 0.0, "buffer": 0.0, "dictionaries": 0.0, "the rest": 0.0}
    timed(LiveRows, "__next__", spent, "models")
    timed(ShuffledRows, "_refill", spent, "buffer")
    timed(Drawn, "of", spent, "buffer")
    timed(DictionaryTraining, "training_step", spent, "dictionaries")
    runs = []
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        for n, words in enumerate(members):
            run = Run(hydra.compose("train", [*common, *words, "sweep=bench"]), folder / str(n))
            run.folder.mkdir(parents=True)
            run.begin()
            runs.append(run)
    begun = time.perf_counter()
    train(runs, folder / "checkpoints")
    spent["the rest"] = time.perf_counter() - begun - sum(spent.values())
    return spent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--latents", default="1024,2048")
    parser.add_argument("--layers", default="8,12")
    asked = parser.parse_args()
    axes = [f"layer={asked.layers}", "dictionary=l1_crosscoder,batchtopk_crosscoder", f"budget.latents={asked.latents}"]
    members = list(
        itertools.product(
            *([f"{key}={v}" for v in values.split(",")] for key, _, values in (a.partition("=") for a in axes))
        )
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_pair(folder / "pair")
        common = [
            "scale=smoke", "model_pair=local", "evaluation=none", f"budget.tokens={asked.tokens}", "optimizer.batch=512",
            f"model_pair.base.path={folder}/pair/base", f"model_pair.tuned.path={folder}/pair/tuned",
        ]  # fmt: skip
        call("-m", *common, *axes, "dry_run=true", f"hydra.sweep.dir={folder}/dry")  # files into the system's cache
        alone, packed = [], []
        for n, words in enumerate(members):
            alone.append(call(*common, *words, f"hydra.run.dir={folder}/alone-{n}"))
            if n % 4 == 3:  # the machine is shared: the packed sweep runs twice among the others
                packed.append(call("-m", *common, *axes, f"hydra.sweep.dir={folder}/packed-{n}"))
        print(
            f"{len(members)} members, {asked.tokens:,} tokens each; seconds alone: {' '.join(f'{s:.0f}' for s in alone)}"
        )
        print(f"one after the other {sum(alone):.0f} s, packed {' and '.join(f'{s:.0f}' for s in packed)} s")
        ratio = sum(alone) / (sum(packed) / len(packed))
        print(f"packed is {ratio:.2f} times faster, end to end (start of Python and loading included)")
        spent = shares(folder / "shares", common, members)
    whole = sum(spent.values())
    print(
        "of the packed group: " + ", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, seconds in spent.items())
    )


if __name__ == "__main__":
    main()
