"""Which dictionary finds the differences that were planted?   python bench/planted.py --to <file> [--tokens 1_000_000]

Options of conf/dictionary are trained, by the module that trains studies, on activations of made-up pairs of models whose
exclusive, shared, rotated, shrunken, split, dense and rare directions are known. All options see the same batches. Three
commands write into one file, where a row that is there already is not trained again, and one prints it:

    python bench/planted.py --to planted.jsonl --tokens 250_000 1_000_000 4_000_000     # as shipped, and their controls
    python bench/planted.py --to planted.jsonl --equal                                  # at equal L0
    python bench/planted.py --to planted.jsonl --options l1_crosscoder --search start AuxK   # where its false calls come from
    python bench/planted.py --to planted.jsonl --options delta_crosscoder --search lambda    # what its term does
    python bench/planted.py --to search.jsonl --search start norms rate --pairs 100 101     # settings, on other pairs
    python bench/planted.py --show planted.jsonl

Equal L0: options without a k are trained at their coefficient times 1/8 to 16 on pair 200, which no table reports; what
gives the L0 of --equal is read off between them, straight in the logarithms of both.
"""

import argparse
import itertools
import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment

from tunediff.activations import Planted, PlantedRows, ShuffledRows, take
from tunediff.dictionary import Crosscoder, Linear, Normalisation
from tunediff.evaluations import score
from tunediff.evaluations.reading.planted_truth import Score
from tunediff.measures.clustered import ratio
from tunediff.schedules import Length
from tunediff.settings import build
from tunediff.study.parts import build_dictionary
from tunediff.training import DictionaryTraining, Learner

CONF = Path(__file__).resolve().parent.parent / "conf"
BATCH, SAMPLE, APART = 1024, 20_000, 200
UNTRAINED, PRINCIPAL = "untrained", "principal components"
BATCHTOPK = "batchtopk_crosscoder"
# a row of the table -> what it is beside its option
CONTROLS = {
    "frozen decoder": ["dictionary.frozen=decoder"],
    "soft-frozen decoder": ["dictionary.frozen=soft_decoder"],
    "frozen encoder": ["dictionary.frozen=encoder"],
}
LONG = 4_000_000  # tokens up to which the controls are trained as well
LADDER = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16]
Words = tuple[str, ...]
# axis of the search -> value -> words
AXES: dict[str, dict[str, Words]] = {
    "start": {"shared": ("dictionary.shared_start=true",), "own": ("dictionary.shared_start=false",)},
    "norms": {
        f"{decoder:g}/{encoder or 'transpose'}": (
            f"dictionary.decoder_norm={decoder}",
            f"dictionary.encoder_norm={encoder or 'null'}",
        )
        for decoder, encoder in ((1.0, None), (0.3, None), (0.3, 1.0), (0.1, None), (0.1, 1.0), (0.1, 0.5))
    },
    "rate": {f"{rate:g}": (f"optimizer.learning_rate={rate}",) for rate in (1e-3, 3e-3, 6e-3)},
    "AuxK": {f"{weight:g}": (f"dictionary.objective.terms.auxk.weight={weight}",) for weight in (0, 1 / 32, 1)},
    "anneal": {
        f"{start} over {over}": (
            f"dictionary.sparsity.k_schedule.start={start}",
            f"dictionary.sparsity.k_schedule.over={over}",
        )
        for start, over in ((1, 0.1), (5, 0.1), (5, 0.5))
    },
    "k": {f"{k}": (f"dictionary.sparsity.k={k}",) for k in (8, 12, 16)},
    "lambda": {
        f"{weight:g}": (f"dictionary.objective.terms.delta.weight={weight}",) for weight in (0, 0.005, 0.1, 1.0)
    },
}


def options() -> list[str]:
    """Names of the options that read activations."""
    return sorted(path.stem for path in (CONF / "dictionary").glob("*.yaml") if path.stem != "transcoder_adapter")


def configured(words: Sequence[str], *, latents: int, seed: int) -> Any:
    words = [f"budget.latents={latents}", f"seed={seed}", "budget.dead_after=50_000", *words]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose("train", words)


