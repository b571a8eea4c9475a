"""The numbers of README.md and bench/results.md, from what runs have found.   make results

Every line below is run as a reader would type it, on a folder build/results/<name>; one that was done there is not run again. What the pages say of it goes into bench/findings.json, and every block between

    <!-- numbers: <name> -->     and     <!-- end -->

is written from that file alone. `python bench/publish.py --write` only does that, without a run; tests/test_publish.py holds
the pages against it. Numbers of latents are not published: they differ between machines.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from blocks import BLOCKS, DEFENCES, OPTIONS, PLANTED, RUNS, Findings

ROOT = Path(__file__).resolve().parent.parent
PAGES, KEPT = ("README.md", "bench/results.md"), ROOT / "bench" / "findings.json"
LORA = "model_pair=toy_lora dictionary=lora_sae optimizer=adam_warmup_short"
# run one after another; {runs} is build/results
LINES = [
    "train.py hydra.run.dir={runs}/default",
    "evaluate.py run={runs}/default evaluation=[ablation,patching,kl_patching]",
    "evaluate.py run={runs}/default evaluation=steering_sweep evaluation.steering_sweep.behind=[response]",
    *(
        f"train.py dictionary={option} budget.companions=[] evaluation=[fidelity,geometry,latent_scaling] "
        f"hydra.run.dir={{runs}}/option/{option}"
        for option in OPTIONS
    ),
    "train.py experiment=choose_layer hydra.run.dir={runs}/layers",
    "train.py experiment=toy_backtracking hydra.run.dir={runs}/backtracking",
    "train.py dictionary=transcoder_adapter hydra.run.dir={runs}/adapter",
    "evaluate.py run={runs}/adapter evaluation=adapter_recovery evaluation.adapter_recovery.problems=500",
    "evaluate.py run={runs}/adapter evaluation=[attribution_graphs,latent_sets] evaluation.latent_sets.problems=300 "
    "\"evaluation.latent_sets.latents='top(50, influence)'\"",
    f"train.py {LORA} hydra.run.dir={{runs}}/lora",
    "evaluate.py run={runs}/lora evaluation=[recovery,lora_ablation] task=[toy,toy_step_by_step]",
    "evaluate.py run={runs}/lora evaluation=[polarity_examples,unit_comparison]",
    f"train.py {LORA} dictionary.sparsity.k=4 evaluation=fidelity hydra.run.dir={{runs}}/lora_k4",
    "evaluate.py run={runs}/lora_k4 evaluation=unit_comparison",
    "bench/nulls.py labels {runs}/default --first 1000 --tracks 100 --shuffles 100 --json {runs}/labels.json",
    "train.py -m evaluation=[latent_scaling] budget.tokens=300_000 dictionary.seed=0,1,2,3,4 "
    "budget.companions=[equal,noise,permuted,planted] hydra.sweep.dir={runs}/nulls",
    "bench/nulls.py exclusives {runs}/nulls/[0-9a-f]*/ --json {runs}/exclusives.json",
]
PLANTED_LINES = [
    "--tokens 250_000 1_000_000 4_000_000",
    "--tokens 16_000_000 --options batchtopk_crosscoder l1_crosscoder",
    "--equal",
    "--options l1_crosscoder --search start AuxK",
    "--options delta_crosscoder --search lambda",
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
        for words in PLANTED_LINES:
            subprocess.run(
                [sys.executable, "bench/planted.py", "--to", str(PLANTED), *words.split()], cwd=ROOT, check=True
            )
        subprocess.run([sys.executable, "bench/defences.py", "--to", str(DEFENCES)], cwd=ROOT, check=True)
        done = (RUNS / "done.txt").read_text().splitlines() if (RUNS / "done.txt").exists() else []
        for line in LINES:
            if line not in done:
                subprocess.run(f"{sys.executable} {line.format(runs=RUNS)}", shell=True, cwd=ROOT, check=True)
                with (RUNS / "done.txt").open("a") as file:
                    file.write(f"{line}\n")
        of = Findings()
        for page in PAGES:
            written((ROOT / page).read_text(), of)
        KEPT.write_text(json.dumps(of.asked(), indent=0) + "\n")
    write(Findings(json.loads(KEPT.read_text())))


if __name__ == "__main__":
    main()
