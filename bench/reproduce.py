"""Every published claim on the embedded pair: the lines of conf/experiment, run, judged, and told in RESULTS.md.   make reproduce

A file of conf/experiment begins with the lines that run it. Here those with scale=toy are run, two families at a time, below
experiments/<name>/<number of the line>; what is finished there is left as it is, unless the claims have changed since: then the
family is run anew, for what was measured under another claim does not count. `python compare.py experiments` is one page over all.

    python bench/reproduce.py                        runs and writes RESULTS.md
    python bench/reproduce.py --only latent_scaling  one family or several
    python bench/reproduce.py --write                only writes RESULTS.md, from what lies in experiments
    python bench/reproduce.py --smoke                instead the lines with scale=smoke, each once, on small random models of the real
                                                     depths with the tokenizers of real models (tests/stand_ins.py): does each
                                                     real experiment start, read its text, run its evaluations and write its page?
    python bench/reproduce.py --costs                a dry run of the lines of full size: hours, memory and disk, into RESULTS.md
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from tunediff import claims, folders
from tunediff.report import members_under

ROOT = Path(__file__).resolve().parent.parent
CONF, TO, PAGE = ROOT / "conf" / "experiment", ROOT / "experiments", ROOT / "RESULTS.md"
COSTS = ROOT / "bench" / "costs.json"
LINE = re.compile(r"#\s+(python (?:train|finetune|evaluate)\.py\s\S.*?)(?:\s{2,}(.*))?$")
EARLIER = "<earlier>"  # in a line: the folder of the one before


class Line(NamedTuple):
    """A command line of an experiment: its scale, the line as it stands there, and its words."""

    scale: str
    text: str
    words: list[str]

    @property
    def verb(self) -> str:
        return self.words[1]

    @property
    def sweeps(self) -> bool:
        return "-m" in self.words

    def placed(self, folder: Path, before: Path | None) -> list[str]:
        """The words with the folder that it runs in, and that of the line before it."""
        words = [word.replace(EARLIER, str(before)) for word in self.words[1:]]
        if self.verb == "evaluate.py":
            return words
        return [*words, f"hydra.sweep.dir={folder}" if self.sweeps else f"hydra.run.dir={folder / 'run'}"]


def lines_of(path: Path) -> list[Line]:
    """The lines in the header of an experiment. Of one without a word scale=... its remark may begin with the scale; the rest
    are of full size."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        if not text.startswith("#"):
            break
        if match := LINE.match(text):
            words, remark = shlex.split(match[1]), match[2] or ""
            named = next((word.partition("=")[2] for word in words if word.startswith("scale=")), None)
            scale = named or next((word for word in ("toy", "smoke") if remark.startswith(word)), "paper")
            found.append(Line(scale, match[1], words))
    return found


@functools.cache
def claimed(path: Path) -> dict[str, claims.Claim]:
    """The claims of an experiment's file, as Hydra reads it."""
    return claims.claims_in(OmegaConf.to_container(OmegaConf.load(path)).get("claims"))


def families(only: Sequence[str] = ()) -> dict[str, Path]:
    """Experiments with claims, by name."""
    found = {path.stem: path for path in sorted(CONF.glob("*.yaml")) if claimed(path)}
    if wrong := [name for name in only if name not in found]:
        sys.exit(f"{wrong[0]} has no claims; {', '.join(found)} have.")
    return {name: path for name, path in found.items() if not only or name in only}


# -- toy -------------------------------------------------------------------------------------------------------------


def runs_in(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.rglob("identity.json"))]


def refresh(name: str, path: Path, to: Path) -> None:
    """Removes what was measured under other claims."""
    now = {key: claim.digest for key, claim in claimed(path).items()}
    for run in runs_in(to / name):
        content = folders.read_json(run / "claims.json").get("claims", {})
        if {key: node["digest"] for key, node in content.items()} != now:
            print(f"{name}: its claims have changed, and it runs anew", flush=True)
            shutil.rmtree(to / name)
            return


