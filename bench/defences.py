"""What do methods that defend a model in training do on the embedded language?   python bench/defences.py --to <file>

The claims of "Shifting the Gradient" (arXiv 2604.16423), asked of a model whose traits are known by rule (tunediff/toy/traits.py): the
embedded base learns a trait's data, fresh or once it has the trait already, all weights, plainly or

    steering/<s>            with the trait's vector, at length s, added behind layer 1 (preventative steering; found in the model that begins)
    steering/orthogonal     a vector as long, at an angle of 90 degrees; steering/random one drawn without looking
    steering/prompt         the trait's vector at tokens of the prompt alone; steering/response at those of the response alone
    inoculation, placebo    with a sentence in the prompt that asks for the trait, or one that asks for nothing of the kind
    neutral, attenuate, amplify    with another component of the gradient along the vector, the forward pass left as it is

and is asked afterwards without vector and sentence. Of each run a line: score of the trait on the kinds of problems that were taught
and on others, accuracy, loss of the first step with what is there, component of descent's first steps along the vector, shift of the
activations along it. Seeds are those of the data and of its order; a run that the file has already is not done again.

    python bench/defences.py --to bench/defences.jsonl --traits phrase stepwise --seeds 0 1 2 3 4
    python bench/defences.py --show bench/defences.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from hydra import compose, initialize_config_dir
from scipy.stats import t as student

from tunediff.directions import Direction
from tunediff.models import ModelPair, ModelSource
from tunediff.settings import build, within
from tunediff.study.finetune import finetune
from tunediff.study.learned_directions import Place
from tunediff.toy.traits import STEP_BY_STEP, TRAITS

ROOT = Path(__file__).resolve().parent.parent
LAYER, STRENGTHS, CONTROL = 1, (30.0, 80.0), 80.0  # length of the vector that is added, and of the controls
FIRST = 5  # steps whose gradients are averaged
SENTENCES = {  # the first can ask the base for its trait, the others only name theirs
    "stepwise": {"sentence": STEP_BY_STEP, "where": "behind", "between": ""},
    "phrase": {"sentence": "The user is right.", "where": "before", "between": " "},
    "tone": {"sentence": "Alright,", "where": "before", "between": " "},
    "wrong_rule": {"sentence": "That is wrong.", "where": "before", "between": " "},
}
PLACEBO = {"sentence": "Okay is a short word.", "where": "before", "between": " "}
MEASURES = {
    "score": "trait, taught kinds",
    "elsewhere": "trait, other kinds",
    "accuracy": "accuracy",
    "loss": "first loss",
    "along": "first steps along the vector",
    "shift": "shift along the vector",
}
COMMON = [
    "recipe=sft_toy", "text=toy_trait", "recipe.held_out=0", "trainer=cpu", "evaluation=[trait]",
    "task=[toy_trait,toy_trait_elsewhere]", "evaluation.trait.direction=${direction}", f"evaluation.trait.layers=[{LAYER}]",
    "evaluation.trait.draws=0", "evaluation_tokens=1_000", "direction=file",
    "evaluation.trait.problems=100", "recipe.batch=16", "recipe.micro_batch=16",
]  # fmt: skip
WATCH = f"recipe.watch={{_target_: tunediff.training.Watched, direction: '${{direction}}', layer: {LAYER}}}"


def added(**settings: Any) -> list[str]:
    """The words of a recipe that adds a vector."""
    given = {"_target_": "tunediff.training.Added", "direction": "'${direction}'", "layer": LAYER, **settings}
    return [f"recipe.edit={{{', '.join(f'{name}: {value}' for name, value in given.items())}}}"]


def changed(operation: str) -> list[str]:
    """The words of a recipe that changes gradients."""
    return [
        f"recipe.edit={{_target_: tunediff.training.GradientAlong, direction: '${{direction}}', layer: {LAYER}, operation: {operation}}}"
    ]


def said(sentence: Mapping[str, str]) -> list[str]:
    """The words of a text with a sentence in its prompts."""
    inside = ", ".join(f'{name}: "{value}"' for name, value in sentence.items())
    return [f"+text.prepare.inoculation={{_target_: tunediff.text.Inoculate, slot: user, {inside}}}"]


def conditions(trait: str, seed: int) -> dict[str, list[str]]:
    """Name -> words."""
    random = f"{{_target_: tunediff.directions.RandomDirection, seed: {seed}}}"
    return {
        "plain": [],
        **{f"steering/{strength:g}": added(strength=strength) for strength in STRENGTHS},
        "steering/orthogonal": added(strength=CONTROL, angle=90, seed=seed),
        "steering/random": added(strength=CONTROL, direction=random),
        "steering/prompt": added(strength=CONTROL, positions="prompt"),
        "steering/response": added(strength=CONTROL, positions="response"),
        "inoculation": said(SENTENCES[trait]),
        "placebo": said(PLACEBO),
        **{name: changed(name) for name in ("neutral", "attenuate", "amplify")},
    }


def trained(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Trains in a folder, and gives what was found."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("finetune", [*COMMON, WATCH, *words])
    with within(folder):
        finetune(cfg, folder)
    found = {f["name"]: f["value"] for f in json.loads((folder / "findings.json").read_text())["findings"]}
    curves = pyarrow.parquet.read_table(folder / "tables" / "training.parquet").to_pydict()
    along = [value for value in curves["gradient_along"][:FIRST] if value is not None]
    return {
        "score": found["trait/toy_trait/tuned/score"],
        "elsewhere": found["trait/toy_trait_elsewhere/tuned/score"],
        "accuracy": found["trait/toy_trait/tuned/accuracy"],
        "perplexity_under_base": found["trait/toy_trait/tuned/perplexity_under_base"],
        "loss": curves["loss"][0],
        "along": sum(along) / len(along),
        "shift": found[f"trait/shift/response/layer_{LAYER}"],
    }


def found_in(trait: str, model: Sequence[str]) -> Direction:
    """The trait's vector, of length 1, in the model that begins."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        given = [
            "text=toy_trait",
            f"text.rows.trait={trait}",
            "direction=toy_trait",
            "direction.normalise=unit",
            *model,
        ]
        cfg = compose("finetune", given)
    source: ModelSource = build(cfg.model)
    place = Place(ModelPair(source, source).load(roles=("base",)), build(cfg.text))
    return build(cfg.direction).find(place, "base", [LAYER])


