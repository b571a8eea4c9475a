"""The story of a sweep: compose and check every member, say what it takes, run what is left, tell what became of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from tunediff import folders, processes
from tunediff.models import ModelPair
from tunediff.settings import begun, build, identity, pinned, said_plainly
from tunediff.shapes import Refused
from tunediff.study import faults
from tunediff.study.devices import device_named, memory_of
from tunediff.study.estimate import GB, columns, cost_of, table
from tunediff.sweep.local import Local
from tunediff.sweep.plan import (
    UNREADABLE,
    Group,
    Member,
    Standing,
    commits_begun,
    forget_checkpoints,
    groups_of,
    look,
    members_in,
    state_in,
)
from tunediff.sweep.slurm import Slurm
from tunediff.trusted import with_references


@said_plainly()
@faults.said()
def launch(
    config: DictConfig,
    compose: Callable[[DictConfig, list[str]], DictConfig],
    overrides: Sequence[Sequence[str]],
    place: Local | Slurm,
) -> list[JobReturn]:
    """Runs members, given as lists of overrides, at a place -> the outcome of each, in their order."""
    sweep = Path(config.hydra.sweep.dir)
    with folders.unless_refused(sweep):
        if not overrides:
            raise Refused("The line names no member: one of its ranges or lists is empty.")
        composed = [(list(words), member_config(config, compose, words)) for words in overrides]
        commits = commits_begun(sweep)
        members = members_in(sweep, composed, here=place.here, commits=commits)
        by_identity = {member.run.identity: member for member in members}
        in_order = [by_identity[identity(pinned(cfg, commits))] for _, cfg in composed]
        waiting = [returned(member, words, None) for member, words in zip(in_order, overrides, strict=True)]
        if config.dry_run:
            groups_left(sweep, members, config, place)
            return waiting
        with folders.held(sweep, "The sweep"), processes.answering():
            groups = groups_left(sweep, members, config, place)
            write_sweep(sweep, config, members)
            for group in groups:
                group.write()
            begun()
            try:
                place.run(sweep, groups, members)
            except KeyboardInterrupt as left:
                state = f"the state of all members: python compare.py {os.path.relpath(sweep)}"
                print(f"stopped: {place.after_ctrl_c}; {state}", file=sys.stderr)
                sys.exit(processes.status_of(left))
            forget_checkpoints(sweep)
        return tell(sweep, in_order, overrides) if place.wait else waiting


def member_config(config: DictConfig, compose: Callable, words: Sequence[str]) -> DictConfig:
    """One member's config without Hydra's own part; the sweep's name is the whole line's, not the member's."""
    cfg = compose(config, list(words))
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.sweep = config.sweep
    return cfg


def groups_left(sweep: Path, members: list[Member], config: DictConfig, place: Local | Slurm) -> list[Group]:
    """The groups that are left to run. Prints them with what they take."""
    checkpoints = look(sweep, members, place.queued(sweep))
    left = [member for member in members if member.is_left]
    pairs: dict[str, ModelPair] = {}

    def cost(some: Sequence[Member]):
        cfg = some[0].run.cfg.model_pair
        key = OmegaConf.to_yaml(cfg, resolve=True)
        if key not in pairs:
            pairs[key] = build(cfg)
        return cost_of([member.run for member in some], pairs[key], device)

    cfg = members[0].run.cfg
    device = device_named(cfg.launcher.device, cfg) if cfg.launcher.device else place.device(members[0].run)
    limit = memory_of(device, given_gb=config.launcher.memory_gb)

    def fits(some: Sequence[Member]) -> bool:
        return len(some) == 1 or cost(some).memory <= limit

    groups = groups_of(sweep, left, checkpoints, pack=config.launcher.pack, fits=fits)
    print(f"sweep {sweep}: {len(members)} members, {len(left)} to run in {len(groups)} processes")
    number = {id(member): str(n) for n, group in enumerate(groups) for member in group.members}
    rows = [[number.get(id(m), "-"), m.name or "the study", m.run.folder.name, m.status] for m in members]
    print(columns([["group", "member", "folder", ""], *rows]))
    if groups:
        costs = [([member.run for member in group.members], cost(group.members)) for group in groups]
        print(table(costs, device=device))
        for group, (_, each) in zip(groups, costs, strict=True):
            if each.memory > limit:
                print(f"note: {group.members[0].name} alone is estimated at more than {limit / GB:.1f} GB.")
    sys.stdout.flush()
    return groups


def write_sweep(sweep: Path, config: DictConfig, members: Sequence[Member]) -> None:
    """Writes sweep.json: the command lines that were typed, and every member they named."""
    try:
        before = folders.read_json(sweep / "sweep.json")
    except Refused as refusal:  # of the members one looks at their own folders
        print(f"note: {refusal}")
        before = {}
    line = " ".join(with_references(config.hydra.overrides.task))  # by the names of variables
    with folders.as_written(sweep / "sweep.json"):
        known = {entry["identity"]: entry for entry in before.get("members", [])}
    known |= {m.run.identity: {"identity": m.run.identity, "words": m.words} for m in members}
    lines = list(dict.fromkeys([*before.get("lines", []), line]))
    content = {"sweep": config.sweep, "lines": lines, "members": list(known.values())}
    folders.write_sealed(sweep / "sweep.json", content)


def tell(sweep: Path, members: Sequence[Member], overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Prints one table of failures and returns Hydra's job returns. A member that did not end well is a failed job."""
    each = {member.run.identity: member for member in members}
    states = {name: state_in(member.run) for name, member in each.items()}
    for name, member in each.items():
        if member.standing is Standing.UNREADABLE:  # as it was found, and left
            states[name] |= {"state": UNREADABLE, "error": member.detail}
    wrong = [member for name, member in each.items() if states[name].get("state") != folders.FINISHED]
    done = len(each) - len(wrong)
    print(
        f"{done} of {done + len(wrong)} members are finished; side by side: python compare.py {os.path.relpath(sweep)}"
    )
    if wrong:
        rows = [["member", "state", "why", "log"]]
        for member in wrong:
            state = states[member.run.identity]
            elsewhere = member.standing is Standing.ELSEWHERE
            why = f"{member.status}, at" if elsewhere else state.get("error") or "stopped at"
            why += "" if state.get("error") else f" step {state.get('step', 0):,}"
            log = "job.log" if (member.run.folder / "job.log").exists() else "run.log"
            where = os.path.relpath(member.run.folder / log)
            rows.append([member.name, state.get("state", "waiting"), str(why).splitlines()[-1][:160], where])
        print(columns(rows))
    failure = CompactHydraException(
        f"{len(wrong)} of {done + len(wrong)} members did not end well: see the table above."
    )
    return [
        returned(member, words, failure if member in wrong else None, states[member.run.identity].get("value"))
        for member, words in zip(members, overrides, strict=True)
    ]


class Told(JobReturn):
    """The outcome of a member, of which the table has told: whoever comes upon a failure here says nothing more of it."""

    @JobReturn.return_value.getter
    def return_value(self) -> Any:
        if self.status is JobStatus.FAILED:
            raise self._return_value
        return self._return_value


def returned(member: Member, words: Sequence[str], failure: Exception | None, value: float | None = None) -> JobReturn:
    status = JobStatus.FAILED if failure else JobStatus.COMPLETED
    result = Told(overrides=list(words), cfg=member.run.cfg, status=status)
    result.return_value = failure or value
    return result
