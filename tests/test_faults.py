"""Faults of the machine: a full disk, a folder that is read only, no memory, signals at any moment, a launcher that is gone."""

import contextlib
import errno
import fcntl
import io
import itertools
import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import tqdm
from omegaconf import OmegaConf

import warm
from conftest import ROOT
from hydra_plugins.tunediff_launchers import FolderFirst
from test_sweep import LONG, composed, trained, until_free, weights
from tunediff import folders, processes
from tunediff.folders import ownership, state
from tunediff.loggers import Csv, TensorBoard, Wandb, is_whole
from tunediff.settings import said_plainly
from tunediff.shapes import Refused, Rows, Stopped
from tunediff.study import faults
from tunediff.study import run as run_of_a_study
from tunediff.study.described import close_loggers, open_loggers
from tunediff.study.run import Run, found_by
from tunediff.study.train import study
from tunediff.study.trainer import in_processes
from tunediff.study.work import work
from tunediff.sweep.plan import groups_of, members_in
from tunediff.terminal import guard
from tunediff.training import Checkpoints, latest_checkpoint, on_activations

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
@pytest.mark.parametrize("fails", ("mkdir", "write_bytes", "written-7.partial"))
def test_a_disk_that_takes_no_file_is_left_without_folders_of_a_run(tmp_path, monkeypatch, capsys, begins, fails):
    """A folder takes less than a file: the disk may take the first and not the other, or one folder and not the next."""
    place, whole = tmp_path / "mine" / "a" / "b" / "c", getattr(Path, fails, Path.write_bytes)
    refused = fails if "." in fails else "written.partial"  # the eighth name, where there is room for bytes

    def full(path, *words, **named):
        if path.name in ("c", refused):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, *words, **named)

    monkeypatch.setattr(Path, whole.__name__, full)
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

    def noted(one, other):
        if Path(other).absolute().is_relative_to(folder):  # and not what the tests keep for themselves
            written.add(Path(other).name)
        replace(one, other)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, "replace", noted)
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


class Full:
    """A disk with room for so many bytes more, for files that a process appends to."""

    def __init__(self, monkeypatch, left):
        self.left, write = left, io.FileIO

        class Disk(write):
            def write(disk, data):
                if not self.left and len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                taken = super().write(bytes(data)[: self.left])
                self.left -= taken
                return taken

        monkeypatch.setattr("builtins.open", lambda path, mode="r", **more: Disk(path, mode.replace("b", "")))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_limit_on_files_that_no_import_fits_in_ends_the_program_in_a_sentence(capsys, number):
    with pytest.raises(SystemExit) as ended, said_plainly():
        raise OSError(number, os.strerror(number))
    assert ended.value.code == 1 and "error: Too many open files" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_of_a_response(tmp_path, monkeypatch):
    from tunediff.evaluations.behaviour.solving import KeptLines

    kept = KeptLines(tmp_path, "some")
    kept.write("a", {"text": "first"})
    before = (tmp_path / "outputs" / "some.jsonl").read_bytes()
    for room in (0, 7, len(before) - 1):
        with monkeypatch.context() as m, pytest.raises(OSError, match="No space left"):
            Full(m, room)
            kept.write("b", {"text": "other"})
        assert (tmp_path / "outputs" / "some.jsonl").read_bytes() == before
    kept.write("b", {"text": "other"})
    assert KeptLines(tmp_path, "some").known == {"a": {"text": "first"}, "b": {"text": "other"}}


@pytest.mark.parametrize("file", ["16_23.safetensors", "config.json"])
def test_a_full_disk_leaves_no_half_of_a_latent_cache(tmp_path, monkeypatch, file):
    from tunediff.evaluations.judging.delphi_cache import LatentCache

    replace, given = os.replace, SimpleNamespace(folder=tmp_path, dictionary=SimpleNamespace(latents=32))
    cache = LatentCache(latents=[1], files=4, context=8)
    ids, places, values = torch.zeros(2, 8, dtype=torch.long), torch.tensor([[0, 1, 17], [1, 2, 3]]), torch.ones(2)
    monkeypatch.setattr("tunediff.evaluations.judging.delphi_cache.chosen_latents", lambda *_, **__: [1])
    monkeypatch.setattr(LatentCache, "_read", lambda *_: (ids, places, values))
    monkeypatch.setattr(LatentCache, "_config", lambda *_: {})

    def fills(one, other):
        if Path(other).name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(one, other)

    with monkeypatch.context() as m, pytest.raises(OSError, match="No space left"):
        m.setattr(os, "replace", fills)
        list(cache.run(given))
    assert not (tmp_path / "latent_cache" / "dictionary").exists()
    list(cache.run(given))
    assert len(list((tmp_path / "latent_cache" / "dictionary").iterdir())) == 5