def run_family(name: str, path: Path, to: Path) -> float:
    """Runs the toy lines of a family in their order; returns the seconds that it took."""
    refresh(name, path, to)
    began, before = time.monotonic(), None
    for n, line in enumerate((line for line in lines_of(path) if line.scale == "toy"), 1):
        folder = to / name / str(n)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *line.placed(folder, before)]
        with open(folder / "terminal.log", "a", encoding="utf-8") as log:
            done = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        if done.returncode:
            print(
                f"{name}: {line.text} ended with {done.returncode}, see {folder / 'terminal.log'}",
                flush=True,
            )
            break
        before = folder if line.sweeps else folder / "run"
    return time.monotonic() - began


def run_all(found: Mapping[str, Path], to: Path, at_once: int) -> None:
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(run_family, name, path, to): name for name, path in found.items()}
        for done in concurrent.futures.as_completed(running):
            name = running[done]
            counted = count([verdict.word for verdict in verdicts_of(to / name)])
            print(f"{name}: {done.result():.0f} s, {counted or 'nothing judged'}", flush=True)
    print(f"all: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def verdicts_of(folder: Path) -> list[claims.Verdict]:
    """The verdicts of a family: of each claim those that say most, for one line may not ask what another one asks."""
    by_name: dict[str, list[claims.Verdict]] = {}
    lines = [place for place in sorted(folder.glob("[0-9]*")) if runs_in(place)]
    for place in lines:
        try:
            members = members_under([place])
        except ValueError:  # fine-tunes that another line measures
            continue
        for verdict in claims.of_members(members):
            of = f"line {place.name}{f', {verdict.of}' if verdict.of else ''}" if len(lines) > 1 else verdict.of
            by_name.setdefault(verdict.name, []).append(dataclasses.replace(verdict, of=of))
    told = {name: [one for one in some if one.effect is not None] for name, some in by_name.items()}
    return [one for name, some in by_name.items() for one in (told[name] or some[:1])]


def count(words: Iterable[str]) -> str:
    words = list(words)
    return ", ".join(f"{words.count(word)} {word}" for word in claims.VERDICTS if word in words)


# -- RESULTS.md ------------------------------------------------------------------------------------------------------

HEAD = """\
# What was published, and what the embedded pair shows of it

Written by `make reproduce`: every claim of `conf/experiment`, run at toy scale on the embedded pair and judged by the rule of
`src/tunediff/claims`. A claim is written down before anything is measured. It is *reproduced* where the whole 95 % interval of
its effect lies where it says, *contradicted* where the whole interval lies elsewhere, *underpowered* where the interval reaches into
both, with the sample that would tell; *not applicable* where its models or its budget are others here, or its control fails. Numbers
published of real models are asked of those alone; what is asked here is their direction. No claim was changed to agree; the paragraphs below
a table explain verdicts, and are no part of a claim. Nothing is corrected for the number of claims: one whose effect lies at its bound comes out reproduced
by chance in 2.5 % of cases, and contradicted in as many. A claim about members of a sweep is judged by `python compare.py <its folder>`.
"""


def cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|") or "-"


def effect_of(verdict: claims.Verdict) -> str:
    row = verdict.row()
    if row["effect"] is None:
        return "-"
    said = f"{row['effect']:.3g}"
    return said if row["low"] is None else f"{said} ({row['low']:.3g} to {row['high']:.3g})"


def told(name: str, path: Path, verdicts: Sequence[claims.Verdict]) -> str:
    """The section of a family."""
    purpose = next(line for line in path.read_text().splitlines() if line.startswith("# Choose it"))[2:]
    lines = [f"## {name}", "", purpose, "", "```"]
    lines += [line.text for line in lines_of(path) if line.scale == "toy"]
    lines += [
        "```",
        "",
        "| claim | source | published | found here | asked | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    learnt = []
    for verdict in verdicts:
        claim = verdict.claim
        said = f"{claim.says}{f' ({verdict.of})' if verdict.of else ''}"
        source = claim.source if claim.trust == "text" else f"{claim.source}; {claim.trust.replace('_', ' ')}"
        controls = "".join(f"; control {control} {words.partition(' (')[0]}" for control, words in verdict.held.items())
        why = f": {verdict.why}" if verdict.word in (claims.NOT_APPLICABLE, claims.UNDERPOWERED) else ""
        cells = (
            said,
            source,
            claim.published,
            effect_of(verdict),
            claims.asked_in_words(claim),
            f"**{verdict.word}**{why}{controls}",
        )
        lines.append(f"| {' | '.join(map(cell, cells))} |")
        if paragraph := claim.learnt.get(verdict.word):
            learnt.append(
                f"*{verdict.name}{f' ({verdict.of})' if verdict.of else ''}, {verdict.word}.* {' '.join(paragraph.split())}"
            )
    asked = claimed(path)
    open_ones = [name for name in asked if name not in {verdict.name for verdict in verdicts}]
    for name in open_ones:
        cells = (
            asked[name].says,
            asked[name].source,
            asked[name].published,
            "-",
            claims.asked_in_words(asked[name]),
            "not measured yet",
        )
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    digest = " ".join(f"{verdict.name}:{verdict.claim.digest}" for verdict in {v.name: v for v in verdicts}.values())
    digest += "".join(f" {name}:{asked[name].digest}" for name in open_ones)
    return "\n".join(
        [*lines, "", *"\n\n".join(dict.fromkeys(learnt)).splitlines(), "", f"<!-- claims {digest} -->", ""]
    )


def counted(name: str, words: Sequence[str], missing: int) -> str:
    """A row of the overview."""
    cells = (name, len(words), *(words.count(word) for word in claims.VERDICTS), missing)
    return f"| {' | '.join(map(str, cells))} |"


def results(found: Mapping[str, Path], to: Path) -> str:
    """RESULTS.md."""
    judged = {name: verdicts_of(to / name) for name in found}
    overview = [
        "| experiment | verdicts | " + " | ".join((*claims.VERDICTS, "not measured yet")) + " |",
        "| --- |" + " ---: |" * 6,
    ]
    words, missing = {}, {}
    for name, verdicts in judged.items():
        words[name] = [verdict.word for verdict in verdicts]
        missing[name] = len({*claimed(found[name])} - {verdict.name for verdict in verdicts})
        overview.append(counted(f"[{name}](#{name})", words[name], missing[name]))
    overview.append(counted("all", [word for some in words.values() for word in some], sum(missing.values())))
    sections = [told(name, path, judged[name]) for name, path in found.items()]
    return "\n".join([HEAD, *overview, "", costs_told(), *sections])


def costs_told() -> str:
    if not COSTS.exists():
        return ""
    rows = json.loads(COSTS.read_text())
    head = [
        "## At full size",
        "",
        "What a dry run expects on one H200 of the first member of each line of full size that trains or measures: memory of the device, disk, time. Members that read one stream share the passes of both models; answers to problems are counted as products alone, at most.",
        "",
    ]
    head += [
        "| line | members | memory | disk | training | evaluations |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    head += [f"| `{cell(row['line'])}` | {' | '.join(map(cell, row['cells']))} |" for row in rows]
    return "\n".join([*head, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=(), help="families, by the names of their files")
    parser.add_argument("--to", type=Path, default=TO, help="folder of the runs")
    parser.add_argument("--at-once", type=int, default=2, help="families at a time")
    parser.add_argument("--write", action="store_true", help="only write RESULTS.md")
    parser.add_argument("--smoke", action="store_true", help="the lines with scale=smoke, on stand-ins")
    parser.add_argument("--costs", action="store_true", help="a dry run of the lines of full size, on stand-ins")
    given = parser.parse_args()
    found = families(given.only)
    if given.smoke or given.costs:
        sys.path.insert(0, str(ROOT / "tests"))
        import at_full_size

        at_full_size.smoke(found, given.to) if given.smoke else COSTS.write_text(
            json.dumps(at_full_size.costs(found), indent=1)
        )
        return
    if not given.write:
        run_all(found, given.to, given.at_once)
    if not given.only:  # the others are not in every folder
        PAGE.write_text(results(found, given.to))


if __name__ == "__main__":
    main()
