"""Faults of the machine: a full disk, a folder that is read only, no memory, signals at any moment, a launcher that is gone."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf

import warm
from conftest import ROOT
from hydra_plugins.tunediff_launchers import FolderFirst
from test_sweep import LONG, composed, trained, until_free, weights
from tunediff import folders, processes
from tunediff.shapes import Refused, Stopped
from tunediff.study import faults
from tunediff.study.run import Run, found_by
from tunediff.study.train import study
from tunediff.study.work import work
from tunediff.sweep.plan import groups_of, members_in
from tunediff.training import Checkpoints, latest_checkpoint

LITTLE = ["budget.tokens=1024", "optimizer.batch=256", "activations.buffer=1024", "activations.fit_tokens=256"]
LITTLE += ["budget.latents=32", "budget.evaluation_tokens=256", "checkpoint_every=0"]
GOES_ON = "Then the same line goes on from what was saved."


# -- disks -----------------------------------------------------------------------------------------------------------

# what is written, and what becomes of the run where that cannot be
WRITES = {
    "config.yaml": "refused", "state.json": "refused", "step-*.ckpt": "finished", "training.parquet": "failed",
    "weights.safetensors": "failed", "findings.json": "failed", "report.html": "failed",
}  # fmt: skip
MORE = {
    "manifest.json": "refused",
    "identity.json": "refused", "step-*.json": "finished", "config.json": "failed", "latents.parquet": "failed",
    "neighbours.parquet": "failed",
}  # fmt: skip
ALL = {**WRITES, **MORE}


def slow(values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("begins", ("on_run_start", "on_multirun_start"))
@pytest.mark.parametrize("fails", ("mkdir", "write_bytes"))
def test_a_disk_that_takes_no_file_is_left_without_folders_of_a_run(tmp_path, monkeypatch, capsys, begins, fails):
    """A folder takes less than a file: the disk may take the first and not the other, or one folder and not the next."""
    place, whole = tmp_path / "mine" / "a" / "b" / "c", getattr(Path, fails)

    def full(path, *words, **named):
        if path.name in ("c", "written.partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, *words, **named)

    monkeypatch.setattr(Path, fails, full)
    hydra = {"run": {"dir": str(place)}, "sweep": {"dir": str(place)}}
    (tmp_path / "mine").mkdir()
    with pytest.raises(SystemExit):
        getattr(FolderFirst(), begins)(OmegaConf.create({"hydra": hydra}))
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"], "what was there before stays"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to, and the names of all files that took their place in it."""
    written, replace = set(), os.replace
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, "replace", lambda one, other: written.add(Path(other).name) or replace(one, other))
        study(composed(*LITTLE, "evaluation=[geometry]"), folder)
    return folder, written


def test_every_write_of_a_run_is_one_that_a_full_disk_is_tried_at(whole):
    assert not [name for name in whole[1] if not any(Path(name).match(known) for known in (*ALL, "owner.json"))]
    assert all(any(Path(name).match(known) for name in whole[1]) for known in ALL)


@pytest.mark.parametrize("name", [*WRITES, *slow(MORE)])
def test_a_full_disk_costs_a_checkpoint_or_ends_the_run_in_a_sentence(whole, tmp_path, monkeypatch, name):
    replace, full = os.replace, [True]

    def fills(one, other):
        if full[0] and Path(other).match(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(one))
        replace(one, other)

    folder, cfg = tmp_path / "run", composed(*LITTLE, "evaluation=[geometry]")
    monkeypatch.setattr(os, "replace", fills)
    if ALL[name] == "finished":
        study(cfg, folder)
        assert not (folder / "checkpoints").exists()
    else:
        with pytest.raises(Stopped, match=f"^No space left on device: .*{GOES_ON}"):
            study(cfg, folder)
    assert not list(folder.rglob("*.partial"))
    if ALL[name] == "refused":
        assert not folder.exists()
    else:
        assert folders.state_of(folder)["state"] == ALL[name]
    full[0] = False
    study(cfg, folder)
    assert folders.state_of(folder)["state"] == "finished" and weights(folder) == weights(whole[0])


@pytest.mark.parametrize("kilobytes", [20, *slow([1, 4, 100])])
def test_every_librarys_own_error_of_a_full_disk_is_known(whole, tmp_path, kilobytes):
    """No file may be longer than this: the process's own limit, which every library meets in its own way."""
    folder = tmp_path / "run"
    if (child := os.fork()) == 0:
        status = 9
        try:
            void = os.open(os.devnull, os.O_WRONLY)
            os.dup2(void, 1), os.dup2(void, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, resource.RLIM_INFINITY))
            study(composed(*LITTLE, "evaluation=[geometry]"), folder)
        except Stopped as stopped:
            status = 3 if "File too large" in str(stopped) else 4
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert not list(folder.rglob("*.partial")) and not folders.is_finished(folder, "")
    study(composed(*LITTLE, "evaluation=[geometry]"), folder)
    assert weights(folder) == weights(whole[0])