LOGGERS = [Csv, TensorBoard, lambda place: Wandb(place, id="one", group="test")]


@pytest.mark.parametrize("make", LOGGERS[:2] + slow(LOGGERS[2:]))
def test_a_logger_without_room_costs_itself_alone(tmp_path, caplog, monkeypatch, make):
    """Its folder is a file here, which whoever writes into it is told as an error of the system."""
    monkeypatch.setattr("tunediff.study.described.material", lambda _: {"layer": 1})
    for name in ("csv", "tensorboard", "wandb"):
        (tmp_path / name).write_text("")
    told = []
    good = SimpleNamespace(log_hyperparams=told.append, log_metrics=lambda *_, **__: None, finalize=told.append)
    loggers = open_loggers([make(str(tmp_path)), good], None, [], {})
    assert loggers == [good] and "is left out of this run: " in caplog.text
    bad = SimpleNamespace(finalize=lambda _: os.stat(tmp_path / "nothing"))
    close_loggers([bad, good], "success")
    assert told == [{"layer": 1, "study": {}}, "success"] and "has no end of this run: " in caplog.text


def test_tensorboards_error_of_a_full_disk_is_the_systems(tmp_path, monkeypatch):
    board = TensorBoard(str(tmp_path))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(board.experiment, "add_scalar", full)
    with pytest.raises(OSError, match="No space left"):
        board.log_metrics({"loss": 1.0}, step=1)


def test_a_file_of_wandb_that_is_cut_is_seen(tmp_path):
    file = tmp_path / "run.wandb"
    assert not is_whole(file)

    def piece(length, kind):
        return bytes(4) + length.to_bytes(2, "little") + bytes([kind]) + bytes(length)

    first = b":W&B\0\0\0"[:7]
    first += piece(40, 1) + piece(32768 - 7 - 47 - 7 - 3, 2)  # three bytes are left of the block, too few for a piece
    file.write_bytes(first + bytes(3) + piece(100, 4))
    assert is_whole(file)
    for length in (0, 7, 60, len(first), len(first) + 3, file.stat().st_size - 1):
        file.write_bytes((first + bytes(3) + piece(100, 4))[:length])
        assert not is_whole(file), length


def test_stored_activations_that_no_index_names_take_no_room(tmp_path, monkeypatch):
    from tunediff.activations import stored

    monkeypatch.setattr(stored, "SHARD_ROWS", 4)
    rows = (Rows(torch.ones(4, 2), torch.ones(4, 1, 2)) for _ in itertools.count())
    replace = os.replace

    def fills(one, other):
        if Path(other).name == "index.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(one, other)

    with monkeypatch.context() as m, pytest.raises(Stopped, match="No space left"), faults.said():
        m.setattr(os, "replace", fills)
        stored.store(rows, tmp_path, tokens=12, width=2, moments=1)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    (tmp_path / "shard-00007.bin").write_bytes(b"left by a process that was killed")
    stored.store(rows, tmp_path, tokens=12, width=2, moments=1)
    assert len(list(tmp_path.glob("shard-*"))) == 3 and stored.read_index(tmp_path)["rows"] == 12


def test_a_failure_is_said_on_a_disk_that_has_room_for_nothing_but_what_the_run_lets_go(tmp_path, monkeypatch):
    run = Run(composed(*LITTLE), tmp_path)
    run.begin()
    replace = os.replace

    def fills(one, other):
        if (tmp_path / "owner.json").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(one, other)

    with folders.held(tmp_path, "The run"):
        monkeypatch.setattr(os, "replace", fills)
        run.fail(OSError(errno.ENOSPC, "No space left on device"))
    assert folders.state_of(tmp_path)["state"] == "failed"


# -- open files ------------------------------------------------------------------------------------------------------


