"""Sweeps on a real Slurm: daemons of one machine, real arrays, and what goes wrong on a cluster."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

import warm
from conftest import ROOT
from test_study import LITTLE_TEXT, call
from test_sweep import composed, states, weights
from tunediff import folders
from tunediff.sweep import slurm as slurm_jobs
from tunediff.sweep.plan import groups_of, members_in

SCRIPT = ROOT / "slurm" / "single_host.sh"
CLUSTER = [
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=0",
    "hydra.launcher.mem_gb=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.poll_s=0.5",
]
STUDY = ["scale=smoke", "trainer=cpu", "evaluation=none", *LITTLE_TEXT]
LONG = ["budget.tokens=30000", "optimizer.batch=250", "budget.buffer=2000", "checkpoint_every=0.1"]  # 120 steps


pytestmark = pytest.mark.xdist_group("slurm")  # one cluster is started for all of them


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if not shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin"):
        pytest.skip("no Slurm here: bash slurm/single_host.sh install")
    first = 17817 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # a cluster each worker
    port = next(
        port for port in range(first, first + 1000, 20) if is_free(port)
    )  # not those of one that was left behind
    lab = {"SLURM_LAB": str(tmp_path_factory.mktemp("slurm")), "SLURM_LAB_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **lab}
    said = subprocess.run(["bash", SCRIPT, "up"], env=environment, capture_output=True, text=True, check=True)
    lab["SLURM_CONF"] = re.search(r"SLURM_CONF=(\S+)", said.stdout)[1]
    yield lab
    subprocess.run(["bash", SCRIPT, "down"], env=environment, check=True)


def is_free(port):
    with socket.socket() as taken:
        return taken.connect_ex(("127.0.0.1", port)) != 0


def slurm(cluster, *words):
    done = subprocess.run(words, env={**os.environ, **cluster}, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def until(true, what, seconds=120):
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def begun_in(sweep):
    """True once a task of the sweep is a process, whatever it has imported: Slurm itself loses a signal that comes earlier."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" in words and str(sweep).encode() in words[-2] and b"srun" not in words[0]:
                return True
    return False


def job_state(cluster, job):
    said = slurm(cluster, "scontrol", "--oneliner", "show", "job", job)
    return (
        re.search(r"JobState=(\S+)", said)[1],
        re.search(r"ExitCode=(\S+)", said)[1],
        re.search(r"Restarts=(\d+)", said)[1],
    )


def start(cluster, folder, *words, python=None):
    command = [python or warm.python(), "train.py", "-m", *STUDY, *CLUSTER, *words, f"hydra.sweep.dir={folder}"]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **cluster}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.timeout(600)  # three sweeps, each of which waits for Slurm