def learner_of(
    name: str, words: Sequence[str], planted: Planted, *, latents: int, length: Length, seed: int
) -> Learner:
    """One dictionary as a study would build it, over the planted streams that it reads."""
    cfg = configured(words, latents=latents, seed=seed)
    both = planted.streams
    reads = cfg.dictionary.reads
    streams = both if reads == "both" else [both[1]._replace(role=reads)]
    learner = Learner(
        name,
        build_dictionary(cfg.dictionary, streams),
        build(cfg.dictionary.objective),
        l1_schedule=build(cfg.l1_schedule),
        learning_rate_schedule=build(cfg.optimizer.learning_rate_schedule),
        learning_rate=cfg.optimizer.learning_rate,
        clip_norm=cfg.optimizer.clip_norm,
    )
    learner.check(length)
    return learner


def fit(learner: Learner, planted: Planted, *, seed: int) -> None:
    learner.dictionary.fit(take(PlantedRows(planted, learner.dictionary.streams, seed=4 * seed), SAMPLE))


def train(learners: list[Learner], planted: Planted, length: Length, *, seed: int) -> None:
    """All of them on the same batches."""
    streams = list(dict.fromkeys(stream for learner in learners for stream in learner.dictionary.streams))
    module = DictionaryTraining(learners, length=length, log_every=100)
    source = PlantedRows(planted, streams, seed=4 * seed + 1)
    stream = ShuffledRows(
        source, [m.reader() for m in learners], batch=BATCH, capacity=8 * BATCH, steps=length.steps, seed=seed
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LightningEnvironment()],
    )
    trainer.fit(module, train_dataloaders=stream)
    for learner in learners:
        if learner.error is not None:
            raise learner.error


def measured(dictionary: Any, planted: Planted, *, seed: int) -> Score:
    source = PlantedRows(planted, dictionary.streams, seed=4 * seed + 2)
    return score(dictionary.eval().requires_grad_(False), planted, [next(source) for _ in range(10)])


def principal(planted: Planted, count: int, *, seed: int) -> Crosscoder:
    """A dictionary whose latents are the first `count` principal components of both models side by side."""
    made = Crosscoder(
        planted.streams,
        latents=count,
        sparsity=Linear(0.0),
        normalisation=lambda widths: Normalisation(widths),
        decoder_bias="mean",
    )
    sample = take(PlantedRows(planted, planted.streams, seed=4 * seed), SAMPLE)
    made.fit(sample)
    rows = made.normalisation.normalise(*sample) - made.b_dec
    with torch.no_grad():
        made.W_dec.copy_(torch.linalg.svd(rows.detach(), full_matrices=False).Vh[:count])
        made.W_enc.copy_(made.W_dec.T)
        made.b_enc.copy_(-made.b_dec @ made.W_enc)
    return made


class Kept:
    """Scores in a file of lines, each found again by what it is a score of."""

    def __init__(self, path: Path):
        self.path, self.found = path, {}
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            self.found[self.key(row)] = row

    @staticmethod
    def key(row: Mapping[str, Any]) -> str:
        return json.dumps([row[name] for name in ("name", "words", "tokens", "latents", "pair")])

    def add(self, row: dict[str, Any], scored: Score) -> None:
        flat = {name: getattr(scored, name) for name in ("explained_variance", "l0", "dead", "mean_max_cosine")}
        for kind in ("by_norm", "scaled"):
            calls = getattr(scored, kind)
            flat |= {
                f"{kind}/{name}": getattr(calls, name, None) for name in ("called", "false", "precision", "recall")
            }
        self.found[self.key(row)] = row | flat
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | flat) + "\n")


