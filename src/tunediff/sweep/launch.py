"""The story of a sweep: compose and check every member, say what it takes, run what is left, tell what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from tunediff import folders
from tunediff.models import ModelPair
from tunediff.settings import build, check, plain
from tunediff.shapes import Refused
from tunediff.study.parts import STUDY, inside
from tunediff.study.run import Run
from tunediff.study.train import train
from tunediff.study.trainer import processes_of
from tunediff.sweep import local, slurm
from tunediff.sweep.estimate import GB, adapter_items, columns, cost_of, device_of, memory_of, table
from tunediff.sweep.plan import Group, Member, forget_checkpoints, groups_of, look, members_in
from tunediff.training import latest_checkpoint, names_in


def study(cfg: DictConfig, folder: Path) -> float | None:
    """One study in its folder, in this process; several processes for one dictionary are started as a group is. A
    folder in which the same study is finished is left as it is; where it was interrupted, it goes on."""
    with folders.unless_refused(folder):
        return _study(cfg, folder)


def _study(cfg: DictConfig, folder: Path) -> float | None:
    check(cfg, STUDY)
    if cfg.dry_run:
        run = Run(cfg, folder)
        pair: ModelPair = build(cfg.model_pair)
        build(cfg.text).check(evaluated=bool(cfg.evaluation))
        run.build(pair, weights=False)
        if inside(cfg):
            print(f"memory of one device:\n{adapter_items(cfg, pair).table()}")
        print(table([([run], cost_of([run], pair))], device=device_of(run)))
        return None
    folders.make_folder(folder)
    run = Run(cfg, folder)
    if folders.is_finished(folder, run.identity):
        print(f"finished already: {folder / 'report.html'}. Remove the folder to train it again.")
        return folders.state_of(folder).get("value")
    if processes_of(cfg) > 1:
        group = Group([Member(run, [])], folder)
        group.write()
        local.run_groups([group], parallel=1)
        if not folders.is_finished(folder, run.identity):
            raise Refused(f"The study failed: {folders.state_of(folder).get('error', f'see {folder}/run.log')}")
        return folders.state_of(folder).get("value")
    checkpoints = folder / "checkpoints"
    saved = latest_checkpoint(checkpoints) if checkpoints.exists() else None
    if saved is not None and run.identity not in names_in(saved):
        raise Refused(f"{checkpoints} belongs to another study. Choose another hydra.run.dir, or remove it.")
    with folders.held(folder, "The run"):
        run.begin()
        train([run], checkpoints)
    if run.error is not None:
        raise run.error
    return run.value


# -- a sweep ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def said_plainly() -> Iterator[None]:
    try:
        yield
    except Refused as refusal:
        sys.exit(f"error: {refusal}")


def prepare(config: DictConfig) -> None:
    """Before Hydra writes into the sweep's folder."""
    with said_plainly():
        folders.make_folder(Path(config.hydra.sweep.dir))


def launch(
    config: DictConfig,
    compose: Callable[[DictConfig, list[str]], DictConfig],
    overrides: Sequence[Sequence[str]],
    *,
    where: str,
    settings: Mapping[str, Any],
) -> list[JobReturn]:
    """Members as lists of overrides -> what became of each, in their order."""
    with said_plainly():
        sweep = Path(config.hydra.sweep.dir)
        settings = {key: plain(value) for key, value in settings.items()}
        composed = [(list(words), member_config(config, compose, words)) for words in overrides]
        members = members_in(sweep, composed)
        by_identity = {member.run.identity: member for member in members}
        in_order = [by_identity[Run(cfg, sweep).identity] for _, cfg in composed]
        with folders.held(sweep, "The sweep"):
            queued = slurm.queued(sweep) if where == "slurm" else {}
            groups = plan(sweep, members, queued, config, where)
            if not config.dry_run:
                write_sweep(sweep, config, members)
                for group in groups:
                    group.write()
                try:
                    if where == "slurm":
                        slurm.run_groups(sweep, groups, members, queued, **settings)
                    else:
                        local.run_groups(groups, **settings)
                except KeyboardInterrupt:
                    left = "the jobs go on" if where == "slurm" else "the same line goes on from here"
                    sys.exit(f"stopped: {left}; the state of all members: python compare.py {os.path.relpath(sweep)}")
                forget_checkpoints(sweep)
        if config.dry_run or not settings.get("wait", True):
            return [returned(member, words, None) for member, words in zip(in_order, overrides, strict=True)]
        return tell(sweep, in_order, overrides)


