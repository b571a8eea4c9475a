"""What every shipped pair takes of one GPU with the study it brings, and the transcoder adapters' experiments: a table of
memory and hours, from shapes and data sheets alone, as dry_run says them.

    python bench/plan.py [--device h200] [--write]      --write puts the table into bench/results.md

The models are stand-ins of the real shapes with the tokenizers of real models (tests/stand_ins.py); texts of the Hub are a few
planted rows, of which no size depends.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import hydra
from omegaconf import DictConfig

import tunediff.text
from tunediff.models import ModelSource
from tunediff.settings import check
from tunediff.study.devices import ASSUMED, GPUS, Device
from tunediff.study.estimate import GB, Cost, cost_of, duration
from tunediff.study.parts import STUDY, agreed_upon
from tunediff.study.run import Run

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- plan.py -->", "<!-- /plan.py -->"
EXPERIMENTS = {"adapters_r1_1_5b": "r1_vs_qwen", "adapters_r1_7b": "r1_7b_vs_qwen", "rank1_lora": "qwen32b_lora"}


def costed(cfg: DictConfig, gpu: Device) -> tuple[Run, Cost, tuple[str, str]]:
    """The study of a config, what it takes of a device, and how long training and evaluations take, in words."""
    check(cfg, STUDY)
    pair, text, _ = agreed_upon(cfg, evaluated=True)
    run = Run(cfg, Path("nowhere"))
    run.build(pair, text, weights=False)
    cost = cost_of([run], pair, gpu)
    return run, cost, (duration(gpu.seconds(cost.training)), duration(gpu.seconds(cost.evaluation, cost.read)))


def row(name: str, words: list[str], device: str) -> str:
    """A line of the table: one dry run."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = hydra.compose("train", [*words, f"launcher.device={device}"])
    gpu = GPUS[device]
    run, cost, hours = costed(cfg, gpu)
    print(name, file=sys.stderr, flush=True)
    fits = "" if cost.memory <= gpu.memory else ", more than it has"
    told = f"{cost.memory / GB:.0f} GB{fits} | {hours[0]} | {hours[1]} |"
    return f"| {name} | {run.described['study']['dictionary']} | {cfg.budget.tokens / 1e6:,.0f} M | {told}"


def table(device: str) -> str:
    """All lines, under what they are made with."""
    sys.path.insert(0, str(ROOT / "tests"))
    from stand_ins import MODELS, PAIRS, read_planted, words_of  # pyright: ignore[reportMissingImports]

    tunediff.text.read_hub = read_planted
    read, known = ModelSource.tokenizer, {}

    def tokenizer(source: ModelSource):
        """Each is read once, whichever model has it."""
        name = MODELS[Path(source.path).name][1]
        if name not in known:
            known[name] = read(source)
        return known[name]

    ModelSource.tokenizer = tokenizer
    lines = [
        f"`python bench/plan.py --device {device}`, one {device.upper()} at {ASSUMED:.0%} of its peak, one member:\n",
        "| study | dictionary | tokens | memory | training | evaluations, products at most |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as place:
        for pair in PAIRS:
            lines.append(row(f"`model_pair={pair}`", words_of(pair, Path(place)), device))
        for experiment, pair in EXPERIMENTS.items():
            named = words_of(pair, Path(place))
            lines.append(row(f"`experiment={experiment}`", [f"experiment={experiment}", *named], device))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="h200", choices=sorted(GPUS))
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    made = table(asked.device)
    print(made)
    if asked.write:
        file = ROOT / "bench" / "results.md"
        between = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
        file.write_text(between.sub(lambda _: made, file.read_text(encoding="utf-8")), encoding="utf-8")
