"""Labels that mean nothing -> how many of them are called found.

Tracks of labels that know nothing of the activations are laid over the held-out text of a finished run, in stretches of a few tokens,
and as a real label in some documents more than in others. Each is asked for as label_alignment asks for one, of the run's
dictionary, of random latents, and by the test that shuffles labels over all tokens; and the interval of one latent's AUROC is
compared with what that latent has over all tokens, where tracks are drawn again and again.

    python bench/nulls.py <run folder>
"""

from __future__ import annotations

import argparse

import torch

import tunediff
from tunediff import randomness
from tunediff.evaluations.reading.labelled import Labelled
from tunediff.measures import share
from tunediff.measures.separation import ActiveScores, interval
from tunediff.measures.shifts import chance, discoveries
from tunediff.shapes import Rows

LEVEL = 0.05


def track(document: torch.Tensor, generator: torch.Generator, *, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and beginnings of stretches [token], about three a document in half of the documents and none in the others."""
    truth, begins = torch.zeros(len(document), dtype=torch.bool), torch.zeros(len(document), dtype=torch.bool)
    for one in document.unique().tolist():
        here = (document == one).nonzero()[:, 0]
        often = int(torch.poisson(torch.tensor(6.0 * torch.rand(1, generator=generator).item()), generator=generator))
        if torch.rand(1, generator=generator) < 0.5 or len(here) <= length:
            continue
        for start in torch.randint(len(here), (often,), generator=generator).tolist():
            begins[here[start]] |= not truth[here[start]]
            truth[here[(start + torch.arange(length)) % len(here)]] = True
    return truth, begins


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--tracks", type=int, default=40)
    parser.add_argument("--shuffles", type=int, default=200)
    parser.add_argument("--length", type=int, default=4)
    asked = parser.parse_args()
    trained = tunediff.load(asked.run).trained()
    count, random = trained.dictionary.latents, trained.random_latents
    documents, questions, blocks = [], [], []
    for reading in trained.readings("nulls"):
        documents.append(reading.batch.document)
        questions.append(reading.batch.question)
        rows = Rows(reading.rows.values, reading.rows.moments)
        blocks.append(torch.cat([reading.latents, random.encode(rows)], dim=1))
    document, question = torch.cat(documents), torch.cat(questions)
    everything = ActiveScores.of(blocks, 2 * count)
    of = {"trained": everything.of_latents(0, count), "random latents": everything.of_latents(count, 2 * count)}
    found, discovered = ({name: [] for name in of} for _ in range(2))
    covered: dict[str, list[bool]] = {name: [] for name in of}
    for number in range(asked.tracks):
        generator = randomness.generator(number, "labels that mean nothing")
        truth, begins = track(document, generator, length=asked.length)
        labelled = Labelled(truth, document, question, begins.cumsum(0))
        assert labelled.enough, "the held-out text is too short for such labels"
        halves = labelled.select, labelled.test
        (chosen_on, tested_on) = ((truth[side], document[side]) for side in halves)
        for name, scores in of.items():
            first, second = (scores.of_tokens(side) for side in halves)
            influences = second.influences(*tested_on)
            best = int(first.auroc(chosen_on[0]).argmax())
            null = chance(first, second, chosen_on, tested_on, asked.shuffles)
            found[name].append(null.p_value(float(influences.value[best])) <= LEVEL)
            discovered[name].append(int((discoveries(null.p_values(influences.value.float())) <= LEVEL).sum()))
            low, high = interval(influences, min(labelled.counts()[1][1:]))
            shown = (influences.influence - influences.influence.median(0).values).abs() > 1e-12
            alive = shown.sum(0) >= 20  # latents with something to say in as many documents as a label needs
            covered[name] += ((low <= 0.5) & (high >= 0.5))[alive].tolist()
    for name in of:
        value, low, high = share(sum(found[name]), asked.tracks)
        print(
            f"{name}: {sum(found[name])} of {asked.tracks} tracks found at {LEVEL:.0%} ({value:.1%}; Wilson {low:.1%} to {high:.1%}); "
            f"tracks with a latent discovered (Benjamini-Hochberg, {LEVEL:.0%}): {sum(n > 0 for n in discovered[name])}; "
            f"intervals of latents that hold 0.5: {sum(covered[name]) / len(covered[name]):.3f}"
        )


if __name__ == "__main__":
    main()