@pytest.mark.parametrize(
    "fates", [("requeued",), pytest.param(("requeued", "cancelled", "preempted"), marks=pytest.mark.slow)]
)
def test_whatever_befalls_the_members_of_an_array_each_has_the_bits_that_it_has_undisturbed(cluster, tmp_path, fates):
    """Beside them one that fails."""
    rates = dict(zip(fates, ("0.001", "0.002", "0.003"), strict=False))
    undisturbed = f"optimizer.learning_rate={','.join(rates.values())}"
    sweep, line = tmp_path / "sweep", ["launcher.pack=false", *LONG]
    running = start(cluster, sweep, f"{undisturbed},1e30", *line)

    def member(rate):
        return next(
            (p.parent for p in sweep.glob("*/config.yaml") if f"\n  learning_rate: {rate}\n" in p.read_text()), None
        )

    def step(rate):
        folder = member(rate)
        return folder is not None and folders.state_of(folder).get("step", 0) > 0

    def saved(rate):
        job = folders.read_json(member(rate) / "state.json").get("job")
        groups = [p for p in sweep.glob("groups/*/group.json") if member(rate).name in p.read_text()]
        return bool(job and list(groups[0].parent.glob("checkpoints/step-*.json")))

    until(lambda: all(step(rate) and saved(rate) for rate in rates.values()), "checkpoints of all members")
    job = {fate: folders.read_json(member(rate) / "state.json")["job"] for fate, rate in rates.items()}
    orders = {"requeued": ("scontrol", "requeue"), "cancelled": ("scancel",), "preempted": ("scancel", "--signal=USR2")}
    for fate in rates:
        slurm(cluster, *orders[fate], job[fate])
    said, _ = running.communicate(timeout=200)
    assert running.returncode == 1

    # what became of each, in the folders, in Slurm's own words and in the terminal
    failed = member("1.0e+30")
    ended = {**job, "failed": folders.state_of(failed)["job"]}  # a folder knows of an end a moment before Slurm does
    for one in ended.values():
        until(lambda one=one: job_state(cluster, one)[0] not in ("RUNNING", "COMPLETING"), f"the end of job {one}", 30)
    gone_on = [fate for fate in rates if fate != "cancelled"]
    for fate in gone_on:
        assert folders.state_of(member(rates[fate]))["state"] == "finished"
        assert job_state(cluster, job[fate])[::2] == ("COMPLETED", "1")
    assert job_state(cluster, ended["failed"])[:2] == ("FAILED", "1:0")
    assert "Traceback" in (failed / "run.log").read_text()
    assert "going on from step" in (member(rates["requeued"]) / "job.log").read_text()
    assert re.search(r"optimizer.learning_rate=1e.30 +failed +The loss is not finite", said), said
    assert f"{len(gone_on)} of {len(rates) + 1} members are finished" in said

    # the same line again: finished ones are left, the cancelled one goes on
    if "cancelled" in rates:
        assert "ended as CANCELLED before the run did" in folders.state_of(member("0.002"))["error"]
        assert re.search(r"optimizer.learning_rate=0.002 +cancelled +job \S+ ended as CANCELLED", said), said
        said, _ = start(cluster, sweep, undisturbed, *line).communicate(timeout=200)
        assert re.search(r"optimizer.learning_rate=0.002 +\w+ +goes on from step \d", said), said
        assert len(re.findall(r"optimizer.learning_rate=\S+ +\w+ +finished", said)) == 2
        assert "3 of 3 members are finished" in said

    # and each has the bits of a run that nothing happened to
    local = tmp_path / "local"
    call("train.py", "-m", *STUDY, undisturbed, *LONG, f"hydra.sweep.dir={local}", OMP_NUM_THREADS="1")
    for rate in rates.values():
        assert weights(member(rate)) == weights(local / member(rate).name), rate
    assert set(states(local)) == {member(rate).name for rate in rates.values()}


def test_a_launcher_that_went_away_finds_its_jobs_again(cluster, tmp_path):
    sweep, line = tmp_path / "sweep", ["layer=1,2", *LONG]
    first = start(cluster, sweep, *line, "hydra.launcher.wait=false")
    assert "submitted 1 groups" in first.communicate(timeout=60)[0]
    said, _ = start(cluster, sweep, *line).communicate(timeout=200)
    assert "submitted" not in said and re.search("in the queue as job|running elsewhere", said), said
    assert "2 of 2 members are finished" in said


@pytest.mark.slow  # Python and all that is imported start anew, four times
@pytest.mark.timeout(600)
def test_a_signal_in_the_first_moments_requeues_the_task_and_one_that_is_killed_names_the_cure(cluster, tmp_path):
    """To submitit a time limit of some minutes has passed when the signal comes, whenever that is."""
    line = ["layer=1", "hydra.launcher.timeout_min=9", *LONG, "budget.tokens=2000000"]
    running = start(cluster, tmp_path, *line, python=warm.COLD)
    until(lambda: [s for s in states(tmp_path).values() if s.get("job")], "a job")
    (state,) = states(tmp_path).values()
    job = state["job"]
    until(lambda: begun_in(tmp_path), "its first process", 60)
    slurm(cluster, "scancel", "--signal=USR2", job)
    until(lambda: job_state(cluster, job)[2] == "1", "its second start", 60)
    until(lambda: [s for s in states(tmp_path).values() if s.get("step", 0) > 0], "a step", 200)
    os.kill(folders.read_json(next(tmp_path.glob("*/owner.json")))["process"], signal.SIGKILL)  # as the system does
    said, _ = running.communicate(timeout=200)
    assert running.returncode == 1
    (state,) = states(tmp_path).values()
    assert state["state"] == "interrupted"
    assert "FAILED by SIGKILL before the run did: out of memory, give it more (hydra.launcher.mem_gb)" in state["error"]
    assert "hydra.launcher.mem_gb" in said


