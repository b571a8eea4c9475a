"""Groups as the tasks of one job array, submitted by submitit and watched through squeue and the run folders.

submitit asks sacct alone how a job is, so on a cluster without accounting a cancelled job would be waited for without
end. Here a member's own state.json says what it reached, squeue says which jobs still live, and of one that is gone
without having ended scontrol or sacct says why.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import submitit
import submitit.core.utils

from tunediff import folders
from tunediff.shapes import Refused
from tunediff.study.devices import Device
from tunediff.study.run import Run
from tunediff.sweep.plan import Group, Member, Standing, groups_of, look
from tunediff.sweep.task import Work, python

ENDED = (folders.FINISHED, folders.FAILED)


@dataclass(frozen=True)
class Slurm:
    """A cluster, which runs the groups of a sweep as the tasks of one job array; conf/hydra/launcher/slurm.yaml says what
    each setting is."""

    partition: str | None
    account: str | None
    qos: str | None
    timeout_min: int
    gpus_per_node: int | None
    cpus_per_task: int
    mem_gb: float | None
    nodes: int
    tasks_per_node: int
    parallel: int
    signal_delay_s: int
    max_restarts: int
    setup: Sequence[str]
    extra: Mapping[str, Any]
    wait: bool
    poll_s: float

    after_ctrl_c: ClassVar[str] = "the jobs go on"
    here: ClassVar[bool] = False  # a login node has other devices

    def queued(self, sweep: Path) -> dict[str, str]:
        """Identity -> job of the members that a former start of the sweep left in the queue."""
        check_cluster(None)
        alive = living(name_of(sweep)) or {}
        states = {path.parent.name: folders.read_json(path) for path in sweep.glob("*/state.json")}
        return {name: state["job"] for name, state in states.items() if state.get("job") in alive}

    def device(self, run: Run) -> Device | None:
        """The device of a group: None, since a login node does not know the devices of the others."""
        return None

    def run(self, sweep: Path, groups: Sequence[Group], members: Sequence[Member]) -> None:
        """Submits the groups as one array, and watches their members and those that were queued before."""
        jobs = {member.run.identity: member.detail for member in members if member.standing is Standing.QUEUED}
        if groups:
            jobs |= self.submit(sweep, groups)
        print(f"the state of all members, also after this terminal is closed: python compare.py {sweep}", flush=True)
        if self.wait:
            watch(
                [member for member in members if member.run.identity in jobs],
                jobs,
                seconds=self.poll_s,
                mem_gb=self.mem_gb,
                again=functools.partial(self.again, sweep),
            )

    def again(self, sweep: Path, members: Sequence[Member]) -> dict[str, str]:
        """Submits the members of a task whose memory ran out once more, from their last checkpoint: several in two halves, one
        with twice the memory where that was asked for. Returns identity -> job; nothing where neither can help, or the
        cluster does not take it."""
        if len(members) == 1 and self.mem_gb is None:
            return {}
        place = self if len(members) > 1 or self.mem_gb is None else replace(self, mem_gb=2 * self.mem_gb)
        checkpoints = look(sweep, members, {})
        groups: list[Group] = []
        for half in (members[: len(members) // 2], members[len(members) // 2 :]):
            left = [member for member in half if member.is_left]
            groups += groups_of(sweep, left, checkpoints, pack=True, fits=lambda some: True)
        try:
            for group in groups:
                group.write()
            return place.submit(sweep, groups) if groups else {}
        except Refused as refusal:
            print(f"note: {refusal}", flush=True)
            return {}

    def submit(self, sweep: Path, groups: Sequence[Group]) -> dict[str, str]:
        """Submits the groups; returns identity -> job. Raises Refused with the cluster's own words where it does not take the array."""
        check_cluster(self.partition)
        check_processes(groups, self.nodes, self.tasks_per_node)
        folder = sweep / "slurm" / "%j"
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=self.max_restarts, python=python())
        executor.update_parameters(  # what is None is left to the cluster
            partition=self.partition,
            account=self.account,
            qos=self.qos,
            gpus_per_node=self.gpus_per_node or None,
            mem=None if self.mem_gb is None else f"{self.mem_gb:g}G",
            job_name=name_of(sweep),
            time=self.timeout_min,
            nodes=self.nodes,
            ntasks_per_node=self.tasks_per_node,
            cpus_per_task=self.cpus_per_task,
            array_parallelism=self.parallel,
            signal_delay_s=self.signal_delay_s,
            setup=list(self.setup),
            stderr_to_stdout=True,
            additional_parameters={"requeue": True, **self.extra},
        )
        try:
            submitted = executor.submit_array([Work(str(group.folder.resolve()), group.trust) for group in groups])
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
            raise Refused(f"sbatch did not take the sweep: {str(error).strip().splitlines()[-1]}") from error
        jobs = {}
        for group, job in zip(groups, submitted, strict=True):
            for member in group.members:
                jobs[member.run.identity] = job.job_id
                folders.say(member.run.folder, state=folders.WAITING, job=job.job_id, error=None)
                link = member.run.folder / "job.log"
                link.unlink(missing_ok=True)
                link.symlink_to(os.path.relpath(job.paths.stdout, link.parent))
        print(f"submitted {len(groups)} groups as job {submitted[0].job_id.partition('_')[0]}", flush=True)
        return jobs


def name_of(sweep: Path) -> str:
    return f"tunediff-{sweep.name}"


