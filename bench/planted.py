"""Which dictionary finds the differences that were planted?   python bench/planted.py [--tokens 1_000_000] [--seeds 3]

Every option of conf/dictionary is trained, by the module that trains studies, on activations of two made-up models whose
exclusive, shared, rotated, shrunken, split, dense and rare directions are known; one planted pair a seed, the same
batches for all dictionaries. Prints means over seeds, with the range where a count is meant.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

import hydra
import lightning
from lightning.pytorch.plugins.environments import LightningEnvironment

from tunediff.activations import Planted, PlantedRows, ShuffledRows, take
from tunediff.evaluations import score
from tunediff.schedules import Length
from tunediff.settings import build
from tunediff.study.parts import build_dictionary
from tunediff.training import DictionaryTraining, Learner

CONF = Path(__file__).resolve().parent.parent / "conf"
BATCH = 1024


def options() -> list[str]:
    return sorted(path.stem for path in (CONF / "dictionary").glob("*.yaml"))


def learner_of(
    option: str, planted: Planted, *, latents: int, length: Length, seed: int, overrides: list[str]
) -> Learner:
    """One dictionary option as a study would build it, over the planted streams that it reads."""
    words = [
        f"dictionary={option}",
        f"budget.latents={latents}",
        f"seed={seed}",
        "budget.dead_after=50_000",
        *overrides,
    ]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("train", words)
    both = planted.streams
    reads = cfg.dictionary.reads
    streams = both if reads == "both" else [both[1]._replace(role=reads)]
    learner = Learner(
        option,
        build_dictionary(cfg.dictionary, streams),
        build(cfg.dictionary.objective),
        l1_schedule=build(cfg.l1_schedule),
        learning_rate_schedule=build(cfg.optimizer.learning_rate_schedule),
        learning_rate=cfg.optimizer.learning_rate,
    )
    learner.check(length)
    return learner


def train(learners: list[Learner], planted: Planted, length: Length, *, seed: int) -> None:
    """All of them on the same batches."""
    streams = list(dict.fromkeys(stream for learner in learners for stream in learner.dictionary.streams))
    for learner in learners:
        learner.dictionary.fit(take(PlantedRows(planted, learner.dictionary.streams, seed=seed + 1), 20_000))
    module = DictionaryTraining(learners, length=length, log_every=100)
    source = PlantedRows(planted, streams, seed=seed + 2)
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


def measured(learner: Learner, planted: Planted, *, seed: int):
    source = PlantedRows(planted, learner.dictionary.streams, seed=seed + 3)
    dictionary = learner.dictionary.eval().requires_grad_(False)
    return score(dictionary, planted, [next(source) for _ in range(10)])


def line(option: str, scores: list) -> str:
    def mean(values: list) -> str:
        values = [v for v in values if v is not None]
        return f"{sum(values) / len(values):.2f}" if values else "–"

    def span(values: list[int]) -> str:
        return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"

    cells = [
        option,
        *(mean([getattr(s, name) for s in scores]) for name in ("explained_variance", "l0", "dead", "mean_max_cosine")),
    ]
    for kind in ("by_norm", "scaled"):
        found = [getattr(s, kind) for s in scores]
        if found[0] is None:
            cells += ["–"] * 4
        else:
            cells += [span([c.called for c in found]), span([c.false for c in found])]
            cells += [mean([c.precision for c in found]), mean([c.recall for c in found])]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--latents", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dictionaries", nargs="*", default=options())
    parser.add_argument("--overrides", nargs="*", default=[], help="settings of train.py for all of them")
    asked = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    length = Length(asked.tokens // BATCH, BATCH)
    scores: dict[str, list] = {option: [] for option in asked.dictionaries}
    for seed in range(asked.seeds):
        planted = Planted(seed=seed)
        settings = {"latents": asked.latents, "length": length, "seed": seed, "overrides": asked.overrides}
        learners = [learner_of(option, planted, **settings) for option in asked.dictionaries]
        train(learners, planted, length, seed=1000 * seed)
        for learner in learners:
            scores[learner.name].append(measured(learner, planted, seed=1000 * seed))
        print(f"seed {seed} done", file=sys.stderr)
    events = {kind: planted.kinds.count(kind) for kind in dict.fromkeys(planted.kinds)}
    print(
        f"{len(planted.kinds)} events ({', '.join(f'{n} {kind}' for kind, n in events.items())}), {float(planted.rates.sum()):.1f} a token,"
    )
    print(f"{asked.latents} latents, {asked.tokens:,} tokens, {asked.seeds} seeds.\n")
    head = (
        "explained variance,L0,dead,mean max cosine,called,false,precision,recall,called,false,precision,recall".split(
            ","
        )
    )
    print(f"| | {' | '.join(head)} |\n|{'---|' * (len(head) + 1)}")
    for option in asked.dictionaries:
        print(line(option, scores[option]))


if __name__ == "__main__":
    main()
