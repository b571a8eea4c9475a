"""Signals at random moments of every kind of run, each of which is then started again by the same line.

    python bench/campaigns/kills.py [--count 100] [--seed 0]

Each kind runs once undisturbed. A case ends another run of it at a moment drawn between its start and its end, by SIGKILL,
SIGTERM, Ctrl-C, two of them, or SIGUSR2; of a sweep and of two processes the launcher alone is told. What it leaves once the
same line has run again is compared with the undisturbed run's: weights, tables and findings, to the bit.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet
import submitit.core.submission  # noqa: F401  # what a command imports is here before it is forked
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tunediff.study.finetune
import tunediff.sweep.launch  # noqa: F401
from campaigns.told import main
from tunediff import folders, randomness

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 180  # seconds that a run may take to end
SIGNALS = {
    "SIGKILL": [signal.SIGKILL],
    "SIGTERM": [signal.SIGTERM],
    "SIGINT": [signal.SIGINT],
    "SIGINT twice": [signal.SIGINT] * 2,
    "SIGUSR2": [signal.SIGUSR2],
}

SMALL = "scale=smoke trainer=cpu budget.evaluation_tokens=1024 text.window=32 text.tokens_per_batch=2048".split()
SMALL += "budget.buffer=2048 budget.fit_tokens=512 optimizer.batch=256 checkpoint_every=0.3".split()
STUDY = ["train.py", *SMALL, "evaluation=[geometry]", "budget.tokens=16384"]
TUNED = "finetune.py recipe.examples=96 recipe.held_out=8 trainer=cpu checkpoint_every=0.2".split()
ADAPTERS = [
    *STUDY[:6],
    "checkpoint_every=0.3",
    "dictionary=transcoder_adapter",
    "dictionary.latents=32",
    "evaluation=none",
]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "checkpoint_every=0.1"]


class Kind(NamedTuple):
    """A line, with the word that names its folder; `prepared` runs of it begin with a copy of a finished study."""

    words: list[str]
    folder: str = "hydra.run.dir"
    prepared: bool = False


KINDS = {
    "live": Kind([*STUDY, "logger=csv"]),
    "stored": Kind([*STUDY, "activations=stored"]),
    "packed": Kind([STUDY[0], "-m", *STUDY[1:], "layer=1,2", "evaluation=none"], folder="hydra.sweep.dir"),
    "evaluation": Kind(["evaluate.py", "evaluation=[fidelity,geometry,examples]", "trainer=cpu"], "run", prepared=True),
    "generation": Kind(
        ["evaluate.py", "evaluation=[benchmark]", "evaluation.benchmark.problems=24", "trainer=cpu"],
        "run",
        prepared=True,
    ),
    "fine-tuning": Kind(TUNED),
    "low-rank": Kind([*TUNED, "recipe=lora_rank1_toy"]),
    "adapters": Kind(ADAPTERS),
    "two processes": Kind([word for word in (*STUDY, *TWO) if word != "trainer=cpu"]),
}


# -- runs ------------------------------------------------------------------------------------------------------------


def begin(kind: Kind, folder: Path, log: Path) -> int:
    """The process of the line for this folder, forked from this one, which has imported everything; what it says is added to
    the log."""
    words = [*kind.words, f"{kind.folder}={folder}"]
    if "activations=stored" in words:
        words.append(f"activations.folder={folder.parent / 'rows'}")
    if process := os.fork():
        return process
    status = 1
    try:
        os.setsid()
        os.chdir(ROOT)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status % 256)


def ended(process: int, seconds: float) -> int | None:
    """Exit status of a process that ends within so many seconds; else None, and it is killed."""
    if (status := waited(process, seconds)) is not None:
        return status
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def waited(process: int, seconds: float) -> int | None:
    """Exit status of a process that ends within so many seconds; None for one that goes on."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def is_free(folder: Path) -> bool:
    """True once no process that the launcher left behind writes there any more."""
    begun, places = time.monotonic(), {path.parent for path in folder.rglob("lock")}
    while any(map(folders.is_held, places)):
        if time.monotonic() - begun > PATIENCE:
            return False
        time.sleep(0.05)
    return True