def test_a_quota_a_closed_folder_and_too_many_files_are_said_by_name(tmp_path):
    for number, said in (
        (errno.EDQUOT, "quota exceeded.*ask for more"),
        (errno.EROFS, "Read-only file system: there. Choose another folder"),
        (errno.EMFILE, "Too many open files.*ulimit -n"),
    ):
        with pytest.raises(Stopped, match=said), faults.said():
            raise OSError(number, os.strerror(number), "there")
    with pytest.raises(Stopped, match="No such|full|not|No space") as raised, faults.said():
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
    assert isinstance(raised.value, Refused)
    with pytest.raises(FileNotFoundError), faults.said():  # a file that is missing is no fault of the machine
        (tmp_path / "nothing").read_bytes()


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), *slow([torch.OutOfMemoryError("CUDA out of memory")])])
def test_a_member_without_memory_ends_alone_and_holds_nothing(tmp_path, monkeypatch, error):
    from tunediff.training import on_activations

    words = [[*LITTLE, "layer=1"], [*LITTLE, "layer=2"]]
    alone = trained(tmp_path / "alone", words[1])
    advance = on_activations.DictionaryTraining.advance

    def short(module, n, learner, *rest):
        if n == 0 and module.step == 2:
            raise error
        advance(module, n, learner, *rest)

    monkeypatch.setattr(on_activations.DictionaryTraining, "advance", short)
    runs = trained(tmp_path / "both", *words)
    assert "Memory ran out" in folders.state_of(runs[0].folder)["error"] and runs[1].error is None
    assert all(parameter.grad is None for parameter in runs[0].learner.dictionary.parameters())
    assert weights(runs[1]) == weights(alone[0])


def test_no_clock_that_can_jump_and_no_shared_memory_that_can_be_small_is_used():
    said = {path.name: path.read_text() for path in (ROOT / "src").rglob("*.py")}
    assert not [
        name
        for name, text in said.items()
        if re.search(r"time\.time\(|datetime\.now|multiprocessing|share_memory", text)
    ]


# -- members on their own --------------------------------------------------------------------------------------------


def spoil_config(folder):
    (folder / "config.yaml").write_text("a: [")


def change_config(folder):
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 7"))


def lose_config(folder):
    (folder / "config.yaml").unlink()


def spoil_state(folder):
    (folder / "state.json").write_bytes(b"\x00{")


@pytest.mark.parametrize("spoil", [spoil_config, spoil_state, *slow([change_config, lose_config])])
def test_a_member_with_a_rotten_folder_fails_in_its_sentence_and_the_others_train(tmp_path, spoil):
    words = [[*LITTLE, "layer=1"], [*LITTLE, "layer=2"]]
    members = members_in(tmp_path, [(some, composed(*some)) for some in words])
    (group,) = groups_of(tmp_path, members, [], pack=True, fits=lambda some: True)
    group.write()
    spoil(members[0].run.folder)
    assert work(group.folder) == 1
    first, second = (folders.read_json(member.run.folder / "state.json") for member in members)
    assert first["state"] == "failed" and re.search(
        "(config.yaml|state.json) (is|cannot be read)|type the same line again", first["error"]
    )
    assert second["state"] == "finished"