def run(kept: Kept, asked: Mapping[str, Words], *, tokens: int, pairs: Iterable[int], latents: int) -> None:
    """Trains what is asked, by its name in the table, and not there yet; each pair with the seed of its number."""
    length = Length(tokens // BATCH, BATCH)
    for pair in pairs:
        rows = {
            name: {"name": name, "words": list(words), "tokens": tokens, "latents": latents, "pair": pair}
            for name, words in asked.items()
        }
        rows = {name: row for name, row in rows.items() if kept.key(row) not in kept.found}
        planted = Planted(seed=pair)
        learners = [
            learner_of(name, row["words"], planted, latents=latents, length=length, seed=pair)
            for name, row in rows.items()
        ]
        for learner in learners:
            fit(learner, planted, seed=pair)
        if learners:
            train(learners, planted, length, seed=pair)
        for learner in learners:
            kept.add(rows[learner.name], measured(learner.dictionary, planted, seed=pair))
        print(f"pair {pair}, {tokens:,} tokens: {len(learners)} trained", file=sys.stderr)


def run_untrained(kept: Kept, chosen: Sequence[str], *, pairs: Iterable[int], latents: int) -> None:
    """Every option at its start, and as many principal components as a default dictionary has active latents."""
    for pair, option in itertools.product(pairs, [*chosen, PRINCIPAL]):
        name = option if option == PRINCIPAL else f"{option}, {UNTRAINED}"
        row = {"name": name, "words": [option], "tokens": 0, "latents": latents, "pair": pair}
        if kept.key(row) in kept.found:
            continue
        planted = Planted(seed=pair)
        if option == PRINCIPAL:
            dictionary: Any = principal(
                planted, configured([], latents=latents, seed=0).dictionary.sparsity.k, seed=pair
            )
        else:
            learner = learner_of(
                name, [f"dictionary={option}"], planted, latents=latents, length=Length(1000, BATCH), seed=pair
            )
            fit(learner, planted, seed=pair)
            dictionary = learner.dictionary
        kept.add(row, measured(dictionary, planted, seed=pair))


def at_equal_l0(kept: Kept, option: str, l0: float, *, tokens: int, latents: int) -> Words | None:
    """Words by which an option has about this L0: its k, or a coefficient that is read off a ladder; None where none does."""
    sparsity = configured([f"dictionary={option}"], latents=latents, seed=0).dictionary.sparsity
    if "k" in sparsity:
        counts = {name: sparsity[name] for name in ("k", "k_shared") if name in sparsity}
        words = (f"dictionary.sparsity.{name}={round(l0 * k / sum(counts.values()))}" for name, k in counts.items())
        return (f"dictionary={option}", *words)
    asked = {
        f"{option} x {times:g}": (
            f"dictionary={option}",
            f"dictionary.sparsity.coefficient={times * sparsity.coefficient:g}",
        )
        for times in LADDER
    }
    run(kept, asked, tokens=tokens, pairs=[APART], latents=latents)
    found = []
    for times, (name, words) in zip(LADDER, asked.items(), strict=True):
        row = {"name": name, "words": list(words), "tokens": tokens, "latents": latents, "pair": APART}
        found.append((math.log(times), math.log(max(kept.found[kept.key(row)]["l0"], 1e-3))))
    for (near, more), (far, fewer) in itertools.pairwise(found):
        if fewer <= math.log(l0) <= more and more > fewer:
            times = math.exp(near + (more - math.log(l0)) / (more - fewer) * (far - near))
            return (f"dictionary={option}", f"dictionary.sparsity.coefficient={times * sparsity.coefficient:.3g}")
    return None


def searched(option: str, axes: Sequence[str]) -> dict[str, Words]:
    """Every combination of the values of these axes, beside what the option ships."""
    made = {}
    for place in itertools.product(*(AXES[axis].items() for axis in axes)):
        name = f"{option}: {', '.join(f'{axis} {value}' for axis, (value, _) in zip(axes, place, strict=True))}"
        made[name] = (f"dictionary={option}", *itertools.chain.from_iterable(words for _, words in place))
    return made


def cell(values: Sequence[float | None], least: float = 0.0, most: float = math.inf) -> str:
    """Mean over pairs and its interval by Student's t."""
    known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if not len(known):
        return "–"
    value, low, high = ratio(known, torch.ones_like(known)).bounded(least=least, most=most)
    return (
        f"{value:.2f}"
        if low is None or high is None or high - low < 0.005
        else f"{value:.2f} ({low:.2f} to {high:.2f})"
    )


def tables(kept: Kept) -> str:
    """A table for each number of tokens: means over pairs, with Student's t intervals over them."""
    ending = ("called", "false", "precision", "recall")
    head = ["", "explained variance", "L0", "dead", "mean max cosine", *ending, *ending]
    keys = ["explained_variance", "l0", "dead", "mean_max_cosine"]
    keys += [f"{kind}/{name}" for kind in ("by_norm", "scaled") for name in ending]
    rows = [row for row in kept.found.values() if row["pair"] != APART]
    parts = []
    for tokens in sorted({row["tokens"] for row in rows}):
        here = [row for row in rows if row["tokens"] == tokens]
        lines = [head, ["---"] * len(head)]
        for name in sorted({row["name"] for row in here}):
            of_it = [row for row in here if row["name"] == name]
            least = {key: -math.inf if key == "explained_variance" else 0.0 for key in keys}
            most = {key: math.inf if key.endswith(("l0", "called", "false")) else 1.0 for key in keys}
            lines.append([name, *(cell([row[key] for row in of_it], least[key], most[key]) for key in keys)])
        pairs = len({row["pair"] for row in here})
        parts += [f"{tokens:,} tokens, {pairs} pairs:", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts)


def short(kept: Kept, tokens: int = 1_000_000) -> str:
    """The options that read both models at one length, as shipped, with their controls and untrained selves."""
    rows = [row for row in kept.found.values() if row["pair"] != APART and row["tokens"] in (0, tokens)]
    rows = [row for row in rows if row["by_norm/called"] is not None and not re.search("L0 |: ", row["name"])]
    head = [
        "",
        "explained variance",
        "L0",
        "exclusive",
        "of these false",
        "recall",
        "confirmed",
        "of these false",
        "recall",
    ]
    keys = ["explained_variance", "l0", "by_norm/called", "by_norm/false", "by_norm/recall"]
    keys += ["scaled/called", "scaled/false", "scaled/recall"]
    lines = [head, ["---"] * len(head)]
    for name in sorted({row["name"] for row in rows}):
        of_it = [row for row in rows if row["name"] == name]
        if name.endswith(UNTRAINED) and not name.startswith(BATCHTOPK):
            continue
        spread = {key: [row[key] for row in of_it] for key in keys}
        cells = [f"{sum(values) / len(values):.{1 if key == 'l0' else 2}f}" for key, values in spread.items()]
        for n, key in enumerate(keys):
            if key.endswith(("called", "false")):
                low, high = min(spread[key]), max(spread[key])
                cells[n] = f"{low}" if low == high else f"{low} to {high}"
        lines.append([f"`{name}`" if "," not in name else name.replace(BATCHTOPK, "BatchTopK"), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, help="file of lines that scores are added to")
    parser.add_argument("--show", type=Path, help="file of lines to print as tables")
    parser.add_argument("--tokens", type=lambda word: int(word.replace("_", "")), nargs="*", default=[1_000_000])
    parser.add_argument("--latents", type=int, default=256)
    parser.add_argument("--pairs", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--options", nargs="*", default=options())
    parser.add_argument("--equal", type=float, nargs="?", const=12.0, help="compare at this L0")
    parser.add_argument(
        "--search", nargs="+", choices=AXES, help="axes of a search over settings of the first of --options"
    )
    asked = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if asked.show is not None:
        print(tables(Kept(asked.show)))
        return
    kept = Kept(asked.to)
    for tokens in asked.tokens:
        settings = {"tokens": tokens, "latents": asked.latents}
        if asked.search:
            wanted = searched(asked.options[0], asked.search)
        elif asked.equal:
            found = {option: at_equal_l0(kept, option, asked.equal, **settings) for option in asked.options}
            wanted = {f"{option}, L0 {asked.equal:g}": words for option, words in found.items() if words is not None}
        else:
            run_untrained(kept, asked.options, pairs=asked.pairs, latents=asked.latents)
            wanted = {option: (f"dictionary={option}",) for option in asked.options}
            if BATCHTOPK in asked.options and tokens <= LONG:
                controls = {f"{BATCHTOPK}, {name}": words for name, words in CONTROLS.items()}
                wanted |= {name: (f"dictionary={BATCHTOPK}", *words) for name, words in controls.items()}
        run(kept, wanted, pairs=asked.pairs, **settings)


if __name__ == "__main__":
    main()
