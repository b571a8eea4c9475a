"""Files that rot: one of a run, a sweep, a checkpoint, stored activations or kept responses is spoilt, and then it is read.

    python bench/campaigns/rotten.py [--count 400] [--seed 0]

Two studies of the embedded pair in one sweep, and one that was stopped between two steps, are made once; each case spoils
one file of a copy and reads it as a user does. Refused in a sentence, repaired with a word in the log and equal are well;
a traceback, and what is read without a word though it differs from what was written, are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, open_dict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tunediff
from campaigns.told import main
from tunediff import randomness
from tunediff.activations.stored import StoredRows, store
from tunediff.evaluations.behaviour.solving import KeptResponses
from tunediff.folders import write_sealed
from tunediff.generation import Asked, Response
from tunediff.report import in_words, members_under
from tunediff.report.comparison import UNREADABLE
from tunediff.shapes import Refused, Rows, Stream
from tunediff.study.reevaluate import reevaluate
from tunediff.study.run import Run
from tunediff.study.train import study, train
from tunediff.study.work import work
from tunediff.training import Checkpoints

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = "scale=smoke trainer=cpu budget.evaluation_tokens=512 text.window=32 text.tokens_per_batch=2048".split()
SMALL += "budget.tokens=2048 budget.buffer=1024 budget.fit_tokens=512 budget.latents=32 optimizer.batch=256".split()
MEASURED = "evaluation=[geometry,examples,latent_cache]"
CHANGING = {"run.log", "evaluate.log", "lock", "owner.json"}
WIDTH = 8


class Stopped(BaseException):
    """A process that goes between two steps."""


def composed(name: str, *words: str) -> DictConfig:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = hydra.compose(name, list(words))
    with open_dict(cfg):
        if name == "train":
            cfg.sweep = "rotten"
    return cfg


# -- what rots -------------------------------------------------------------------------------------------------------


def make(place: Path) -> None:
    """Makes `sweep` with two finished members, `cut` with an interrupted study, `whole` with the same undisturbed, `rows`
    with stored activations and `kept` with responses."""
    members = []
    for seed in (0, 1):
        run = Run(composed("train", *SMALL, MEASURED, f"seed={seed}", "budget.companions=[twin]"), place)
        run.folder = place / "sweep" / run.identity
        run.folder.mkdir(parents=True)
        run.begin()
        train([run], place / "sweep" / "checkpoints")
        members.append({"identity": run.identity, "words": [f"seed={seed}"]})
    write_sealed(place / "sweep" / "sweep.json", {"sweep": "rotten", "lines": [], "members": members})
    study(interrupted(), place / "whole")
    save = Checkpoints.save

    def stop(saving: Checkpoints, module: Any) -> None:
        save(saving, module)
        if module.step >= module.steps - 2:
            raise Stopped

    Checkpoints.save = stop
    try:
        with contextlib.suppress(Stopped):
            study(interrupted(), place / "cut")
    finally:
        Checkpoints.save = save
    members = [str(place.with_name("copy") / "cut")]
    write_sealed(place / "cut" / "group.json", {"members": members, "resume_from": None})
    store(rows(), place / "rows", tokens=256, width=WIDTH, moments=0)
    (place / "kept").mkdir()
    kept = KeptResponses(place / "kept", "benchmark", "toy", "abc")
    for n in range(8):
        kept.write(Asked(str(n), [n]), Response([n, n + 1], f"response {n}", True, "", (n,), (0.5 * n,)))


def interrupted() -> DictConfig:
    return composed("train", *SMALL, "evaluation=[geometry]", "checkpoint_every=0")


def rows() -> Iterator[Rows]:
    draws = randomness.generator(0, "activations that rot")
    while True:
        yield Rows(torch.randn(64, WIDTH, generator=draws))


# -- how it rots -----------------------------------------------------------------------------------------------------


def spoil(path: Path, others: list[Path], chance: random.Random) -> str:
    """Spoils a file in one of nine ways, and says how."""
    content = path.read_bytes()
    way = chance.choice("flip flip flip cut empty swap swap noise deep types".split())
    if way == "flip" and content:
        at = chance.randrange(len(content))
        content = content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    elif way == "cut":
        content = content[: chance.randrange(max(len(content), 1))]
    elif way == "empty":
        content = b""
    elif way == "swap":
        alike = [other for other in others if other.name == path.name or chance.random() < 0.1] or others
        content = chance.choice(alike).read_bytes()
    elif way == "noise":
        content = chance.randbytes(chance.choice([1, 64, max(len(content), 1)]))
    elif way == "deep":
        content = b'{"a":' * 100_000 if chance.random() < 0.5 else b"[" * 100_000
    else:
        kinds = [None, True, -1, 1e400, "x", [], [[1]], {}, {"findings": 3}, {"files": [1]}, {"members": "x"}]
        kinds += [{"state": 5, "step": "x"}, {"blocks": {}}, {"figures": [{}]}, {"identity": 1, "settings": []}]
        content = json.dumps(chance.choice(kinds)).encode()
    path.write_bytes(content)
    return way


def files_of(folder: Path) -> list[Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if path.name not in CHANGING]


# -- how it is read --------------------------------------------------------------------------------------------------


def load(place: Path) -> Any:
    """Everything that a loaded run of the sweep gives."""
    folder = sorted(path for path in (place / "sweep").iterdir() if (path / "report.html").exists())[0]
    run = tunediff.load(folder)
    tables = {name: run.table(name).to_pydict() for name in ("training", "latents", "examples")}
    weights = [one.state_dict() for one in (run.dictionary, *run.companions.values())]
    return said([repr(run.cfg), run.findings, tables, weights])


def said(values: Any) -> str:
    def plain(value: Any) -> Any:
        return value.numpy().tobytes().hex() if isinstance(value, torch.Tensor) else str(value)

    return hashlib.sha256(json.dumps(values, default=plain, sort_keys=True).encode()).hexdigest()


def compare(place: Path) -> Any:
    members = members_under([place / "sweep"])
    wrong = [member for member in members if member["state"] == UNREADABLE or member["error"]]
    if wrong:
        in_words(members)
        raise Refused(wrong[0]["error"])
    for member in members:
        member["folder"] = Path(member["folder"]).name
    return said([in_words(members), members])


def evaluate(place: Path) -> Any:
    folder = sorted(path for path in (place / "sweep").iterdir() if (path / "report.html").exists())[0]
    reevaluate(composed("evaluate", f"run={folder}", "evaluation=[geometry]", "trainer=cpu"))
    return said(tunediff.load(folder).findings)


def trained(folder: Path) -> str:
    run = tunediff.load(folder)
    assert run.dictionary is not None
    return said([run.dictionary.state_dict(), run.findings, run.table("training").to_pydict()])


def resume(place: Path) -> Any:
    study(interrupted(), place / "cut")
    return trained(place / "cut")


def go_on(place: Path) -> Any:
    """The same as a group's process goes on."""
    if work(place / "cut"):
        raise Refused(json.loads((place / "cut" / "state.json").read_text())["error"])
    return trained(place / "cut")