def left_in(folder: Path) -> dict[str, bytes | str]:
    """What the runs of a folder came to, by the file's name: weights as they are, tables and findings by their values."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".parquet":
            found[name] = json.dumps(pyarrow.parquet.read_table(path).to_pydict(), default=str)
        elif path.name == "findings.json":
            content = json.loads(path.read_text())
            found[name] = json.dumps([content["findings"], content["notes"]])
        elif path.name == "metrics.csv":
            found[name] = path.read_text()
        elif path.name == "state.json":
            found[name] = json.loads(path.read_text())["state"]
    return found


# -- cases -----------------------------------------------------------------------------------------------------------


class Campaign:
    """Undisturbed runs of every kind, each made when it is first asked for, and cases that are held against them."""

    def __init__(self, place: Path):
        self.place = place

    @functools.cached_property
    def study(self) -> Path:
        """A finished study, to be measured again."""
        folder = self.place / "study" / "run"
        folder.parent.mkdir()
        assert ended(begin(Kind([*STUDY, "evaluation=none"]), folder, folder.parent / "log"), PATIENCE) == 0
        return folder

    def prepared(self, name: str, where: str) -> tuple[Path, Path]:
        """The folder that a run begins with, and its log."""
        folder = self.place / where / "run"
        folder.parent.mkdir()
        if KINDS[name].prepared:
            shutil.copytree(self.study, folder)
        return folder, folder.parent / "log"

    @functools.cache  # noqa: B019  # as long as the campaign
    def undisturbed(self, name: str) -> tuple[dict[str, bytes | str], float]:
        """What the run of a kind comes to, and how many seconds it takes."""
        folder, log = self.prepared(name, f"{name} undisturbed")
        begun = time.monotonic()
        status = ended(begin(KINDS[name], folder, log), PATIENCE)
        assert status == 0, f"{name}: {log.read_text()[-2000:]}"
        return left_in(folder), time.monotonic() - begun

    def case(self, number: int, name: str, how: str, moment: float) -> dict:
        """One run of a kind that is told to end at a share of its time."""
        expected, seconds = self.undisturbed(name)
        folder, log = self.prepared(name, f"case {number}")
        did = {"done": f"{name}: {how} at {moment:.2f} of its time", "sentence": ""}
        process = begin(KINDS[name], folder, log)
        status = ended_by(process, SIGNALS[how], moment * seconds)
        if status is None or not is_free(folder):
            return {**did, "outcome": "hang", "sentence": "it did not end"}
        did["done"] += f", status {status}, state {','.join(sorted(states_in(folder)))}"
        status = ended(begin(KINDS[name], folder, log), PATIENCE)
        said = log.read_text(errors="replace")
        if status is None:
            return {**did, "outcome": "hang", "sentence": "its continuation did not end"}
        traces = re.findall(r"^Traceback \(most recent call last\):\n(?:.*\n)*?(\S.*)$", said, re.MULTILINE)
        if traces := [last for last in traces if "SignalException" not in last]:  # torchrun's own way to end
            return {**did, "outcome": "traceback", "sentence": traces[-1]}
        if status:
            return {**did, "outcome": "lost", "sentence": said.strip().splitlines()[-1]}
        now = left_in(folder)
        differ = [key for key in sorted(expected.keys() | now.keys()) if expected.get(key) != now.get(key)]
        differ += [str(path.relative_to(folder)) for path in folder.rglob("*.partial")]
        if not differ:
            shutil.rmtree(folder.parent)
        return {**did, "outcome": "silent" if differ else "equal", "sentence": ", ".join(differ)}


def ended_by(process: int, numbers: list[int], seconds: float) -> int | None:
    """Exit status of a process that is given signals after so many seconds; None where it does not end."""
    if (status := waited(process, seconds)) is not None:
        return status
    for number in numbers:
        os.kill(process, number)
        time.sleep(0.05 * (len(numbers) > 1))
    return ended(process, PATIENCE)


def states_in(folder: Path) -> set[str]:
    return {json.loads(path.read_text()).get("state", "") for path in folder.rglob("state.json")}


def cases(count: int, seed: int) -> Iterator[dict]:
    """One dictionary a case. The kinds take turns, and signals and moments are drawn."""
    draw = randomness.chance(seed, "campaign of kills")
    gc.freeze()
    with tempfile.TemporaryDirectory() as place:
        campaign = Campaign(Path(place))
        for number in range(count):
            name = list(KINDS)[number % len(KINDS)]
            how, moment = draw.choice(list(SIGNALS)), draw.random()
            yield campaign.case(number, name, how, moment)


if __name__ == "__main__":
    main(cases, __doc__ or "", count=100)
