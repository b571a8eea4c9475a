"""What every default evaluation costs beside the training.   python bench/evaluations.py [overrides of train.py]

Trains the study by the command without an evaluation, then runs each of its evaluations on the result, in the order of
the config: the first that reads activations pays for both models, the others find them in memory. Prints held-out tokens
a second of each, and all of them together against the seconds of training (the start of Python left out of both).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_dir

import tunediff
from tunediff.settings import build

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, ROOT / "train.py", f"hydra.run.dir={run}", "evaluation=none", *sys.argv[1:]]
        begun = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        whole = time.monotonic() - begun
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            cfg = compose("train", overrides=sys.argv[1:])
        began = time.monotonic()
        trained = tunediff.load(run).trained()
        loading = time.monotonic() - began
        curve = json.loads((run / "state.json").read_text())
        training = whole - loading
        print(f"training {training:.1f} s, with the start of Python ({curve['steps']} steps)\n")
        print("| evaluation | seconds | held-out tokens a second |\n|---|---|---|")
        total = 0.0
        for name, node in cfg.evaluation.items():
            begun = time.monotonic()
            list(build(node).run(trained))
            seconds = time.monotonic() - begun
            total += seconds
            tokens = sum(len(batch.token) for batch in trained.held_out)
            print(f"| {name} | {seconds:.2f} | {tokens / seconds:,.0f} |", flush=True)
        print(f"\nall evaluations {total:.1f} s, {total / training:.2f} of the training")


if __name__ == "__main__":
    main()
