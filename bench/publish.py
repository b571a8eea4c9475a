"""The numbers of README.md and bench/results.md, from what runs have found.   make results

Every study below is run by the line that a reader would type, into build/results/<name>; what is finished there is left as it
is. What the pages say of it goes into bench/findings.json, and every block between

    <!-- numbers: <name> -->     and     <!-- end -->

is written from that file alone. `python bench/publish.py --write` only does that, without a run; tests/test_publish.py holds
the pages against it. Numbers of latents are not published: they differ between machines.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import planted

ROOT = Path(__file__).resolve().parent.parent
PAGES, KEPT, RUNS = ("README.md", "bench/results.md"), ROOT / "bench" / "findings.json", ROOT / "build" / "results"
PLANTED = ROOT / "bench" / "planted.jsonl"
OPTIONS = [
    "batchtopk_crosscoder", "topk_crosscoder", "delta_crosscoder", "unmasked_delta_crosscoder", "dfc", "jumprelu_crosscoder", "l1_crosscoder",
    "l1_crosscoder_unsquared", "shared_crosscoder", "linear_crosscoder", "sae", "tied_sae", "difference_sae",
]  # fmt: skip
# name of a study -> the words behind `python train.py`
STUDIES = {"default": []} | {
    f"option/{option}": [
        f"dictionary={option}",
        "budget.companions=[]",
        "evaluation=[fidelity,geometry,latent_scaling]",
    ]
    for option in OPTIONS
}


class Findings:
    """Findings of the studies, from their folders or from what was kept of them. `used` are those that were asked for."""

    def __init__(self, kept: Mapping[str, Mapping[str, list]] | None = None):
        self.kept, self.used, self.read = kept, {}, {}

    def __call__(self, study: str, name: str) -> list:
        """Value, lower and upper bound of a finding; None three times where the study has it not."""
        if self.kept is not None:
            return self.kept[study][name]
        if study not in self.read:
            said = json.loads((RUNS / study / "findings.json").read_text())["findings"]
            self.read[study] = {f["name"]: [f["value"], f["low"], f["high"]] for f in said}
        found = [
            value if value is None or isinstance(value, int) else float(f"{value:.5g}")
            for value in self.read[study].get(name, [None] * 3)
        ]
        self.used.setdefault(study, {})[name] = found
        return found


def spoken(found: list, form: str = ".3f", times: float = 1.0) -> str:
    """A number with its interval, in words."""
    value, low, high = found
    if value is None:
        return "–"
    ends = "" if low is None or high is None else f" ({times * low:{form}} to {times * high:{form}})"
    return f"{times * value:{form}}{ends}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


# -- blocks: findings -> markdown ---------------------------------------------------------------------------------------


def fidelity(of: Findings) -> str:
    rows = []
    for word, name, form, times in (
        ("explained variance", "explained_variance", ".3f", 1),
        ("CE recovered", "ce_recovered", ".3f", 1),
        ("KL recovered", "kl_recovered", ".3f", 1),
        ("excess CE, %", "excess_ce", ".1f", 100),
    ):
        rows.append(
            [word, *(spoken(of("default", f"fidelity/{name}/{role}"), form, times) for role in ("base", "tuned"))]
        )
    return table(["`python train.py`, the default", "base", "tuned"], rows)


def kinds(of: Findings) -> str:
    count = {
        kind: of("default", f"geometry/count/{kind}")[0] for kind in ("shared", "base_only", "tuned_only", "other")
    }
    dead, l0 = (of("default", f"fidelity/{name}")[0] for name in ("dead_fraction", "l0/mean"))
    confirmed = {kind: of("default", f"latent_scaling/count/{kind}")[0] for kind in ("base_only", "tuned_only")}
    control = {
        name: sum(of("default", f"latent_scaling/control/{name}/{kind}")[0] for kind in ("base_only", "tuned_only"))
        for name in ("equal", "noise", "permuted")
    }
    return (
        f"L0 {l0:.1f}, dead fraction {dead:.0%}. Of the alive latents {count['shared']} are shared, {count['base_only']} base-only, "
        f"{count['tuned_only']} tuned-only, {count['other']} in between; latent scaling confirms {confirmed['base_only']} and "
        f"{confirmed['tuned_only']}. Of the same dictionary it confirms {control['equal']} on the base beside itself, {control['noise']} on the base\n"
        f"beside a copy with noise as large as the difference, and {control['permuted']} where the tuned model reads other tokens, so "
        f"that nothing is shared: {of('default', 'latent_scaling/power')[0]:.0%} of the latents there. A twin from another seed has "
        f"{spoken(of('default', 'twin/matched/all'), '.0f', 100)} % of the latents too."
    )


def options(of: Findings) -> str:
    rows = []
    for option in OPTIONS:
        found = {
            role: of(f"option/{option}", f"fidelity/explained_variance/{role}")[0]
            for role in ("base", "tuned", "difference")
        }
        cells = [f"{found[role]:.3f}" if found[role] is not None else "–" for role in ("base", "tuned")]
        if found["difference"] is not None:
            cells = [f"{found['difference']:.3f} of the difference", ""]
        dead, l0 = (of(f"option/{option}", f"fidelity/{name}")[0] for name in ("dead_fraction", "l0/mean"))
        counts = [of(f"option/{option}", f"geometry/count/{kind}")[0] for kind in ("base_only", "shared", "tuned_only")]
        sure = [of(f"option/{option}", f"latent_scaling/count/{kind}")[0] for kind in ("base_only", "tuned_only")]
        rows.append(
            [
                f"`{option}`",
                *cells,
                f"{l0:.1f}",
                f"{dead:.0%}",
                *("–" if n is None else str(n) for n in (*counts, *sure)),
            ]
        )
    head = ["", "explained variance base", "tuned", "L0", "dead", "base-only", "shared", "tuned-only"]
    return table([*head, "confirmed base-only", "tuned-only"], rows)


def planted_table(_: Findings) -> str:
    return planted.tables(planted.Kept(PLANTED))


def planted_short(_: Findings) -> str:
    return planted.short(planted.Kept(PLANTED))


BLOCKS: dict[str, Callable[[Findings], str]] = {
    "fidelity": fidelity,
    "kinds": kinds,
    "options": options,
    "planted": planted_short,
    "planted tables": planted_table,
}


def written(page: str, of: Findings) -> str:
    """A page with its blocks. Raises KeyError for a block that is none."""

    def block(match: re.Match) -> str:
        return f"<!-- numbers: {match[1]} -->\n{BLOCKS[match[1]](of)}\n<!-- end -->"

    return re.sub(r"<!-- numbers: ([\w ]+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def write(of: Findings) -> None:
    for name in PAGES:
        path = ROOT / name
        path.write_text(written(path.read_text(), of))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="only write the blocks, from bench/findings.json")
    if not parser.parse_args().write:
        subprocess.run([sys.executable, "bench/planted.py", "--to", str(PLANTED)], cwd=ROOT, check=True)
        for name, words in STUDIES.items():
            folder = RUNS / name
            subprocess.run([sys.executable, "train.py", *words, f"hydra.run.dir={folder}"], cwd=ROOT, check=True)
        of = Findings()
        for page in PAGES:
            written((ROOT / page).read_text(), of)
        KEPT.write_text(json.dumps(of.used, indent=0, sort_keys=True) + "\n")
    write(Findings(json.loads(KEPT.read_text())))


if __name__ == "__main__":
    main()
