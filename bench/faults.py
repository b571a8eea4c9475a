"""All campaigns of what goes wrong, one after another: python bench/faults.py [--share .1] [names]

Each is a file of bench/campaigns, which runs alone as well. `--share` of their counts is for a look; the counts in
bench/results.md are whole. `slurm` is run where it is named, behind `bash slurm/single_host.sh install`. Ends with status 1
where one case was bad: a traceback, a hang, a silent difference, work lost, code run.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from campaigns.told import told

COUNTS = {"configs": 300, "overrides": 5000, "strangers": 2000, "rows": 5000, "rotten": 400, "kills": 100, "slurm": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*COUNTS, []], default=[])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    bad = 0
    for name in asked.names or [name for name in COUNTS if name != "slurm"]:  # which wants daemons of its own
        count = max(1, round(COUNTS[name] * asked.share))
        print(f"\n{name}, {count:,} cases, seed {asked.seed}\n", flush=True)
        bad += told(importlib.import_module(f"campaigns.{name}").cases(count, asked.seed))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
