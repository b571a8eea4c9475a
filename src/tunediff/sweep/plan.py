"""Composed members -> what is left to do: groups that share a stream, by identity and never by name."""

from __future__ import annotations

import enum
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tunediff import folders, processes
from tunediff.models import Agreed, ModelPair
from tunediff.settings import check, digest, identity, material, pinned, plain, refuse_unset, stream_key, within
from tunediff.shapes import Refused, flat
from tunediff.study.parts import STUDY, agreed_upon, commits_kept, inside
from tunediff.study.rehearsal import rehearse
from tunediff.study.run import Run
from tunediff.text import Text
from tunediff.training import latest_checkpoint, names_in
from tunediff.trusted import trust_of

UNREADABLE = "unreadable"  # the state of a member whose folder is not as it was written
NEAR = 3  # settings by which a run may differ and still be called nearly the same


class Standing(enum.Enum):
    """The state of a member before anything is started. Its value is the sentence that says so."""

    FINISHED = "finished"
    QUEUED = "in the queue as job {}"
    ELSEWHERE = "running elsewhere"
    SAVED = "goes on from step {}"
    FAILED = "failed before ({}), tried again"
    INTERRUPTED = "was interrupted before its first checkpoint, begins again"
    NEW = "new{}"
    UNREADABLE = "left alone: {}"


@dataclass
class Member:
    """One study of a sweep. `words` are the overrides that tell it from the others; `detail` is what the sentence of its
    standing leaves open."""

    run: Run
    words: list[str]
    standing: Standing = Standing.NEW
    detail: str = ""

    @property
    def is_left(self) -> bool:
        """True where this sweep has to run the member."""
        return self.standing not in (Standing.FINISHED, Standing.QUEUED, Standing.ELSEWHERE, Standing.UNREADABLE)

    @property
    def status(self) -> str:
        """The sentence on the state of the member."""
        return self.standing.value.format(self.detail)

    @property
    def name(self) -> str:
        return " ".join(self.words)


