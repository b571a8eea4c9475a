"""Nulls whose answer is known -> how many labels are called found, and how many latents one model's own.

labels       Tracks of labels that know nothing of the activations are laid over the held-out text of a finished run, in stretches
             of a few tokens, in some documents more than in others: round the ends of documents, within them, and in the
             thinking alone, more of it towards its end. Each is asked for as label_alignment asks for one, of the run's
             dictionary and of random latents; the interval of a latent's AUROC is counted where it holds 0.5.
exclusives   The dictionaries that finished runs trained beside their own, on pairs whose truth is known: the base beside itself,
             beside a copy with noise, and beside the tuned model on other tokens (activations/controls.py).

    python bench/nulls.py labels <run folder> [--json FILE]
    python bench/nulls.py exclusives <run folder> <run folder> ... [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

import tunediff
from tunediff import randomness
from tunediff.evaluations.reading.labelled import Labelled
from tunediff.measures import share
from tunediff.measures.clustered import ratio
from tunediff.measures.separation import ActiveScores, interval
from tunediff.measures.shifts import chance, discoveries
from tunediff.report.page import read_table
from tunediff.shapes import SEGMENTS, Rows

LEVEL = 0.05
LENGTH = 4  # tokens of a stretch
KINDS = ("round", "within", "thinking")
Found = dict[str, tuple[float | None, float | None, float | None]]


# -- labels --------------------------------------------------------------------------------------------------------------


def track(document: torch.Tensor, segment: torch.Tensor, kind: str, generator: torch.Generator) -> tuple:
    """Labels and beginnings of stretches [token], about three a document in half of the documents and none in the others."""
    truth, begins = torch.zeros(len(document), dtype=torch.bool), torch.zeros(len(document), dtype=torch.bool)
    for one in document.unique().tolist():
        here = document == one
        if kind == "thinking":
            here &= segment == SEGMENTS.index("thinking")
        here = here.nonzero()[:, 0]
        mean = 6.0 * torch.rand(1, generator=generator)
        often = int(torch.poisson(mean, generator=generator))
        if torch.rand(1, generator=generator) < 0.5 or len(here) <= LENGTH:
            continue
        for place in torch.rand(often, generator=generator).tolist():
            room = len(here) if kind == "round" else len(here) - LENGTH + 1
            start = int(room * (place**0.5 if kind == "thinking" else place))
            begins[here[start]] |= not truth[here[start]]
            truth[here[(start + torch.arange(LENGTH)) % len(here)]] = True
    return truth, begins


def labels(run: str, tracks: int, shuffles: int, begin: int) -> Found:
    """Shares of tracks that are found, by the kind of track and of latents."""
    trained = tunediff.load(run).trained()
    count, random = trained.dictionary.latents, trained.random_latents
    documents, questions, segments, blocks = [], [], [], []
    for reading in trained.readings("nulls"):
        documents.append(reading.batch.document)
        questions.append(reading.batch.question)
        segments.append(reading.batch.segment)
        rows = Rows(reading.rows.values, reading.rows.moments)
        blocks.append(torch.cat([reading.latents, random.encode(rows)], dim=1))
    document, question, segment = torch.cat(documents), torch.cat(questions), torch.cat(segments)
    everything = ActiveScores.of(blocks, 2 * count)
    of = {"trained": everything.of_latents(0, count), "random": everything.of_latents(count, 2 * count)}
    halves = {name: [scores.of_tokens(question % 2 == side) for side in (0, 1)] for name, scores in of.items()}
    made: Found = {}
    for kind in KINDS:
        found, discovered, covered = ({name: [] for name in of} for _ in range(3))
        for number in range(begin, begin + tracks):
            truth, begins = track(document, segment, kind, randomness.generator(number, "labels that mean nothing"))
            labelled = Labelled(truth, document, question, begins.cumsum(0), segment)
            assert labelled.enough, "the held-out text is too short for such labels"
            chosen_on, tested_on = labelled.track(labelled.select), labelled.track(labelled.test)
            for name, (first, second) in halves.items():
                influences = second.influences(tested_on.truth, tested_on.document)
                best = int(first.auroc(chosen_on.truth).argmax())
                null = chance(first, second, chosen_on, tested_on, shuffles)
                found[name].append(null.p_value(float(influences.value[best])) <= LEVEL)
                discovered[name].append(bool((discoveries(null.p_values(influences.value.float())) <= LEVEL).any()))
                low, high = interval(influences, min(labelled.counts()[1][1:]))
                shown = (influences.influence - influences.influence.median(0).values).abs() > 1e-12
                alive = shown.sum(0) >= 20  # latents with something to say in as many documents as a label needs
                covered[name] += ((low <= 0.5) & (high >= 0.5))[alive].tolist()
        for name in of:
            at = f"null_labels/{kind}/{name}"
            made[f"{at}/found"] = share(sum(found[name]), tracks)
            made[f"{at}/discovered"] = share(sum(discovered[name]), tracks)
            made[f"{at}/holds_half"] = (sum(covered[name]) / len(covered[name]), None, None)
            print(
                f"{at}: "
                + ", ".join(f"{key} {said(made[f'{at}/{key}'])}" for key in ("found", "discovered", "holds_half")),
                flush=True,
            )
    return made


# -- exclusives ----------------------------------------------------------------------------------------------------------


def exclusives(runs: Sequence[str]) -> Found:
    """Latents of a run that are called one model's own by decoder norm, and confirmed by latent scaling: means over runs, with
    Student's t."""
    counts: dict[str, list[int]] = {}
    for run in runs:
        table = read_table(Path(run), "controls")
        assert table is not None, f"{run} has no dictionary on a control: train it with budget.companions=[equal]"
        for control in {*table["read"]}:
            for name in ("called", "confirmed"):
                both = [n for n, read in zip(table[name], table["read"], strict=True) if read == control]
                counts.setdefault(f"null_exclusives/{control}/{name}", []).append(sum(both))
    made: Found = {"null_exclusives/runs": (len(runs), None, None)}
    for at, found in sorted(counts.items()):
        values = torch.tensor(found, dtype=torch.float64)
        made[at] = ratio(values, torch.ones_like(values)).bounded(least=0.0)
        print(f"{at}: {said(made[at])} a run; each {found}")
    return made


def said(found: tuple) -> str:
    value, low, high = found
    return f"{value:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("of", choices=["labels", "exclusives"])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--tracks", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first track: others are others")
    parser.add_argument("--shuffles", type=int, default=200)
    parser.add_argument("--json", type=Path, help="what was found is written here as well, name -> value, low, high")
    asked = parser.parse_args()
    found = (
        labels(asked.runs[0], asked.tracks, asked.shuffles, asked.first)
        if asked.of == "labels"
        else exclusives(asked.runs)
    )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