def check_cluster(partition: str | None) -> None:
    if shutil.which("sbatch") is None:
        raise Refused(
            "hydra/launcher=slurm needs sbatch, which is not on this machine: start the sweep on a login node of the "
            "cluster, or leave the launcher out to run it here."
        )
    known = call("sinfo", "--noheader", "--format=%R")
    if known is None:
        raise Refused("The cluster does not answer (sinfo failed): is its controller up, and SLURM_CONF right?")
    if partition is not None and partition not in known.split():
        raise Refused(
            f"hydra.launcher.partition={partition} is no partition of this cluster: {', '.join(known.split())}."
        )


def check_processes(groups: Sequence[Group], nodes: int, tasks_per_node: int) -> None:
    """Raises Refused where Lightning and Slurm count processes differently, which a job would find out after the queue."""
    for group in groups:
        trainer = group.members[0].run.cfg.trainer
        asked = (trainer.get("num_nodes", 1), trainer.devices)
        if asked != (nodes, tasks_per_node):
            raise Refused(
                f"trainer.num_nodes={asked[0]} and trainer.devices={asked[1]}, but hydra.launcher.nodes={nodes} and "
                f"hydra.launcher.tasks_per_node={tasks_per_node}: one task is one device, make them equal."
            )


# -- watching --------------------------------------------------------------------------------------------------------


def call(*words: str) -> str | None:
    """The output of a command of Slurm; None where it fails, as it does while the controller is away."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    except (subprocess.SubprocessError, OSError):
        return None


def living(sweep_name: str) -> dict[str, str] | None:
    """Job -> state of every task that is in the queue or runs; None where the controller gives no answer."""
    said = call("squeue", "--noheader", "--array", f"--name={sweep_name}", "--format=%i %T")
    return None if said is None else dict(line.split() for line in said.splitlines() if line.strip())


def why(job: str) -> str:
    """The state in which a job that is gone ended, in Slurm's word, and the signal that ended it, if one did."""
    said = call("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,ExitCode")
    if said and said.strip():
        state, _, code = said.splitlines()[0].partition("|")
    else:
        shown = (call("scontrol", "--oneliner", "show", "job", job) or "").split()
        known = dict(word.split("=", 1) for word in shown if "=" in word)
        state, code = known.get("JobState", "gone"), known.get("ExitCode", "")
    status, _, number = code.partition(":")
    ended_by = int(number or 0) or max(0, int(status or 0) - 128)  # srun gives 128 + signal as its status
    known_signal = ended_by in set(signal.Signals)
    return state.split()[0] + (f" by {signal.Signals(ended_by).name}" if known_signal else "")


def is_of_memory(ended: str) -> bool:
    """True for the end of a job whose memory ran out: Slurm says it, or the system killed it."""
    return "OUT_OF_MEMORY" in ended or ended == "FAILED by SIGKILL"


def cure(ended: str, mem_gb: float | None) -> str:
    """The way out for a job that ended so, where its memory ran out."""
    if not is_of_memory(ended):
        return ""
    more = "" if mem_gb is None else f", now {mem_gb:g}"
    return f": out of memory, give it more (hydra.launcher.mem_gb{more})"


def watch(
    members: Sequence[Member],
    jobs: dict[str, str],
    *,
    seconds: float,
    mem_gb: float | None,
    again: Callable[[Sequence[Member]], dict[str, str]],
) -> None:
    """Logs every change until all members have ended. The members of a job whose memory ran out are tried once more; any other
    job that is gone without an end is noted in its members."""
    said: dict[str, str] = {}
    missing: dict[str, int] = {}
    tried: set[str] = set()
    waiting = {member.run.identity: member for member in members}
    sweep_name = name_of(members[0].run.folder.parent) if members else ""

    def tell(member: Member, word: str) -> None:
        key = word.partition(" step")[0]
        if said.get(member.run.identity) != key:
            said[member.run.identity] = key
            print(f"{time.strftime('%H:%M:%S')}  {member.name}: {word}", flush=True)

    while waiting:
        alive = living(sweep_name)
        gone: dict[str, list[Member]] = {}
        for name, member in list(waiting.items()):
            state, job = folders.read_json(member.run.folder / "state.json"), jobs[name]
            word = f"{state.get('state')}" + (f" step {state['step']:,}" if state.get("step") else "")
            if state.get("state") in ENDED:
                del waiting[name]
            elif alive is not None and job not in alive:
                missing[name] = missing.get(name, 0) + 1
                if missing[name] > 2:  # the file system had its time to show the last state
                    gone.setdefault(job, []).append(member)
                    continue
            elif alive is not None:
                word = f"{word}, job {job} {alive[job].lower()}"
            tell(member, word)
        for job, some in gone.items():
            ended, names = why(job), [member.run.identity for member in some]
            anew = again(some) if is_of_memory(ended) and not tried.intersection(names) else {}
            tried |= anew.keys()
            jobs |= anew
            for member in some:
                if member.run.identity in anew:
                    missing[member.run.identity] = 0
                    tell(member, f"job {job} ended as {ended}, tried once more as job {jobs[member.run.identity]}")
                    continue
                word = folders.CANCELLED if ended.startswith("CANCELLED") else folders.INTERRUPTED
                said_of_it = f"job {job} ended as {ended} before the run did{cure(ended, mem_gb)}"
                folders.say(member.run.folder, state=word, error=said_of_it)
                del waiting[member.run.identity]
                tell(member, word)
        time.sleep(seconds if waiting else 0)