def test_a_task_whose_memory_ran_out_is_tried_once_more_where_that_can_help(tmp_path, monkeypatch):
    """By a cluster that kills every one of them."""
    names = "partition account qos timeout_min gpus_per_node cpus_per_task nodes tasks_per_node parallel signal_delay_s"
    others = {**dict.fromkeys(f"{names} max_restarts setup extra".split()), "wait": True, "poll_s": 0.0}
    members = members_in(tmp_path, [([f"layer={layer}"], composed(f"layer={layer}")) for layer in (1, 2)])
    answers = {"squeue": "", "sacct": "OUT_OF_MEMORY|0:125"}
    submitted = []

    def submit(place, sweep, groups):
        submitted.append((place.mem_gb, [[member.name for member in group.members] for group in groups]))
        jobs = {m.run.identity: f"{len(submitted)}_{n}" for n, group in enumerate(groups) for m in group.members}
        for name, job in jobs.items():
            folders.say(sweep / name, state=folders.WAITING, job=job, error=None)
        return jobs

    def after(mem_gb, members):
        submitted.clear()
        groups = groups_of(tmp_path, members, [], pack=True, fits=lambda some: True)
        for group in groups:
            group.write()
        slurm_jobs.Slurm(mem_gb=mem_gb, **others).run(tmp_path, groups, members)
        ended = [states(tmp_path)[member.run.folder.name] for member in members]
        assert {state["state"] for state in ended} == {"interrupted"}
        assert all("OUT_OF_MEMORY before the run did: out of memory, give it more" in s["error"] for s in ended)
        return submitted

    monkeypatch.setattr(slurm_jobs.Slurm, "submit", submit)
    monkeypatch.setattr(slurm_jobs, "call", lambda *words: answers[words[0]])
    halves = [["layer=1"], ["layer=2"]]
    assert after(64.0, members) == [(64.0, [["layer=1", "layer=2"]]), (64.0, halves)]
    assert after(64.0, members[:1]) == [(64.0, halves[:1]), (128.0, halves[:1])]
    assert after(None, members[:1]) == [(None, halves[:1])]


def test_two_tasks_of_a_job_train_one_dictionary(cluster, tmp_path):
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]
    nodes = ["hydra.launcher.nodes=2", 'hydra.launcher.setup=["export MASTER_ADDR=127.0.0.1"]']
    words = [w for w in STUDY if not w.startswith("trainer")]
    command = [
        warm.python(),
        "train.py",
        "-m",
        *words,
        *CLUSTER,
        *ddp,
        *nodes,
        "layer=1",
        f"hydra.sweep.dir={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **cluster}, capture_output=True, text=True, timeout=200)
    assert "1 of 1 members are finished" in done.stdout, done.stdout + done.stderr
    (state,) = states(tmp_path).values()
    assert "NumTasks=2" in slurm(cluster, "scontrol", "show", "job", state["job"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["hydra.launcher.partition=gpuu"],
            "hydra.launcher.partition=gpuu is no partition of this cluster: dev, high.",
        ),
        (
            ["hydra.launcher.tasks_per_node=2"],
            "hydra.launcher.tasks_per_node=2: one task is one device, make them equal",
        ),
        (["+hydra.launcher.extra.constraint=h100"], "sbatch did not take the sweep: "),
    ],
)
def test_what_the_cluster_cannot_do_is_said_before_anything_is_queued(cluster, tmp_path, words, message):
    said = call("train.py", "-m", *STUDY, *CLUSTER, *words, f"hydra.sweep.dir={tmp_path}", good=False, **cluster)
    assert f"error: {message}" in said or message in said
    assert "Traceback" not in said


def test_a_machine_without_sbatch_says_so(tmp_path):
    said = call(
        "train.py", "-m", *STUDY, "hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path}", good=False, PATH="/nowhere"
    )
    assert "error: hydra/launcher=slurm needs sbatch, which is not on this machine" in said and "Traceback" not in said


def test_the_login_node_script_starts_a_sweep_and_shows_it(tmp_path):
    words = ["scale=smoke", "trainer=cpu", "layer=1,2", "dry_run=true", f"hydra.sweep.dir={tmp_path}"]
    path = f"{Path(warm.python()).parent}:{os.environ['PATH']}"
    command = ["bash", ROOT / "slurm" / "login_node.sh", *words]
    said = subprocess.run(
        command, env={**os.environ, "CLUSTER": "local", "PATH": path}, capture_output=True, text=True, timeout=120
    )
    assert "2 members, 2 to run in 1 processes" in said.stdout, said.stdout + said.stderr
    Path(ROOT, re.search(r"log (\S+)", said.stdout)[1]).unlink()