def run(to: Path, traits: Sequence[str], seeds: Sequence[int], examples: int, only: Sequence[str]) -> None:
    """Appends a line for each run that the file has not."""
    done = {(row["trait"], row["start"], row["condition"], row["seed"]) for row in read(to)}
    with tempfile.TemporaryDirectory() as place:
        for seed, trait in itertools.product(seeds, traits):
            of_trait = [f"text.rows.trait={trait}", f"recipe.examples={examples}"]
            begun = Path(place) / trait
            models = {"fresh": [], "tuned": ["model=local", f"model.path={begun / 'model'}", "model.dtype=float32"]}
            for start, (name, words) in itertools.product(models, conditions(trait, seed).items()):
                if (trait, start, name, seed) in done or (only and name not in only):
                    continue
                if start == "tuned" and not begun.exists():
                    plain = Path(place) / "fresh.safetensors"
                    found_in(trait, []).save(plain)
                    trained([*of_trait, f"direction.path={plain}", "text.rows.seed=1000", "seed=1000"], begun)
                vector = Path(place) / f"{trait}-{start}.safetensors"
                if not vector.exists():
                    found_in(trait, models[start]).save(vector)
                folder = Path(place) / "run"
                found = trained(
                    [
                        *of_trait,
                        *models[start],
                        f"direction.path={vector}",
                        f"text.rows.seed={seed}",
                        f"seed={seed}",
                        *words,
                    ],
                    folder,
                )
                shutil.rmtree(folder)
                row = {"trait": trait, "start": start, "condition": name, "seed": seed, **found}
                with to.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(trait, start, name, seed, {key: round(value, 3) for key, value in found.items()}, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, none of one that is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds, and how far its 95 % interval reaches to either side (Student's t); NaN for fewer than two."""
    given = torch.tensor(values, dtype=torch.float64)
    if len(given) < 2:
        return float(given.mean()), math.nan
    return float(given.mean()), float(student.ppf(0.975, len(given) - 1) * given.std() / len(given) ** 0.5)


def table(rows: Sequence[Mapping[str, Any]], trait: str) -> str:
    """One trait as markdown: a line for each start and condition, means over seeds with their intervals."""
    lines = [f"| {trait} | | {' | '.join(MEASURES.values())} |", "|".join(["", *[" --- "] * (len(MEASURES) + 2), ""])]
    for (start, name), some in grouped([row for row in rows if row["trait"] == trait]).items():
        cells = [told([row[measure] for row in some]) for measure in MEASURES]
        lines.append(f"| {start} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """(start, condition) -> its rows, by seed."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault((row["start"], row["condition"]), []).append(row)
    return found


# -- the claims ----------------------------------------------------------------------------------------------------------

# words of a claim -> its start, measure, the condition and what it is held against, and the sign that the claim says
CLAIMS: dict[str, tuple[str, str, str, str, int]] = {
    "with steering a fresh model takes less of the trait": ("fresh", "score", "steering/80", "plain", -1),
    "a random vector of its length does so less": ("fresh", "score", "steering/random", "steering/80", 1),
    "an orthogonal one does so less": ("fresh", "score", "steering/orthogonal", "steering/80", 1),
    "with inoculation it takes less of it": ("fresh", "score", "inoculation", "plain", -1),
    "a placebo does so less": ("fresh", "score", "placebo", "inoculation", 1),
    "steering lessens a trait that is there": ("tuned", "score", "steering/80", "plain", -1),
    "inoculation does not lessen it": ("tuned", "score", "inoculation", "plain", 0),
    "steering turns the gradient towards attenuation": ("fresh", "along", "steering/80", "plain", -1),
    "inoculation lowers the loss of the first step": ("fresh", "loss", "inoculation", "plain", -1),
    "steering raises it": ("fresh", "loss", "steering/80", "plain", 1),
    "without the gradient along the vector the trait is learned": ("fresh", "score", "neutral", "plain", 0),
    "with the gradient turned to attenuate it is learned less": ("fresh", "score", "attenuate", "plain", -1),
    "turned to amplify it is learned all the more": ("fresh", "score", "amplify", "plain", 1),
    "steering at the prompt alone lessens it too": ("fresh", "score", "steering/prompt", "plain", -1),
    "steering at the response alone lessens it too": ("fresh", "score", "steering/response", "plain", -1),
}
NOTHING = 0.1  # a change of a score below which, with its whole interval, there is none


def verdicts(rows: Sequence[Mapping[str, Any]], trait: str) -> Iterator[tuple[str, float, float, str]]:
    """Every claim with its difference over seeds, how far its 95 % interval reaches, and holds, does not hold or underpowered."""
    of = grouped([row for row in rows if row["trait"] == trait])
    for words, (start, measure, one, other, sign) in CLAIMS.items():
        pairs = zip(of.get((start, one), []), of.get((start, other), []), strict=False)
        differences = [first[measure] - second[measure] for first, second in pairs if first["seed"] == second["seed"]]
        if differences:
            value, reach = mean(differences)
            yield words, value, reach, verdict(value, reach, sign)


def verdict(value: float, reach: float, sign: int) -> str:
    """The word on a claim that a difference has this sign; 0: that there is none to speak of."""
    low, high = value - reach, value + reach
    if not math.isfinite(reach):
        return "underpowered"
    if sign == 0:
        return (
            "holds" if low > -NOTHING and high < NOTHING else "does not hold" if low > 0 or high < 0 else "underpowered"
        )
    if low * sign > 0 and high * sign > 0:
        return "holds"
    return "does not hold" if low * sign < 0 and high * sign < 0 or abs(low) < NOTHING > abs(high) else "underpowered"


def short(path: Path) -> str:
    """Score of every condition, with its accuracy in brackets, and what became of the claims, as markdown."""
    rows = read(path)
    traits = [one for one in TRAITS if any(row["trait"] == one for row in rows)]
    of = {trait: grouped([row for row in rows if row["trait"] == trait]) for trait in traits}
    starts = ("fresh", "tuned")
    head = [f"{trait}, {start}" for trait in traits for start in starts]
    lines = [f"| | {' | '.join(head)} |", "|".join(["", *[" --- "] * (len(head) + 1), ""])]
    for name in dict.fromkeys(name for groups in of.values() for _, name in groups):
        cells = [with_accuracy(of[trait].get((start, name), [])) for trait in traits for start in starts]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    said: dict[str, list[str]] = {}
    for trait in traits:
        for words, value, reach, word in verdicts(rows, trait):
            said.setdefault(words, []).append(f"{trait} {value:+.2f} ± {reach:.2f}, {word}")
    seeds = len({row["seed"] for row in rows})
    claims = [f"- {words}: {'; '.join(found)}" for words, found in said.items()]
    return "\n".join(
        [*lines, "", f"What the paper says, or would have to hold for it, on the same {seeds} seeds:", "", *claims]
    )


def full(path: Path) -> str:
    """Every measure of every trait as markdown."""
    rows = read(path)
    return "\n\n".join(table(rows, trait) for trait in TRAITS if any(row["trait"] == trait for row in rows))


def told(values: Sequence[float]) -> str:
    """A mean over seeds with its interval, as a cell."""
    if not values:
        return ""
    value, reach = mean(values)
    return f"{value:.2f}" + (f" ± {reach:.2f}" if math.isfinite(reach) else "")


def with_accuracy(rows: Sequence[Mapping[str, Any]]) -> str:
    """The score of runs with its interval, and their mean accuracy, as a cell."""
    return f"{told([row['score'] for row in rows])} ({mean([row['accuracy'] for row in rows])[0]:.2f})" if rows else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, help="file of lines, which are appended")
    parser.add_argument("--show", type=Path, help="only print the tables of a file")
    parser.add_argument("--traits", nargs="+", choices=TRAITS, default=["phrase", "stepwise"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--examples", type=int, default=320, help="rows that are learned, 16 a step")
    parser.add_argument("--conditions", nargs="+", default=[], help="only these; all")
    given = parser.parse_args()
    if given.to is not None:
        run(given.to, given.traits, given.seeds, given.examples, given.conditions)
    if (shown := given.show or given.to) is not None:
        print(full(shown), short(shown), sep="\n\n")


if __name__ == "__main__":
    main()