@dataclass
class Group:
    """Members that run in one process. `folder` holds group.json, its log and its checkpoints."""

    members: list[Member]
    folder: Path
    resume_from: Path | None = None

    def write(self) -> None:
        """Writes group.json, and a folder for each member that says what it waits for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for member in self.members:
            folders.make_folder(member.run.folder)
            member.run.begin()
        content = {
            "members": [str(member.run.folder.resolve()) for member in self.members],
            "resume_from": None if self.resume_from is None else str(self.resume_from.resolve()),
        }
        folders.write_sealed(self.folder / "group.json", content)

    def start(self, *, gpu: str | None = None) -> subprocess.Popen:
        """The process of a group, or torchrun over its processes. It ends when this process ends."""
        command = ["-m", "tunediff.study.work", str(self.folder)]
        command += [f"--trust={word}" for word in self.trust]
        return processes.start(command, devices=self.members[0].run.cfg.trainer.devices, gpu=gpu)

    @property
    def trust(self) -> list[str]:
        """Whom the members trust, and the environment variables they read: their process is told, for no file says so."""
        return sorted({word for member in self.members for word in trust_of(member.run.cfg)})


def members_in(
    sweep: Path,
    composed: Sequence[tuple[list[str], DictConfig]],
    *,
    here: bool = True,
    commits: Mapping[str, Any] | None = None,
) -> list[Member]:
    """The members of a sweep, which runs on this machine or on another, each checked whole before anything starts; `commits`
    are those of commits_begun. Raises Refused, naming the member."""
    common = set.intersection(*(set(words) for words, _ in composed)) if len(composed) > 1 else set()
    members: dict[str, Member] = {}
    built: dict[str, tuple[ModelPair, Text, Agreed]] = {}
    for words, cfg in composed:
        own = [word for word in words if word not in common]
        try:
            with within(sweep):
                check(cfg, STUDY)
            refuse_unset(cfg, STUDY)
            cfg = pinned(cfg, commits)
            run = Run(cfg, sweep / identity(cfg))
            key = digest([plain(cfg.model_pair), plain(cfg.text), bool(cfg.evaluation)])
            if key not in built:
                built[key] = agreed_upon(cfg, evaluated=bool(cfg.evaluation))
            pair, text, _ = built[key]
            run.build(pair, text, weights=False)
            rehearse(run, pair, here=here)
            run.learner = None  # its weights are made where it is trained
        except Refused as refusal:
            raise Refused(f"{' '.join(own)}: {refusal}" if own else str(refusal)) from refusal
        members.setdefault(run.identity, Member(run, own))
    return list(members.values())


def commits_begun(sweep: Path) -> dict[str, Any]:
    """The commits of the members that go on. All others are read at the same ones, so that a sweep that was interrupted becomes
    what it would have become."""
    found: dict[str, Any] = {}
    saved = {name for path in _latest(sweep) for name in names_in(path)}
    for place in sorted(sweep.glob("*/identity.json"), key=lambda path: path.stat().st_mtime):
        found |= commits_kept(place.parent, saved=place.parent.name in saved)
    return found


def _latest(sweep: Path) -> list[Path]:
    """The latest checkpoints of the groups of a sweep."""
    latest = map(latest_checkpoint, sorted((sweep / "groups").glob("*/checkpoints")))
    return [path for path in latest if path is not None]


def look(sweep: Path, members: Sequence[Member], queued: Mapping[str, str]) -> list[tuple[Path, set[str]]]:
    """Fills in the state of each member, with the jobs that are queued by their identities; returns the checkpoints that a
    member may resume from, the furthest first."""
    for member in members:
        until_saved(member.run.folder)
    found = sorted(_latest(sweep), key=lambda path: -step_of(path))
    checkpoints = [(path, set(names_in(path))) for path in found]
    for member in members:
        state = state_in(member.run)
        saved = next((path for path, names in checkpoints if member.run.identity in names), None)
        member.detail = ""
        if rot := rot_in(member.run):
            member.standing, member.detail = Standing.UNREADABLE, rot
        elif folders.is_finished(member.run.folder, member.run.identity):
            member.standing = Standing.FINISHED
        elif member.run.identity in queued:
            member.standing, member.detail = Standing.QUEUED, queued[member.run.identity]
        elif folders.is_held(member.run.folder):
            member.standing = Standing.ELSEWHERE
        elif saved is not None:
            member.standing, member.detail = Standing.SAVED, f"{step_of(saved):,}"
        elif state.get("state") == folders.FAILED:
            member.standing, member.detail = Standing.FAILED, state.get("error", "")[:60]
        elif state.get("state") == folders.INTERRUPTED:
            member.standing = Standing.INTERRUPTED
        else:
            member.standing, member.detail = Standing.NEW, nearest(sweep, member, members)
    return checkpoints


def state_in(run: Run) -> dict[str, Any]:
    """The state of a member; that of one that cannot be read, which costs itself alone, says why."""
    try:
        return folders.state_of(run.folder)
    except Refused as refusal:
        return {"state": UNREADABLE, "error": str(refusal)}


def rot_in(run: Run) -> str | None:
    """Why the folder of a member cannot be read, or is not whole though its run is finished; None where nothing is wrong."""
    try:
        folders.state_of(run.folder)
        folders.read_json(run.folder / "identity.json")
        if folders.is_finished(run.folder, run.identity):
            folders.check_whole(run.folder)
        return None
    except Refused as refusal:
        return str(refusal)


def until_saved(folder: Path, *, seconds: float = 600.0) -> None:
    """Waits while the process of an earlier launcher, which is gone, still saves what it trained."""
    begun, said = time.monotonic(), False
    while folders.is_held(folder) and is_left_behind(folder) and time.monotonic() - begun < seconds:
        if not said:
            print(f"waiting until {folder.name}, whose launcher is gone, is saved", flush=True)
        said = True
        time.sleep(0.2)


def is_left_behind(folder: Path) -> bool:
    """True where the process that writes the folder was started here by one that is gone."""
    launcher, owner = folders.read_json(folder / "state.json").get("launcher"), folders.read_json(folder / "owner.json")
    if launcher is None or owner.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(launcher), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step-"))


def nearest(sweep: Path, member: Member, members: Sequence[Member]) -> str:
    """Words about an earlier run of this folder that differs in few settings, and not only in what is swept."""
    planned = {other.run.identity for other in members}
    swept = tuple(word.partition("=")[0] for word in member.words)
    mine = flat(material(member.run.cfg))
    found = []
    for path in sorted(sweep.glob("*/identity.json")):
        try:
            stored = folders.read_json(path)
        except Refused:
            continue
        if stored["identity"] in planned:
            continue
        theirs = flat(stored["settings"])
        keys = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
        unswept = [key for key in keys if not any(key == s or key.startswith(f"{s}.") for s in swept)]
        if unswept and len(keys) <= NEAR:
            words = ", ".join(f"{key} {theirs.get(key)} -> {mine.get(key)}" for key in keys)
            found.append((len(keys), f": like {stored['identity']}, but {words}"))
    return min(found)[1] if found else ""


def groups_of(
    sweep: Path,
    members: Sequence[Member],
    checkpoints: Sequence[tuple[Path, set[str]]],
    *,
    pack: bool,
    fits: Callable[[Sequence[Member]], bool],
) -> list[Group]:
    """Groups of members that read the same rows and are at the same step; a group that does not fit one device is split."""
    together: dict[tuple, list[Member]] = {}
    for member in members:
        saved = next((path for path, names in checkpoints if member.run.identity in names), None)
        alone = not pack or inside(member.run.cfg)
        key = (saved, stream_key(member.run.cfg), member.run.identity if alone else None)
        together.setdefault(key, []).append(member)
    groups = []
    for (saved, _, _), some in together.items():
        parts: list[list[Member]] = []
        for member in some:
            if not parts or not fits([*parts[-1], member]):
                parts.append([])
            parts[-1].append(member)
        for part in parts:
            name = digest(sorted(member.run.identity for member in part))[:8]
            groups.append(Group(part, sweep / "groups" / name, saved))
    return groups


def forget_checkpoints(sweep: Path) -> None:
    """Removes the checkpoints of groups all of whose members are finished; one without a whole checkpoint may be writing its first."""
    for folder in (sweep / "groups").glob("*/checkpoints"):
        path = latest_checkpoint(folder)
        if path is not None and all(folders.is_finished(sweep / name, name) for name in names_in(path)):
            shutil.rmtree(folder, ignore_errors=True)