def member_config(config: DictConfig, compose: Callable, words: Sequence[str]) -> DictConfig:
    """One member's config without Hydra's own part; the sweep's name is the whole line's, not the member's."""
    cfg = compose(config, list(words))
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.sweep = config.sweep
    return cfg


def plan(sweep: Path, members: list[Member], queued: Mapping[str, str], config: DictConfig, where: str) -> list[Group]:
    """What is left to do, said with what it takes."""
    checkpoints = look(sweep, members)
    for member in members:
        if member.run.identity in queued and not member.finished:
            member.status = f"in the queue as job {queued[member.run.identity]}"
    todo = [m for m in members if not m.status.startswith(("finished", "running elsewhere", "in the queue"))]
    pairs: dict[str, ModelPair] = {}

    def cost(some: Sequence[Member]):
        cfg = some[0].run.cfg.model_pair
        key = OmegaConf.to_yaml(cfg, resolve=True)
        if key not in pairs:
            pairs[key] = build(cfg)
        return cost_of([member.run for member in some], pairs[key])

    device = device_of(members[0].run)
    asked = config.launcher.memory_gb
    limit = asked * GB if asked is not None else memory_of(device) if where == "local" else float("inf")
    groups = groups_of(
        sweep,
        todo,
        checkpoints,
        pack=config.launcher.pack,
        fits=lambda some: len(some) == 1 or cost(some).memory <= limit,
    )
    print(f"sweep {sweep}: {len(members)} members, {len(todo)} to run in {len(groups)} processes")
    number = {id(member): str(n) for n, group in enumerate(groups) for member in group.members}
    rows = [[number.get(id(m), "-"), m.name or "the study", m.run.folder.name, m.status] for m in members]
    print(columns([["group", "member", "folder", ""], *rows]))
    if groups:
        costs = [([member.run for member in group.members], cost(group.members)) for group in groups]
        print(table(costs, device=device if where == "local" else None))
        for group, (_, each) in zip(groups, costs, strict=True):
            if each.memory > limit:
                print(f"note: {group.members[0].name} alone is estimated at more than {limit / GB:.1f} GB.")
    sys.stdout.flush()
    return groups


def write_sweep(sweep: Path, config: DictConfig, members: Sequence[Member]) -> None:
    """sweep.json: the lines that were typed, and every member they named."""
    before = folders.read_json(sweep / "sweep.json")
    line = " ".join(config.hydra.overrides.task)
    known = {entry["identity"]: entry for entry in before.get("members", [])}
    known |= {m.run.identity: {"identity": m.run.identity, "words": m.words} for m in members}
    lines = list(dict.fromkeys([*before.get("lines", []), line]))
    content = {"sweep": config.sweep, "lines": lines, "members": list(known.values())}
    folders.write_atomically(sweep / "sweep.json", json.dumps(content, indent=1))


def tell(sweep: Path, members: Sequence[Member], overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """One table of failures, and Hydra's returns. A member that did not end well is a failed job."""
    states = {id(member): folders.state_of(member.run.folder) for member in members}
    wrong = [m for m in dict((id(m), m) for m in members).values() if states[id(m)].get("state") != folders.FINISHED]
    done = len({id(m) for m in members}) - len(wrong)
    print(
        f"{done} of {done + len(wrong)} members are finished; side by side: python compare.py {os.path.relpath(sweep)}"
    )
    if wrong:
        rows = [["member", "state", "why", "log"]]
        for member in wrong:
            state = states[id(member)]
            elsewhere = member.status.startswith("running elsewhere")
            why = f"{member.status}, at" if elsewhere else state.get("error") or "stopped at"
            why += "" if state.get("error") else f" step {state.get('step', 0):,}"
            log = "job.log" if (member.run.folder / "job.log").exists() else "run.log"
            where = os.path.relpath(member.run.folder / log)
            rows.append([member.name, state.get("state", "waiting"), str(why).splitlines()[-1][:100], where])
        print(columns(rows))
    failure = CompactHydraException(
        f"{len(wrong)} of {done + len(wrong)} members did not end well: see the table above."
    )
    broken = {id(member) for member in wrong}
    return [
        returned(member, words, failure if id(member) in broken else None, states[id(member)].get("value"))
        for member, words in zip(members, overrides, strict=True)
    ]


def returned(member: Member, words: Sequence[str], failure: Exception | None, value: float | None = None) -> JobReturn:
    result = JobReturn(overrides=list(words), cfg=member.run.cfg)
    result.status = JobStatus.FAILED if failure else JobStatus.COMPLETED
    result.return_value = failure or value
    return result
