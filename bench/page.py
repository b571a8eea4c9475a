"""How long a large page takes to write and to open.   python bench/page.py [--latents 10000] [--examples 100000]

Makes a run folder of that size (31 tokens an example, places in a response, tokens written, neighbours), writes its page,
and opens it in a headless Chromium: seconds until the whole page is drawn, until a latent far down is open, and until a
first search has found something.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from tunediff import folders, randomness
from tunediff.evaluations.reading.segments import PLACES
from tunediff.report import write_report
from tunediff.shapes import Finding, Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from browser import Browser  # noqa: E402

TOKENS = 31


def make(folder: Path, latents: int, examples: int) -> None:
    chance = randomness.chance(0, "a page")
    words = [f" {''.join(chance.choices('abcdefghijklmnopqrstuvwxyz', k=chance.randint(2, 8)))}" for _ in range(20_000)]
    numbers, uniform = range(latents), chance.random
    relative = [uniform() for _ in numbers]
    kinds = [
        "base_only" if r < 0.1 else "tuned_only" if r > 0.9 else "shared" if 0.3 < r < 0.7 else "other"
        for r in relative
    ]
    columns = {
        "latent": list(numbers),
        "relative_decoder_norm": relative,
        "kind": kinds,
        "confirmed": [uniform() < 0.3 if kind.endswith("_only") else None for kind in kinds],
        "auroc/label": [uniform() for _ in numbers],
        "firing_rate": [10 ** (-4 * uniform()) for _ in numbers],
    }
    for name in ("nu_error", "nu_reconstruction", "decoder_cosine", "max_activation", "norm_base", "norm_tuned"):
        columns[name] = [uniform() for _ in numbers]
    tables = [
        Table("latents", columns),
        Table("segments", {"latent": list(numbers), **{f"{k}/{p}": [uniform() for _ in numbers] for k in ("rate", "mean") for p in PLACES}}),
        Table("neighbours", {"latent": [n for n in numbers for _ in range(5)], "rank": list(range(5)) * latents, "neighbour": [chance.randrange(latents) for _ in range(5 * latents)], "cosine": [uniform() for _ in range(5 * latents)]}),
    ]  # fmt: skip
    rows = 32 * latents
    written = {
        "latent": [n for n in numbers for _ in range(32)],
        "role": (["base"] * 16 + ["tuned"] * 16) * latents,
        "sign": ([1] * 8 + [-1] * 8) * 2 * latents,
    }
    tables.append(Table("logit_effect", {**written, "rank": list(range(8)) * 4 * latents, "token": chance.choices(words, k=rows), "effect": [uniform() for _ in range(rows)]}))  # fmt: skip
    each = examples // latents
    shown = {
        name: []
        for name in (
            "latent",
            "kind",
            "rank",
            "quantile",
            "document",
            "place",
            "position",
            "activation",
            "tokens",
            "activations",
            "segments",
        )
    }
    for n in range(each * latents):
        values = [round(5 * uniform(), 4) if uniform() < 0.2 else 0.0 for _ in range(TOKENS)]
        row = (
            n // each,
            "strongest",
            n % each,
            None,
            n,
            n % 500,
            20,
            values[20],
            chance.choices(words, k=TOKENS),
            values,
            ["thinking"] * 20 + ["answer"] * 11,
        )
        for column, value in zip(shown.values(), row, strict=True):
            column.append(value)
    tables.append(Table("examples", shown))
    folders.write_findings(folder, [*tables, Finding("fidelity/l0/mean", 60.0)], {"identity": "large", "study": {"model_pair": "tuned vs base", "dictionary": "made up", "latents": latents, "tokens": 1, "hookpoint": "resid_post", "layer": 12}})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        folder.mkdir()
        make(folder, asked.latents, asked.examples)
        begun = time.monotonic()
        page = write_report(folder)
        seconds = time.monotonic() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"written in {seconds:.1f} s, {page.stat().st_size / 1e6:.1f} MB (this process held up to {peak:.1f} GB)")
        browser = Browser(Path(place) / "profile")
        shown = browser.open(page)
        drawn = shown.run("return Number(document.body.dataset.drawn);")
        steps = {
            "a latent far down is open": f"location.hash = '#latent-{asked.latents - 3}'; await wait(() => !panel().hidden);",
            "a first search has found": "set('search latents', 'ab'); await wait(() => !document.querySelector('.count').textContent.startsWith('10,000 of'));",
            "another search": "const was = rows(); set('search latents', 'abc'); await wait(() => rows() !== was);",
            "sorted": "document.querySelector('#latents th button').click();",
        }
        print(f"drawn {drawn / 1000:.2f} s after the browser began to load it")
        for what, script in steps.items():
            taken = shown.run(f"const from = performance.now(); {script} return performance.now() - from;")
            print(f"{what}: {taken / 1000:.2f} s")
        print(json.dumps(shown.run("return document.querySelectorAll('*').length;")), "elements on the page")
        browser.close()


if __name__ == "__main__":
    main()