def test_too_few_open_files_fail_a_group_in_a_sentence_or_the_member_they_were_missing_for(tmp_path, monkeypatch):
    words = [[*LITTLE, "layer=1"], [*LITTLE, "layer=2"]]
    members = members_in(tmp_path, [(some, composed(*some)) for some in words])
    (group,) = groups_of(tmp_path, members, [], pack=True, fits=lambda some: True)
    first, second = (member.run.folder for member in members)
    group.write()
    with monkeypatch.context() as m:
        m.setattr(resource, "getrlimit", lambda _: (25, 25))
        assert work(group.folder) == 2
        with pytest.raises(Stopped, match=r"^2 processes have .*\(ulimit -n"):
            in_processes([], composed(*LITTLE, "trainer=ddp", "trainer.devices=2"), tmp_path, "The study")
        folders.say(second, state="finished")
        work(group.folder)
    said = r"2 members .* 26 files open, and the limit is 25. Raise the limit \(ulimit -n 4096\)"
    assert re.search(said, folders.read_state(first)["error"]) and folders.read_state(first)["state"] == "failed"
    assert folders.read_state(second)["state"] == "finished"

    group.write()
    flock, begun = fcntl.flock, []

    def few(number, how):
        if os.path.realpath(f"/proc/self/fd/{number}") == os.path.realpath(first / "lock"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        flock(number, how)

    monkeypatch.setattr(fcntl, "flock", few)
    monkeypatch.setattr("tunediff.study.work.train", lambda runs, *_, **__: begun.extend(runs))
    assert work(group.folder) == 1 and [run.folder.name for run in begun] == [second.name]
    assert "Too many open files" in folders.read_state(first)["error"]


# -- locks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("tunediff.folders.state.WAIT", 0.1)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_a_file_system_has_no_locks_a_file_keeps_others_out_and_that_is_said(
    tmp_path, monkeypatch, caplog, impatient, number
):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    refused = pytest.raises(Refused, match=rf"written by process {os.getpid()} on .* if that .* has ended, remove")
    with folders.held(tmp_path, "The run"):
        assert "has no locks: lock.soft keeps other processes out" in caplog.text
        assert folders.is_held(tmp_path)
        with refused, folders.held(tmp_path, "The run"):
            pass
    assert not folders.is_held(tmp_path) and not (tmp_path / "lock.soft").exists()
    with folders.locked(tmp_path, seconds=0):  # of stored activations too
        assert (tmp_path / "lock.soft").exists()


def test_a_lock_that_is_removed_lets_nobody_of_this_machine_in_while_its_holder_lives(tmp_path, impatient):
    with folders.held(tmp_path, "The run"):
        (tmp_path / "lock").unlink()
        assert folders.is_held(tmp_path)
        with (
            pytest.raises(Refused, match="being written by process .* Its lock was removed"),
            folders.held(tmp_path, "The run"),
        ):
            pass
        folders.check_held(tmp_path)
    assert not folders.is_held(tmp_path) and not (tmp_path / "owner.json").exists()
    left = {"process": os.getpid(), "host": socket.gethostname(), "since": "", "born": "a boot 17"}
    (tmp_path / "owner.json").write_text(json.dumps(left))  # of one that was killed, whose number this process has now
    with folders.held(tmp_path, "The run"):
        pass


def test_a_lock_that_is_no_file_is_refused_by_its_name(tmp_path, impatient):
    ways = (
        lambda place: place.symlink_to("elsewhere"),
        Path.mkdir,
        os.mkfifo,
        lambda place: place.symlink_to(tmp_path),
    )
    for n, make in enumerate(ways):
        for name in ("lock", "owner.json"):
            folder = tmp_path / f"{n}-{name}"
            folder.mkdir()
            make(folder / name)
            with (
                pytest.raises(Refused, match=f"{name} is a link, a folder or a pipe where a file"),
                folders.held(folder, "A"),
            ):
                pass
            if name == "lock" and (folder / name).exists():
                with pytest.raises(Refused, match="remove it"):
                    folders.is_held(folder)


