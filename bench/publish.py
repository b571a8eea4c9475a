"""The numbers of README.md and bench/results.md, from what runs have found.   make results

Every line below is run as a reader would type it, on a folder build/results/<name>; one that was done there is not run again. What the pages say of it goes into bench/findings.json, and every block between

    <!-- numbers: <name> -->     and     <!-- end -->

is written from that file alone. `python bench/publish.py --write` only does that, without a run; tests/test_publish.py holds
the pages against it. Numbers of latents are not published: they differ between machines.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from blocks import BLOCKS, OPTIONS, PLANTED, RUNS, Findings

ROOT = Path(__file__).resolve().parent.parent
PAGES, KEPT = ("README.md", "bench/results.md"), ROOT / "bench" / "findings.json"
ADAPTED = ["model_pair=toy_lora", "dictionary=lora_sae", "optimizer=adam_warmup_short"]
# lines that are run one after another: script, name of the study, words
LINES: list[tuple[str, str, list[str]]] = [
    ("train.py", "default", []),
    ("evaluate.py", "default", ["evaluation=[benchmark,ablation,scaling,patching,kl_patching]"]),
    ("evaluate.py", "default", ["evaluation=steering_sweep"]),
    *(
        (
            "train.py",
            f"option/{option}",
            [f"dictionary={option}", "budget.companions=[]", "evaluation=[fidelity,geometry,latent_scaling]"],
        )
        for option in OPTIONS
    ),
    ("train.py", "layers", ["experiment=choose_layer"]),
    ("train.py", "adapter", ["dictionary=transcoder_adapter"]),
    ("evaluate.py", "adapter", ["evaluation=adapter_recovery", "evaluation.adapter_recovery.problems=500"]),
    (
        "evaluate.py",
        "adapter",
        [
            "evaluation=[attribution_graphs,latent_sets]",
            "evaluation.latent_sets.latents='top(50, influence)'",
            "evaluation.latent_sets.problems=300",
        ],
    ),
    ("train.py", "lora", ADAPTED),
    ("evaluate.py", "lora", ["evaluation=[recovery,lora_ablation]", "task=[toy,toy_step_by_step]"]),
    ("evaluate.py", "lora", ["evaluation=[polarity_examples,unit_comparison]"]),
    ("train.py", "lora_k4", [*ADAPTED, "dictionary.sparsity.k=4", "evaluation=fidelity"]),
    ("evaluate.py", "lora_k4", ["evaluation=unit_comparison"]),
]


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
        done = (RUNS / "done.txt").read_text().splitlines() if (RUNS / "done.txt").exists() else []
        for script, name, words in LINES:
            where = "hydra.run.dir" if script == "train.py" else "run"
            line = [script, *words, f"{where}='{RUNS / name}'"]
            if (said := shlex.join(line)) not in done:
                subprocess.run([sys.executable, *line], cwd=ROOT, check=True)
                with (RUNS / "done.txt").open("a") as file:
                    file.write(f"{said}\n")
        of = Findings()
        for page in PAGES:
            written((ROOT / page).read_text(), of)
        KEPT.write_text(json.dumps(of.used, indent=0) + "\n")
    write(Findings(json.loads(KEPT.read_text())))


if __name__ == "__main__":
    main()
