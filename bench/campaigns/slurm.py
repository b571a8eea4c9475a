"""A sweep on a real Slurm, while its tasks are requeued and cancelled, nodes are drained and the launcher is killed.

    bash slurm/single_host.sh install
    python bench/campaigns/slurm.py [--count 64] [--seed 0]          eight at a time

The members differ in their learning rate, and each is a task of its own. Until all are finished something befalls one of them
every few seconds, and the launcher, once half of them are, is killed; whenever it has ended the same line is typed again. Then
every member is compared with that of the same sweep, run here undisturbed: weights, tables and findings, to the bit.
"""

from __future__ import annotations

import collections
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from campaigns.kills import ROOT, SMALL, left_in
from campaigns.told import main
from tunediff import folders, randomness

EVERY = 60.0  # seconds between two faults of one task, on average
FAULTS_A_MEMBER = 2  # after so many the sweep is left in peace
PATIENCE = 3600  # seconds until the sweep is given up
FAULTS = ("requeue", "scancel", "preempt", "drain")


class Cluster:
    """Slurm on this machine, in a folder of its own."""

    def __init__(self, place: Path, *, nodes: int, port: int = 19817):
        own = {
            "SLURM_LAB": str(place),
            "SLURM_LAB_NODES": str(nodes),
            "SLURM_LAB_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        self.environment = {**os.environ, **own, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        self.environment["SLURM_CONF"] = re.search(r"SLURM_CONF=(\S+)", self.script("up"))[1]
        self.nodes = [f"n{n + 1}" for n in range(nodes)]

    def script(self, verb: str) -> str:
        return self.call("bash", str(ROOT / "slurm" / "single_host.sh"), verb)

    def call(self, *words: str) -> str:
        """The output of a command; empty where it fails, as where a job has ended meanwhile."""
        return subprocess.run(words, env=self.environment, capture_output=True, text=True).stdout

    def running(self) -> list[str]:
        return self.call("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i").split()

    def befalls(self, what: str, draw: random.Random) -> bool:
        """One fault, to a task or a node; False where there is none to befall."""
        jobs = self.running()
        if not jobs:
            return False
        job = draw.choice(jobs)
        if what == "drain":  # its tasks go elsewhere, and it comes back a moment later
            node = draw.choice(self.nodes)
            self.call("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=campaign")
            for job in self.call("squeue", "--noheader", "--array", f"--nodelist={node}", "--format=%i").split():
                self.call("scontrol", "requeue", job)
            time.sleep(1)
            self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        else:
            orders = {
                "requeue": ("scontrol", "requeue"),
                "scancel": ("scancel",),
                "preempt": ("scancel", "--signal=USR2"),
            }
            self.call(*orders[what], job)
        return True


def line(folder: Path, count: int, *more: str) -> list[str]:
    rates = ",".join(f"{1e-3 + n * 1e-5:.5f}" for n in range(count))
    words = [*SMALL, "evaluation=[geometry]", "budget.tokens=16384", f"optimizer.learning_rate={rates}"]
    return [sys.executable, "train.py", "-m", *words, f"hydra.sweep.dir={folder}", *more]


def finished(sweep: Path) -> int:
    return sum(folders.state_of(path.parent).get("state") == "finished" for path in sweep.glob("*/state.json"))


def disturbed(
    cluster: Cluster, sweep: Path, count: int, at_a_time: int, draw: random.Random, log: Path
) -> collections.Counter:
    """Runs the sweep until every member is finished; returns how often each fault befell it. Raises TimeoutError."""
    own = ["gpus_per_node=0", "mem_gb=null", "cpus_per_task=1", "poll_s=0.5", f"parallel={at_a_time}"]
    words = ["launcher.pack=false", "hydra/launcher=slurm", *(f"hydra.launcher.{word}" for word in own)]
    done, begun, killed = collections.Counter(), time.monotonic(), False
    while finished(sweep) < count:
        done["the line typed"] += 1
        with open(log, "a") as said:
            launcher = subprocess.Popen(
                line(sweep, count, *words), cwd=ROOT, env=cluster.environment, stdout=said, stderr=said
            )
        while launcher.poll() is None:
            time.sleep(EVERY / at_a_time * draw.random() * 2)
            if time.monotonic() - begun > PATIENCE:
                launcher.kill()
                raise TimeoutError(f"{finished(sweep)} of {count} members are finished after {PATIENCE} s")
            if not killed and 2 * finished(sweep) >= count:
                launcher.send_signal(signal.SIGKILL)
                killed = True
                done["launcher killed"] += 1
            if sum(done[what] for what in FAULTS) < FAULTS_A_MEMBER * count:
                what = draw.choice(FAULTS)
                done[what] += cluster.befalls(what, draw)
        launcher.wait()
    return done


def cases(count: int, seed: int, at_a_time: int = 8) -> Iterator[dict]:
    """One dictionary a member, once the whole sweep has ended, and one for each thing that befell it."""
    draw = randomness.chance(seed, "campaign on Slurm")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        whole, sweep, log = place / "whole", place / "sweep", place / "log"
        subprocess.run(line(whole, count), cwd=ROOT, check=True, capture_output=True)
        cluster = Cluster(place / "cluster", nodes=-(-at_a_time // 4) + 1)
        try:
            done = disturbed(cluster, sweep, count, at_a_time, draw, log)
        except TimeoutError as error:
            yield {"done": "the sweep: ", "outcome": "hang", "sentence": str(error)}
            return
        finally:
            for job in cluster.running():
                cluster.call("scancel", job)
            cluster.script("down")
        for folder in sorted(path.parent for path in whole.glob("*/identity.json")):
            expected, now = left_in(folder), left_in(sweep / folder.name)
            differ = [key for key in sorted(expected.keys() | now.keys()) if expected.get(key) != now.get(key)]
            yield {
                "done": f"members: {folder.name}",
                "outcome": "silent" if differ else "equal",
                "sentence": ", ".join(differ),
            }
        if "Traceback" in (said := log.read_text()):
            yield {
                "done": "the launcher: ",
                "outcome": "traceback",
                "sentence": said[said.rindex("Traceback") :][-600:],
            }
        for what, times in sorted(done.items()):
            yield from [{"done": f"{what}: ", "outcome": "done", "sentence": ""}] * times


if __name__ == "__main__":
    main(cases, __doc__ or "", count=64)