def test_an_owner_that_says_nothing_of_a_process_keeps_nobody_out(tmp_path, impatient):
    here = f'"host": "{socket.gethostname()}"'
    numbers = ("1e400", "-1e400", "NaN", "true", "null", "{}", '"../self"', "9" * 40, "9" * 5000, "-1", "0")
    said = [f'{{"process": {n}, {here}, "since": "x", "born": {born}}}' for n in numbers for born in ('"x"', "1", "[]")]
    for words in (
        *said,
        "[]",
        "1e400",
        '{"born": "\\ud800"}',
        '{"process": 1, "host": {}, "since": [], "born": []}',
    ):
        (tmp_path / "owner.json").write_text(words)
        assert not folders.is_held(tmp_path), words
        with folders.held(tmp_path, "The run"):
            (tmp_path / "owner.json").write_text(words)
            if words in said[:3]:
                with pytest.raises(Refused, match="being written by"), folders.held(tmp_path, "The run"):
                    pass
                folders.check_held(tmp_path)


def test_whoever_lost_its_folder_to_another_process_stops_and_writes_nothing_there(tmp_path, monkeypatch):
    """As one on another machine takes it, where locks do not reach."""
    from tunediff.training import progress

    taken, stranger = [], {"process": 1, "host": "elsewhere", "since": "today", "born": None}
    beat = progress.Pulse._beat

    def takes(pulse, trainer, module):
        if module.step == 2 and not taken:
            (tmp_path / "run" / "owner.json").write_text(json.dumps(stranger))
            taken.append((tmp_path / "run" / "state.json").read_bytes())
        beat(pulse, trainer, module)

    monkeypatch.setattr(progress.Pulse, "_beat", takes)
    with pytest.raises(
        folders.Taken, match="is written by process 1 on elsewhere, since today. It was this process's own"
    ):
        study(composed(*LITTLE), tmp_path / "run")
    assert (tmp_path / "run" / "state.json").read_bytes() == taken[0]
    assert folders.read_json(tmp_path / "run" / "owner.json") == stranger
    assert list((tmp_path / "run" / "checkpoints").iterdir())  # the other one goes on from them


def test_a_folder_of_a_living_process_of_another_host_is_not_taken_and_one_of_a_killed_process_is(
    tmp_path, monkeypatch, impatient
):
    """Locks that keep nobody out stand for a file system on which they do not reach from one host to the other."""
    monkeypatch.setattr(ownership, "BEAT", 0.05)
    monkeypatch.setattr(ownership, "SETTLED", 0.5)
    monkeypatch.setattr(ownership, "_beating", [])
    monkeypatch.setattr(ownership, "_gone", set())
    monkeypatch.setattr(state, "locked", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    with folders.held(tmp_path, "The run"):
        said = folders.read_json(tmp_path / "owner.json")
        monkeypatch.setattr(socket, "gethostname", lambda: "there")
        with pytest.raises(Refused, match="by process .* on here.* do not reach"), folders.held(tmp_path, "The run"):
            pass
        folders.check_held(tmp_path)
    assert not (tmp_path / "owner.json").exists()
    (tmp_path / "owner.json").write_text(json.dumps(said))  # as a process that was killed leaves it
    with folders.held(tmp_path, "The run"):
        assert folders.read_json(tmp_path / "owner.json")["host"] == "there"
    assert not list(tmp_path.glob("owner*"))


def test_of_processes_that_begin_at_once_one_has_the_folder(tmp_path):
    owners = [{"process": n, "host": f"host {n}", "since": "now", "born": None} for n in range(8)]
    left, won = {"process": 9, "host": "gone", "since": "once", "born": None}, []

    def begins(owner):
        start.wait()
        for _ in range(3):
            if ownership.claim(tmp_path, owner):
                won.append(owner)
                return
            ownership.clear_away(tmp_path, left)  # each of them saw that this one was gone

    for _ in range(20):
        (tmp_path / "owner.json").write_text(json.dumps(left))
        start, won[:] = threading.Barrier(len(owners)), []
        threads = [threading.Thread(target=begins, args=(owner,)) for owner in owners]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        assert ownership.owner_of(tmp_path) in won
        ownership.give_up(tmp_path, ownership.owner_of(tmp_path))


def test_a_member_whose_folder_is_taken_ends_alone(tmp_path, monkeypatch):
    words = [[*LITTLE, "layer=1"], [*LITTLE, "layer=2"]]
    place = tmp_path / "both" / "0"
    advance, stranger = on_activations.DictionaryTraining.advance, {"process": 1, "host": "elsewhere", "since": "today"}

    def takes(module, n, learner, *rest):
        (place / "owner.json").write_text(json.dumps(stranger))
        advance(module, n, learner, *rest)

    monkeypatch.setattr(on_activations.DictionaryTraining, "advance", takes)
    place.mkdir(parents=True)
    with folders.held(place, "The run"):
        runs = trained(tmp_path / "both", *words)
    assert isinstance(runs[0].error, folders.Taken) and not (place / "dictionary").exists()
    assert folders.state_of(runs[1].folder)["state"] == "finished"


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), *slow([torch.OutOfMemoryError("CUDA out of memory")])])
def test_a_member_without_memory_ends_alone_and_holds_nothing(tmp_path, monkeypatch, error):
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


