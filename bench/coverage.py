"""Do the intervals hold the truth as often as they say?   python bench/coverage.py [--studies 2000] [--only recovered]

Each row is one kind of interval that findings have, of data whose truth is known (bench/simulated.py). A nominal 95 % interval
should hold the truth in .93 to .97 of studies. Prints the share that did, and the median width, at 8, 30 and 100 units of
chance; a study whose interval has no ends is left out and counted. A row more is an entry more in ROWS.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from simulated import (
    answers_apart,
    apart_over_random,
    barely,
    cost,
    drawn,
    flat_best,
    gained,
    hesitating,
    in_turn,
    judged,
    layers,
    matched,
    named,
    nu,
    of_curve,
    often,
    once,
    one_of_four,
    over_random,
    recovered,
    recovered_lengths,
    recovered_of,
    tokens_apart,
    tokens_of,
    told,
    told_by_few,
    two_models,
    variance,
)
from tunediff import randomness
from tunediff.measures.clustered import Bounded

UNITS = (8, 30, 100)


class Row(NamedTuple):
    """A finding's interval, the units it is over, and a study: of so many units, the interval and the truth. `findings` are
    those that have it."""

    name: str
    findings: str
    over: str
    study: Callable[[Generator, int], tuple[Bounded, float]]


ROWS = (
    Row("AUROC of a label", "label_alignment; probing; unit_comparison", "documents", told),
    Row("the same of a sparse latent, .5", "the table of latents", "documents", told_by_few),
    Row(
        "a cost a token",
        "fidelity ce_*, kl_*; replacement; kl_patching kl; lora_ablation; perplexity",
        "documents",
        cost,
    ),
    Row("a cost a token, documents uncut", "the same", "documents", lambda c, n: cost(c, n, 10**6)),
    Row("explained variance", "fidelity explained_variance of one model", "documents", variance),
    Row("explained variance, pooled", "fidelity", "documents", lambda c, n: variance(c, n, 2)),
    Row(
        "CE and KL recovered",
        "fidelity; replacement; kl_patching closed; lora_ablation share",
        "documents",
        recovered_of,
    ),
    Row("the same, the ablation barely costs", "those that are given", "documents", barely),
    Row("the largest of 28 layers, 99 %", "layer_divergence", "documents", layers),
    Row("mean KL of 20 draws", "kl_patching, lora_ablation random", "draws and documents", drawn),
    Row(
        "gap closed by 20 draws", "kl_patching closed/random", "draws and documents", lambda c, n: drawn(c, n, of=True)
    ),
    Row("accuracy .5, one answer", "accuracy, hesitating (Wilson)", "problems", lambda c, n: once(c, n, 0.5)),
    Row("accuracy .05, one answer", "the same", "problems", lambda c, n: once(c, n, 0.05)),
    Row("avg@16 of .5", "accuracy", "problems", lambda c, n: often(c, n, 0.5)),
    Row("avg@16 of .05, problems unlike", "accuracy", "problems", lambda c, n: often(c, n, 0.05)),
    Row("avg@16 of .05, problems alike", "accuracy", "problems", lambda c, n: often(c, n, 0.05, 20)),
    Row("pass@4 of 16", "benchmark pass_at", "problems", one_of_four),
    Row("difference, one answer", "difference (Newcombe)", "problems", lambda c, n: two_models(c, n, 1, 0.3)),
    Row("difference, 16 answers", "difference, pass_at", "problems", lambda c, n: two_models(c, n, 16, 0.3)),
    Row("difference, one problem in 20 changes", "difference", "problems", lambda c, n: two_models(c, n, 16, 0.05)),
    Row("difference, one problem in 10 changes", "difference", "problems", lambda c, n: two_models(c, n, 16, 0.1)),
    Row("difference, no problem changes", "difference", "problems", lambda c, n: two_models(c, n, 16, 0.0)),
    Row("best budget", "benchmark best_accuracy", "problems", of_curve("best")),
    Row("best budget, all alike", "benchmark best_accuracy", "problems", flat_best),
    Row("slope a doubling", "benchmark slope_*", "problems", of_curve("per_doubling")),
    Row("area", "benchmark area", "problems", of_curve("area")),
    Row("slope a doubling, tuned less base", "benchmark tuned_less_base", "problems", gained),
    Row("recovered accuracy", "recovery, adapter_recovery", "problems", recovered),
    Row("recovered tokens", "recovery, adapter_recovery", "problems", recovered_lengths),
    Row("tokens a response", "tokens", "problems", tokens_of),
    Row("tokens less those of another", "<measure>_change", "problems", tokens_apart),
    Row("accuracy less that of another", "accuracy_change", "problems", lambda c, n: answers_apart(c, n, 0.3)),
    Row("the same, one problem in 20 changes", "the same", "problems", lambda c, n: answers_apart(c, n, 0.05)),
    Row("hesitations per 1,000 tokens", "hesitations; hesitation*_change", "problems", hesitating),
    Row(
        "accuracy of 20 draws in turn",
        "ablation, scaling, patching, latent_sets controls",
        "draws and problems",
        in_turn,
    ),
    Row("accuracy less that of 20 draws", "difference of random controls", "draws and problems", apart_over_random),
    Row("tokens less those of 20 draws", "<measure>_over_random", "draws and problems", over_random),
    Row("balanced accuracy of a judge", "autointerp, unit_comparison", "latents", judged),
    Row("latents that a twin has", "twin matched*, confirmed", "concepts", matched),
    Row("planted directions that are named", "latent_scaling power (Wilson)", "directions", named),
    Row("nu of a latent", "latent_scaling nu_*_high, confirmed", "documents", nu),
)


def measured(row: Row, units: int, studies: int) -> tuple[float, float, int]:
    """The share of intervals that hold the truth, their median width, and the number of studies without one."""
    held, widths = [], []
    for study in range(studies):
        (_, low, high), truth = row.study(randomness.numpy_generator(0, "coverage", row.name, units, study), units)
        if low is not None and high is not None:
            held.append(low <= truth <= high)
            widths.append(high - low)
    if not held:
        return float("nan"), float("nan"), studies
    return float(np.mean(held)), float(np.median(widths)), studies - len(held)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--only", default="", help="rows whose name holds these words")
    asked = parser.parse_args()
    print("| interval | findings | over |", " | ".join(f"{n} units: holds, width" for n in UNITS), "|")
    print("|---|---|---|" + "---|" * len(UNITS))
    for row in ROWS:
        if asked.only not in row.name:
            continue
        cells = []
        for units in UNITS:
            held, width, without = measured(row, units, asked.studies)
            left_out = f" ({without / asked.studies:.0%} without)" if without else ""
            cells.append(f"{held:.3f}, {width:.2g}{left_out}")
        print(f"| {row.name} | {row.findings} | {row.over} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