# -- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGUSR2, *slow([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])])
def test_a_study_that_is_asked_to_end_saves_says_interrupted_and_goes_on_to_the_same_bits(
    tmp_path, monkeypatch, number
):
    from tunediff.training import progress

    cfg = composed(*LITTLE)
    study(cfg, tmp_path / "whole")
    beat = progress.Pulse.on_train_batch_end

    def asked(pulse, trainer, module, *rest):
        if module.step == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # as someone who cannot wait
        beat(pulse, trainer, module, *rest)

    with monkeypatch.context() as m, pytest.raises(SystemExit) as left:
        m.setattr(progress.Pulse, "on_train_batch_end", asked)
        study(composed(*LITTLE, "checkpoint_every=1000"), tmp_path / "cut")
    assert left.value.code == 128 + number
    state = folders.read_json(tmp_path / "cut" / "state.json")
    assert state["state"] == "interrupted" and signal.Signals(number).name in state["error"]
    assert int(latest_checkpoint(tmp_path / "cut" / "checkpoints").stem[-7:]) in (2, 3)
    study(cfg, tmp_path / "cut")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_signal_before_or_after_training_is_answered_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "finish", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        study(composed(*LITTLE), tmp_path)
    assert left.value.code == 143
    assert folders.read_json(tmp_path / "state.json")["state"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


WORKER = """
import signal, sys, time
from tunediff import processes
signal.signal(signal.SIGTERM, lambda *_: (print("asked", flush=True), sys.exit(0)))
processes.end_with_launcher()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_worker_whose_launcher_is_gone_is_asked_to_save():
    """In a process of its own: one that does not end is ended."""
    environment = {**os.environ, processes.LAUNCHER: "1"}
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdout.readline() == "ready\n" and worker.poll() is None
        worker.stdin.close()
        assert worker.stdout.read() == "asked\n"
    assert worker.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_whatever_ends_the_launcher_the_worker_saves_first(tmp_path, number):
    from test_sweep import SMALL, states, step_at

    words = [*LONG, "budget.tokens=2000000", "checkpoint_every=1000", "layer=1,2"]
    command = [warm.python(), "train.py", "-m", *SMALL, *words, f"hydra.sweep.dir={tmp_path}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, **quiet) as process:
        while not any(state.get("step", 0) > 0 for state in states(tmp_path).values()):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
    until_free(tmp_path)
    assert all(step_at(group) > 0 for group in tmp_path.glob("groups/*"))
    assert {folders.read_json(path)["state"] for path in tmp_path.glob("*/state.json")} == {"interrupted"}


def test_how_a_process_ended_is_said_by_the_signals_name():
    assert "SIGKILL, as the system does where memory runs out" in processes.ending(-9)
    assert processes.ending(143) == "its process ended at SIGTERM"
    assert processes.ending(3) == "its process ended with status 3"


# -- the task of an array --------------------------------------------------------------------------------------------


def test_a_task_is_unpickled_without_anything_heavy():
    code = "import pickle, sys; from tunediff.sweep.task import Work; pickle.loads(pickle.dumps(Work('x'))); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "hydra", "omegaconf", "tunediff.study"} & {*said}


def test_a_signal_that_comes_before_the_handler_waits_for_it():
    from tunediff.sweep.task import python

    code = (
        "import os, signal, sys, time; os.kill(os.getpid(), signal.SIGUSR2); signal.signal(signal.SIGUSR2, lambda *_: print('heard'));"
        "print('stands'); signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])"
    )
    said = subprocess.run(f'{python()} -c "{code}"', shell=True, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["stands", "heard"]


def test_a_job_that_is_requeued_while_it_evaluates_has_not_failed(tmp_path, monkeypatch):
    """submitit ends the program from within the signal's handler, which is called wherever the program is."""
    from tunediff.study import work as working
    from tunediff.sweep.task import Work

    def requeue(*_):
        raise SystemExit(-1)

    class Long:
        def run(self, given):
            os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(working, "write_log", lambda folder: None)
    monkeypatch.setattr(working, "work", lambda folder, trust: found_by("long", Long(), None))
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as left:
            Work(str(tmp_path))()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert processes.ending(left.value.code) == "its process ended at SIGUSR2"
    assert isinstance(left.value.__context__, KeyboardInterrupt)


def test_a_task_that_ran_out_of_memory_is_told_the_setting_that_gives_more(monkeypatch):
    from tunediff.sweep import slurm

    said = {
        "OUT_OF_MEMORY|0:125": "OUT_OF_MEMORY",
        "FAILED|137:0": "FAILED by SIGKILL",
        "FAILED|0:9": "FAILED by SIGKILL",
    }
    for line, ended in said.items():
        monkeypatch.setattr(slurm, "call", lambda *words, line=line: line if words[0] == "sacct" else None)
        assert slurm.why("7_0") == ended
        assert slurm.cure(ended, 64.0) == ": out of memory, give it more (hydra.launcher.mem_gb, now 64)"
    assert slurm.cure("CANCELLED by SIGKILL", 64.0) == slurm.cure("FAILED", 64.0) == ""
    shown = "JobId=8 JobState=FAILED Reason=NonZeroExitCode ExitCode=0:9"
    monkeypatch.setattr(slurm, "call", lambda *words: shown if words[0] == "scontrol" else None)
    assert slurm.why("8") == "FAILED by SIGKILL"


def test_a_signal_that_comes_behind_the_last_step_is_answered_once_training_has_ended(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        saving = Checkpoints(tmp_path, seconds=1e9)
        saving.on_train_start(None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not heard  # it is noted, for the end of a step
        saving.on_train_end(None, None)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