def test_an_evaluation_without_memory_ends_its_member_alone_and_holds_nothing(tmp_path, monkeypatch):
    held, found_by = [], run_of_a_study.found_by

    def short(name, evaluation, given):
        if given.folder.name == "1":
            return found_by(name, evaluation, given)
        large = torch.zeros(9)
        held.append(weakref.ref(large))
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."
        )

    monkeypatch.setattr(run_of_a_study, "found_by", short)
    words = [[*LITTLE, f"layer={layer}", "evaluation=[geometry]"] for layer in (1, 2)]
    runs = trained(tmp_path, *words)
    assert "Memory ran out" in folders.state_of(runs[0].folder)["error"] and held[0]() is None
    assert runs[1].error is None and (runs[1].folder / "report.html").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory")])
def test_a_checkpoint_without_memory_costs_itself_alone(tmp_path, monkeypatch, error):
    def short(*_):
        raise error

    saving, module = Checkpoints(tmp_path, seconds=1), SimpleNamespace(step=3)
    monkeypatch.setattr(Checkpoints, "write", short)
    assert not saving.save(module) and not list(tmp_path.iterdir())
    with pytest.raises(KeyError):
        error = KeyError("of the code")
        saving.save(module)


def test_what_all_members_share_fails_a_single_study_in_its_state(tmp_path, monkeypatch):
    def short(*_, **__):
        raise MemoryError

    monkeypatch.setattr("tunediff.study.train.fit", short)
    (tmp_path / "kept").write_text("")  # else nothing is left of a run that had not begun
    with pytest.raises(Stopped, match="Memory ran out"):
        study(composed(*LITTLE), tmp_path)
    assert folders.read_state(tmp_path)["state"] == "failed"


def test_shared_memory_that_is_too_small_for_nccl_names_the_cure():
    said = "NCCL error: unhandled system error. Last error: Error while creating shared memory segment /dev/shm/nccl-Xy (size 9637888)"
    with pytest.raises(Stopped, match=r"/dev/shm is too small .* --shm-size"), faults.said():
        raise RuntimeError(said)


def test_a_clock_that_jumps_changes_no_bit_no_choice_and_tells_no_negative_time(whole, tmp_path, monkeypatch):
    jumps = itertools.cycle([0.0, -3600.0, 3.2e7])
    now = time.time

    def jumping():
        return now() + next(jumps)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(tqdm.std, "time", jumping)
    monkeypatch.setattr(tqdm._monitor, "time", jumping)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    for where, name in ((sys, "excepthook"), (threading, "excepthook"), (logging, "raiseExceptions")):
        monkeypatch.setattr(where, name, getattr(where, name))
    guard()
    said = io.StringIO()
    with tqdm.tqdm(total=9, file=said, mininterval=0) as bar:
        for _ in range(9):
            bar.update()
            assert 0 <= bar.format_dict["elapsed"] < 60
    assert "9/9" in said.getvalue() and "-" not in said.getvalue()
    saved = Checkpoints.save

    def from_the_future(saving, module):
        saved(saving, module)
        for age, path in enumerate(
            sorted(saving.folder.glob("step-*"), reverse=True)
        ):  # the newest by step is the oldest
            os.utime(path, (now() + 1e7 * age, now() + 1e7 * age))
        return True

    monkeypatch.setattr(Checkpoints, "save", from_the_future)
    monkeypatch.setattr("tunediff.study.train.shutil.rmtree", lambda *_, **__: None)
    (run,) = trained(tmp_path / "jumping", [*LITTLE])
    assert weights(run) == weights(whole[0])
    kept = sorted(path.stem for path in (tmp_path / "jumping" / "checkpoints").glob("step-*.json"))
    assert latest_checkpoint(tmp_path / "jumping" / "checkpoints").stem == kept[-1] == "step-0000004"
    assert len(kept) == 2 and not folders.is_held(run.folder)


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