def stored(place: Path) -> Any:
    store(rows(), place / "rows", tokens=256, width=WIDTH, moments=0)
    read = StoredRows(place / "rows", [Stream("base", "residual", 1, WIDTH)], dtype=torch.float32)
    return said([next(read).values])


def responses(place: Path) -> Any:
    """The responses, those that were lost made anew as an evaluation would."""
    kept = KeptResponses(place / "kept", "benchmark", "toy", "abc")
    made = []
    for n in range(8):
        asked = Asked(str(n), [n])
        if (response := kept.read(asked)) is None:
            response = Response([n, n + 1], f"response {n}", True, "", (n,), (0.5 * n,))
            kept.write(asked, response)
        made.append(response)
    return said(made)


READERS: list[tuple[Callable[[Path], Any], str, int]] = [
    (load, "sweep", 45), (compare, "sweep", 20), (evaluate, "sweep", 8), (resume, "cut", 10), (go_on, "cut", 6), (stored, "rows", 6),
    (responses, "kept", 7),
]  # fmt: skip


class Heard(logging.Handler):
    """Warnings, by which a repair is known."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def cases(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """One dict a case: `done` (what was read, how it was spoilt, the file), `outcome` and the `sentence`."""
    chance, heard = randomness.chance(seed, "campaign of rotten files"), Heard()
    logger = logging.getLogger("tunediff")
    logger.addHandler(heard)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        place, copy = Path(folder) / "made", Path(folder) / "copy"
        make(place)
        truths = {}
        for reader, _, _ in READERS:
            shutil.copytree(place, copy)
            truths[reader] = reader(copy)
            shutil.rmtree(copy)
        assert truths[resume] == trained(place / "whole"), "the study that went on is the undisturbed one"
        for _ in range(count):
            ((reader, part, _),) = chance.choices(READERS, [weight for _, _, weight in READERS])
            shutil.copytree(place / part, copy / part)
            path = chance.choice(files_of(copy / part))
            way = spoil(path, files_of(place), chance)
            heard.lines.clear()
            outcome, sentence = read(reader, copy, truths[reader], heard)
            shutil.rmtree(copy)
            done = f"{reader.__name__}: {way} {path.relative_to(copy)}"
            yield {"done": done, "outcome": outcome, "sentence": sentence.replace(folder, "...")}
    logger.removeHandler(heard)


def read(reader: Callable[[Path], Any], place: Path, truth: Any, heard: Heard) -> tuple[str, str]:
    try:
        found = reader(place)
    except Refused as refusal:
        return "refused", str(refusal)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"[:300]
    if found != truth:
        return "silent", " ".join(heard.lines)[:300]
    return ("repaired", heard.lines[0]) if heard.lines else ("equal", "")


if __name__ == "__main__":
    main(cases, __doc__ or "", count=400)
