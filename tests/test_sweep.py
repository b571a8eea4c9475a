"""A sweep: what is shared, what is skipped, what goes on, and that nobody notices who else was there."""

import contextlib
import copy
import functools
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest.mock import patch

import hydra
import pyarrow.parquet
import pytest
import torch
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf, open_dict

import warm
from conftest import ROOT
from hydra_plugins.tunediff_launchers import LocalLauncher
from test_study import LITTLE_TEXT, TWO_STEPS, call, findings
from tunediff import folders
from tunediff.dictionary import save_dictionary
from tunediff.settings import stream_key
from tunediff.shapes import Refused
from tunediff.study.finished import compare
from tunediff.study.run import Run
from tunediff.study.train import study, train
from tunediff.study.trainer import fit
from tunediff.study.work import work
from tunediff.sweep.launch import launch, returned
from tunediff.sweep.local import Local
from tunediff.sweep.plan import Member, Standing, groups_of, members_in
from tunediff.training import Checkpoints

SMALL = ["scale=smoke", "trainer=cpu", "evaluation=none", *LITTLE_TEXT]  # `words` that follow have the last word

RESAMPLED = "optimizer.resampling={_target_: tunediff.training.Resampling, every: 0.2, until: 0.9}"


@functools.cache
def composed_once(*words):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = hydra.compose("train", [*SMALL, *words])
    with open_dict(cfg):
        cfg.sweep = "test"
    return cfg


def composed(*words):
    return copy.deepcopy(composed_once(*words))


def trained(folder, *members, **options):
    """The runs of members (lists of overrides) as one group."""
    runs = []
    for n, words in enumerate(members):
        run = Run(composed(*words), folder / str(n))
        run.folder.mkdir(parents=True, exist_ok=True)
        run.begin()
        runs.append(run)
    train(runs, folder / "checkpoints", **options)
    return runs


def weights(run_or_folder):
    folder = getattr(run_or_folder, "folder", run_or_folder)
    return (folder / "dictionary" / "weights.safetensors").read_bytes()


def sweep_call(folder, *words, **options):
    return call("train.py", "-m", *SMALL, *words, f"hydra.sweep.dir={folder}", **options)


def states(folder):
    return {path.parent.name: folders.state_of(path.parent) for path in folder.glob("*/state.json")}


# -- packed = alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", ["live", pytest.param("stored", marks=pytest.mark.slow)])
def test_packed_members_have_the_bits_that_each_has_alone(tmp_path, activations):
    """Two layers, two kinds of dictionary, two seeds."""
    kinds = ["dictionary=l1_crosscoder", "dictionary=batchtopk_crosscoder"]
    members = [["layer=1", kinds[0], "seed=0"], ["layer=1", kinds[1], "seed=1"], ["layer=2", kinds[0], "seed=1"]]
    words = [f"activations={activations}", "budget.tokens=4096"]
    members = [[*own, *words] for own in [*members, ["layer=2", kinds[1], "seed=0"]]]
    if activations == "stored":
        members = [[*words, f"activations.folder={tmp_path / 'rows'}"] for words in members]
    together = trained(tmp_path / "together", *members)
    assert len({stream_key(run.cfg) for run in together}) == 1 and len({weights(run) for run in together}) == 4
    for n, words in enumerate(members):
        (alone,) = trained(tmp_path / f"alone-{n}", words)
        assert alone.identity == together[n].identity
        assert weights(alone) == weights(together[n]), words
        assert alone.learner.history == together[n].learner.history


def test_members_of_other_widths_normalisations_and_hookpoints_share_a_stream_too(tmp_path):
    members = [
        ["layer=2", "dictionary/normalisation=sequence_zscore"],
        ["layer=[1,3]", "budget.latents=96", "dictionary/hookpoint=mlp_out"],
        ["layer=3", "dictionary.normalisation.sink_multiple=1.05", "optimizer.learning_rate=0.01"],
    ]
    together = trained(tmp_path / "together", *members)
    for n, words in enumerate(members):
        assert weights(trained(tmp_path / f"alone-{n}", words)[0]) == weights(together[n]), words
    notes = json.loads((together[2].folder / "findings.json").read_text())["notes"]
    assert any("left out as attention sinks" in note for note in notes)


EVERY = sorted(path.stem for path in (ROOT / "conf" / "dictionary").glob("*.yaml") if path.stem != "transcoder_adapter")
OTHERS = [["dictionary/sparsity=matryoshka"], ["dictionary=l1_crosscoder", "layer=[1,3]", RESAMPLED]]
MEASURED = ("difference_sae", "lora_sae", "linear_crosscoder", "dfc")  # each reads or writes in a way of its own


def test_every_dictionary_trains_in_one_group_is_measured_and_goes_on_to_the_bit_after_a_kill(
    tmp_path, monkeypatch, ticks
):
    members = [*([f"dictionary={option}"] for option in EVERY), *OTHERS]
    small = [
        "model_pair=toy_lora",
        "budget.tokens=12288",
        "budget.evaluation_tokens=300",
        "budget.dead_after=4000",
        "checkpoint_every=4",
    ]
    members = [[*words, *small] for words in members]  # a pair by adapter has a place for every one of them
    fidelity, geometry = (f"evaluation=[{names}]" for names in ("fidelity,geometry", "geometry"))
    measured = [[*words, fidelity if words[0].endswith(MEASURED) else geometry] for words in members]
    whole = trained(tmp_path / "whole", *measured)
    assert len({stream_key(run.cfg) for run in whole}) == 1 and len({weights(run) for run in whole}) == len(members)
    for run in whole:
        last = run.learner.history[-1]
        reached = [record["explained_variance/pooled"] for record in run.learner.history]
        assert run.error is None and last["l0"] > 0, run.cfg.dictionary
        assert reached[-1] > -1 or reached[-1] > reached[0], run.cfg.dictionary  # raw adapters begin far below
        scheduled = [name for name in last if name.startswith("schedule/")]
        assert "schedule/learning_rate" in scheduled and len(scheduled) > 1
        if run.cfg.evaluation.get("fidelity"):
            found = findings(run.folder)
            assert found["fidelity/explained_variance/pooled"] > min(-1, reached[0]) and found["fidelity/l0/mean"] > 0
            assert "fidelity/dead_fraction" in found
    killed_at(tmp_path / "cut", measured, 9, monkeypatch, SystemExit(9))
    runs = [Run(composed(*words), tmp_path / "cut" / str(n)) for n, words in enumerate(measured)]
    with monkeypatch.context() as m:
        m.setattr(Run, "finish", lambda run, *_: save_dictionary(run.learner.dictionary, run.folder / "dictionary", {}))
        train(runs, tmp_path / "cut" / "checkpoints")
    for one, again in zip(whole, runs, strict=True):
        assert weights(one) == weights(again) and one.learner.history == again.learner.history, one.cfg.dictionary


def test_an_adapter_inside_the_models_has_a_process_of_its_own_beside_a_group(tmp_path):
    words = [["dictionary=transcoder_adapter", f"dictionary.sparsity.coefficient={c}"] for c in (1e-3, 1e-2)]
    members = [*words, ["dictionary=l1_crosscoder"], ["dictionary=topk_crosscoder"]]
    made = members_in(tmp_path, [(own, composed(*own)) for own in members])
    groups = groups_of(tmp_path, made, [], pack=True, fits=lambda some: True)
    assert sorted(len(group.members) for group in groups) == [1, 1, 2]


# -- a member that fails ---------------------------------------------------------------------------------------------


def test_a_member_that_explodes_is_dropped_and_the_others_go_on(tmp_path):
    fine, bad = ["layer=1"], ["layer=1", "optimizer.learning_rate=1e30", "seed=3"]
    together = trained(tmp_path / "together", fine, bad)
    assert together[0].error is None and "is not finite at step" in str(together[1].error)
    assert weights(together[0]) == weights(trained(tmp_path / "alone", fine)[0])
    state = folders.state_of(together[1].folder)
    assert state["state"] == "failed" and "is not finite" in state["error"]
    assert "Traceback" in (together[1].folder / "run.log").read_text()
    assert not (tmp_path / "together" / "checkpoints").exists()


def test_a_layer_that_overflows_stops_those_who_read_it_and_no_other(tmp_path, monkeypatch):
    from tunediff import models

    load = models.ModelSource.weights

    def broken(source, *under):
        model = load(source, *under)
        if source.path.endswith("tuned"):
            with torch.no_grad():
                model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
        return model

    monkeypatch.setattr(models.ModelSource, "weights", broken)
    runs = trained(tmp_path, ["layer=1"], ["layer=2"])
    assert runs[0].error is None and "tuned.resid_post.2 gives a value that is not finite" in str(runs[1].error)


def test_what_was_trained_is_not_trained_again_because_an_evaluation_failed(tmp_path, monkeypatch):
    from tunediff.evaluations import Geometry

    with monkeypatch.context() as m:
        m.setattr(Geometry, "run", lambda *_: 1 / 0)
        runs = trained(tmp_path, ["layer=1", "evaluation=[geometry]", "logger=wandb"], ["layer=2"])
    assert "division by zero" in str(runs[0].error) and runs[1].error is None
    assert folders.state_of(runs[0].folder)["state"] == "failed"
    before = weights(runs[0])
    again = Run(composed("layer=1", "evaluation=[geometry]", "logger=wandb"), runs[0].folder)
    again.begin()
    with monkeypatch.context() as m:
        m.setattr("tunediff.training.on_activations.DictionaryTraining.training_step", lambda *_: 1 / 0)
        train([again], tmp_path / "checkpoints")
    assert again.error is None and weights(again) == before and "geometry/count/shared" in findings(again.folder)
    assert not (tmp_path / "checkpoints").exists()
    pieces = sorted(runs[0].folder.glob("wandb/offline-run-*/*.wandb"))  # the same W&B run, taken up again
    assert len(pieces) == 2 and {offline_run(path)[0].run_id for path in pieces} == {again.identity}
    assert "geometry/count/shared" in offline_run(pieces[1])[3]


# -- exact resumption ------------------------------------------------------------------------------------------------

LONG = ["budget.tokens=12288", "optimizer.batch=256", "budget.buffer=2048"]  # 48 steps


@pytest.fixture
def ticks(monkeypatch):
    """The clock of checkpoints ticks at every step and at every checkpoint, and `checkpoint_every` counts that; so does the
    clock of the heartbeat."""
    for name in ("checkpoints", "progress"):
        clock = SimpleNamespace(monotonic=itertools.count(1).__next__)
        monkeypatch.setattr(f"tunediff.training.{name}.time", clock)


def killed_at(folder, members, step, monkeypatch, how):
    """Trains until `step` and dies there as `how` says, with a checkpoint at an earlier step."""
    from tunediff.training import on_activations as fit

    whole = fit.DictionaryTraining.training_step

    def dies(module, batch, index):
        if module.step == step:
            raise how
        return whole(module, batch, index)

    with monkeypatch.context() as m:
        m.setattr(fit.DictionaryTraining, "training_step", dies)
        with pytest.raises(type(how)):
            trained(folder, *members)


@pytest.mark.parametrize(
    ("kind", "packed", "step"),
    [
        pytest.param("live", False, 19, marks=pytest.mark.slow),
        ("live", True, 41),
        pytest.param("stored", False, 42, marks=pytest.mark.slow),
        pytest.param("stored", True, 17, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_step_it_becomes_what_it_would_have_become(tmp_path, monkeypatch, ticks, kind, packed, step):
    common = [*LONG, f"activations={kind}", "checkpoint_every=9", "logger=csv"]
    common += [f"activations.folder={tmp_path / 'rows'}"] if kind == "stored" else []
    first = [*common, "layer=2", "budget.companions=[twin,noise]"]
    members = [first, [*common, "layer=1", "dictionary=l1_crosscoder"]][: 2 if packed else 1]
    whole = trained(tmp_path / "whole", *members)
    folder = tmp_path / "cut"
    killed_at(folder, members, step, monkeypatch, SystemExit(9))
    saved = [path.name for path in (folder / "checkpoints").glob("*.ckpt")]
    steps = {name.partition(".")[0] for name in saved}
    assert len(steps) in (1, 2) and len(saved) == 2 * len(steps), saved  # members and stream of the last two steps
    runs = [Run(composed(*words), folder / str(n)) for n, words in enumerate(members)]
    train(runs, folder / "checkpoints")
    for one, again in zip(whole, runs, strict=True):
        beside = [path.relative_to(one.folder) for path in one.folder.glob("*/*/weights.safetensors")]
        assert len(beside) == (2 if one is whole[0] else 0)
        for path in ("dictionary/weights.safetensors", *beside):
            assert (one.folder / path).read_bytes() == (again.folder / path).read_bytes(), path
        assert one.learner.history == again.learner.history
        rows = (again.folder / "csv" / "metrics.csv").read_text()
        assert rows == (one.folder / "csv" / "metrics.csv").read_text()


def test_one_member_of_a_group_goes_on_without_the_others(tmp_path, monkeypatch, ticks):
    """As after launcher.pack=false, or a line that names fewer members."""
    members = [[*LONG, "layer=2", "checkpoint_every=9"], [*LONG, "layer=1", "checkpoint_every=9"]]
    whole = trained(tmp_path / "whole", *members)
    killed_at(tmp_path / "cut", members, 30, monkeypatch, SystemExit(9))
    from tunediff.training import latest_checkpoint

    saved = latest_checkpoint(tmp_path / "cut" / "checkpoints")
    run = Run(composed(*members[1]), tmp_path / "cut" / "1")
    train([run], tmp_path / "alone" / "checkpoints", resume_from=saved)
    assert weights(run) == weights(whole[1])


def test_a_group_that_is_requeued_goes_on_without_the_member_that_failed_before(tmp_path, monkeypatch, ticks):
    from tunediff.training import on_activations as fit

    words = [[*LONG, "checkpoint_every=9", own] for own in ("layer=1", "optimizer.learning_rate=1e30")]
    members = members_in(tmp_path, [(some, composed(*some)) for some in words])
    (group,) = groups_of(tmp_path, members, [], pack=True, fits=lambda some: True)
    group.write()
    step = fit.DictionaryTraining.training_step

    def dies(module, batch, index):
        if module.step == 30:
            raise SystemExit(9)
        return step(module, batch, index)

    with monkeypatch.context() as m:
        m.setattr(fit.DictionaryTraining, "training_step", dies)
        with pytest.raises(SystemExit):
            work(group.folder)
    assert [folders.state_of(member.run.folder)["state"] for member in members] == ["interrupted", "failed"]
    assert work(group.folder) == 1
    states = [folders.state_of(member.run.folder) for member in members]
    assert [state["state"] for state in states] == ["finished", "failed"] and "is not finite" in states[1]["error"]


def test_preemption_saves_at_the_step_and_calls_the_handler_that_was_there(tmp_path):
    from tunediff.training import latest_checkpoint, progress

    called = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    members = [[*LONG, "layer=2"]]
    whole = trained(tmp_path / "whole", *members)
    beat = progress.Pulse._beat

    def once(pulse, trainer, module):
        if module.step == 0:
            os.kill(os.getpid(), signal.SIGUSR2)
        beat(pulse, trainer, module)

    progress.Pulse._beat = once
    try:
        with pytest.raises(SystemExit):
            trained(tmp_path / "cut", *members)
    finally:
        progress.Pulse._beat = beat
    handler = signal.signal(signal.SIGUSR2, before)
    assert called == [signal.SIGUSR2] and handler.__name__ == "<lambda>"
    assert latest_checkpoint(tmp_path / "cut" / "checkpoints").name == "step-0000001.ckpt"
    run = Run(composed(*members[0]), tmp_path / "cut" / "0")
    train([run], tmp_path / "cut" / "checkpoints")
    assert weights(run) == weights(whole[0])


# -- several processes for one dictionary ----------------------------------------------------------------------------


# each process has its own part of the same batches; more sinks than usual, and a buffer so small that one sometimes holds
# nothing of it
PARTS = [
    "layer=2",
    "dictionary.normalisation.sink_multiple=1.2",
    "optimizer.batch=512",
    "budget.tokens=36864",
    "activations.buffer=1536",
    "checkpoint_every=0.2",
]
DDP = [*PARTS, "trainer=ddp", "trainer.accelerator=cpu"]
KINDS = ["dictionary=l1_crosscoder", "dictionary=batchtopk_crosscoder"]  # packed


def test_two_processes_reach_the_loss_of_one(tmp_path, monkeypatch):
    shorter = "budget.tokens=18432"
    one = trained(tmp_path / "one", *([*PARTS, shorter, choice] for choice in KINDS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launched(tmp_path / "two", KINDS, words=[*DDP, shorter])
    for run in one:
        other = pyarrow.parquet.read_table(tmp_path / "two" / run.identity / "tables" / "training.parquet").to_pydict()
        assert len(other["step"]) == 3
        for name, values in other.items():
            mine = [record[name] for record in run.learner.history]
            assert values == pytest.approx(mine, rel=5e-3, abs=1e-4), name
            assert values[0] == pytest.approx(mine[0], rel=1e-5, abs=1e-6), name


@pytest.mark.slow
def test_two_processes_go_on_to_the_bit_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launched(tmp_path / "two", KINDS, words=DDP)
    both = "dictionary=l1_crosscoder,batchtopk_crosscoder"
    command = [warm.python(), "train.py", "-m", *(word for word in SMALL if word != "trainer=cpu"), *DDP, both]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = tmp_path / "killed"
    with subprocess.Popen([*command, f"hydra.sweep.dir={killed}"], cwd=ROOT, **quiet) as process:
        while not any(step_at(group) for group in killed.glob("groups/*")):
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    until_free(killed)
    assert 0 < max(step_at(group) for group in killed.glob("groups/*")) < 72
    launched(killed, KINDS, words=DDP)
    names = [path.parent.name for path in (tmp_path / "two").glob("*/identity.json")]
    assert len(names) == 2
    for name in names:
        assert weights(killed / name) == weights(tmp_path / "two" / name)


@pytest.mark.parametrize("how", [SystemExit(143), KeyboardInterrupt()])
def test_a_run_that_is_stopped_says_the_step_at_which_it_was(tmp_path, how):
    module, felt = SimpleNamespace(step=2, steps=9), []

    def go(module, **_):
        module.step = 7
        raise how

    trainer = SimpleNamespace(callbacks=[], global_rank=0, fit=go)
    with pytest.raises(type(how)):
        fit(trainer, module, Checkpoints(tmp_path, seconds=300), tokens=1, beat=felt.append)
    assert felt == [7]


def test_the_members_of_a_sweep_that_was_interrupted_say_so_and_no_other_signal(tmp_path, monkeypatch):
    started = {name: [warm.COLD, "-c", code] for name, code in (("a", "import time; time.sleep(60)"), ("b", "exit(3)"))}
    groups = []
    for name, command in started.items():
        folders.make_folder(tmp_path / name)
        folders.say(tmp_path / name, identity=name, state=folders.RUNNING, step=1)
        member = SimpleNamespace(run=SimpleNamespace(folder=tmp_path / name))
        start = functools.partial(subprocess.Popen, command, stdin=subprocess.PIPE)
        groups.append(SimpleNamespace(members=[member], start=lambda *, gpu, start=start: start()))

    def interrupted(_):
        while folders.read_state(tmp_path / "b")["state"] != folders.INTERRUPTED and asked.append(0) is None:
            return time_slept(0.05)
        raise KeyboardInterrupt

    asked, time_slept = [], time.sleep
    monkeypatch.setattr("tunediff.sweep.local.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Local(parallel=2).run(tmp_path, groups, [])
    said = {name: folders.read_state(tmp_path / name)["error"] for name in started}
    assert said == {"a": "the sweep was interrupted", "b": "its process ended with status 3"}


def test_what_became_of_a_member_is_told_by_the_table_alone(capfd):
    member = SimpleNamespace(run=SimpleNamespace(cfg=None))
    assert returned(member, ["seed=1"], None, 0.5).return_value == 0.5
    with pytest.raises(CompactHydraException):
        _ = returned(member, ["seed=1"], CompactHydraException("1 of 2 members did not end well")).return_value
    assert capfd.readouterr().err == ""


def until_free(sweep):
    """The processes of a launcher that was killed end by themselves."""
    begun = time.monotonic()
    while any(folders.is_held(path.parent) for path in sweep.glob("*/config.yaml")):
        assert time.monotonic() - begun < 30
        time.sleep(0.1)


# -- the launcher ----------------------------------------------------------------------------------------------------


def launched(folder, *axes, words=()):
    """A sweep as Hydra hands it to the launcher: the product of the axes, `words` in common."""
    overrides = [[*SMALL, *words, *choice] for choice in itertools.product(*axes)]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        common = [*SMALL, *words, f"hydra.sweep.dir={folder}", "sweep=test"]
        config = hydra.compose("train", common, return_hydra_config=True)

        def compose(_, own):
            return hydra.compose("train", own, return_hydra_config=True)

        with patch.object(sys, "executable", warm.python()):
            return launch(config, compose, overrides, Local(parallel=None))


def test_a_member_that_the_sweeper_composed_to_see_whether_it_can_be_is_not_composed_again(tmp_path):
    composed = []

    def compose(master, words):
        composed.append(words)
        return OmegaConf.create({"words": words})

    loader = SimpleNamespace(load_sweep_config=compose)
    launcher = LocalLauncher()
    config = OmegaConf.create({"dry_run": False, "sweep": "s", "hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}})
    launcher.setup(hydra_context=SimpleNamespace(config_loader=loader), task_function=None, config=config)
    for batch in ([["seed=0"], ["seed=1"]], [["seed=2"], ["seed=2"]], [["seed=0"]]):  # twice in a line, and once more
        for _ in range(2):
            for words in batch:
                handed = loader.load_sweep_config(config, words)
                assert handed == {"words": words}
                del handed["words"]  # whoever has it may change it
    assert composed == [["seed=0"], ["seed=1"], ["seed=2"]]


def test_a_member_whose_folder_rotted_holds_nobody_up(tmp_path, capfd):
    words = TWO_STEPS
    launched(tmp_path, ["seed=0", "seed=1"], words=words)
    rotten, whole = sorted(path.parent for path in tmp_path.glob("*/state.json"))
    for name in ("state.json", "dictionary/weights.safetensors"):
        file = rotten / name
        kept = file.read_bytes()
        file.write_bytes(kept.replace(b"0", b"1") if name == "state.json" else kept[:-1] + bytes([kept[-1] ^ 1]))
        (tmp_path / "sweep.json").write_text("{")
        returns = launched(tmp_path, ["seed=0", "seed=1", f"seed={2 + len(name)}"], words=words)
        said = capfd.readouterr().out
        assert "left alone" in said and f"{name} is not as it was written" in said and "1 to run" in said
        assert [one.status.name for one in returns].count("COMPLETED") == 2
        file.write_bytes(kept)
    assert folders.state_of(whole)["state"] == "finished" and len(states(tmp_path)) == 4


def refused(*arguments, **options):
    said = io.StringIO()
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stderr(said):
        launched(*arguments, **options)
    assert caught.value.code == 2
    return said.getvalue()


def test_the_same_line_again_trains_nothing_and_says_what_differs_in_another(tmp_path, capfd):
    fixed = ["dictionary.sparsity.k_schedule.over=0"]
    sweep_call(tmp_path, "layer=1,2", *fixed, "sweep=test")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/dictionary/weights.safetensors")}
    returns = launched(tmp_path, ["layer=1", "layer=2"], words=fixed)
    said = capfd.readouterr().out
    assert "2 members, 0 to run" in said and len(re.findall(r"layer=\d +\w+ +finished", said)) == 2
    assert [one.return_value for one in returns] == [None, None]  # no evaluation, no metric
    assert len(before) == 2 and before == {path: path.stat().st_mtime_ns for path in before}

    launched(tmp_path, ["layer=1", "layer=3"], words=[*fixed, "dictionary.sparsity.k=13", "dry_run=true"])
    said = capfd.readouterr().out
    assert re.search(r"layer=1 +\w+ +new: like \w+, but dictionary.sparsity.k 12 -> 13\n", said), said
    assert re.search(r"layer=3 +\w+ +new: like \w+, but dictionary.sparsity.k 12 -> 13, layer \d -> 3\n", said), said

    # a run is known by its identity: a folder that is named like another is not taken for it
    run = next(iter(before)).parents[1]
    folders.say(run, identity="another")
    launched(tmp_path, ["layer=1", "layer=2"], words=[*fixed, "dry_run=true"])
    assert "2 members, 1 to run" in capfd.readouterr().out


def test_what_is_done_with_a_member_hangs_on_how_it_stands_and_not_on_words(tmp_path):
    for standing in Standing:
        member = Member(Run(composed(), tmp_path), [], standing, "finished, running elsewhere")
        assert member.is_left is (
            standing not in (Standing.FINISHED, Standing.QUEUED, Standing.ELSEWHERE, Standing.UNREADABLE)
        )
        assert ("running elsewhere" in member.status) is (standing is Standing.ELSEWHERE or "{}" in standing.value)


def test_a_dry_run_says_what_it_would_take_and_leaves_nothing(tmp_path, capfd):
    said = sweep_call(tmp_path / "sweep", "layer=1,2", "seed=0,1,0", "dry_run=true")  # one seed twice is one member
    assert "4 members, 4 to run in 1 processes" in said
    assert re.search(r"\n0 +4 +1,2 +8,192 +0\.\d+ GB +0\.\d+ GB +\d+ s +\d+ s\n", said), said
    assert "hours of one cpu" in said and not (tmp_path / "sweep").exists()
    assert study(composed("dry_run=true"), tmp_path / "one") is None
    assert "8,192" in capfd.readouterr().out and not (tmp_path / "one").exists()


def test_members_that_do_not_fit_together_are_split_and_pack_false_parts_all(tmp_path, capfd):
    def groups(*words):
        launched(tmp_path, [f"seed={n}" for n in range(4)], words=["budget.latents=2000", "dry_run=true", *words])
        said = capfd.readouterr().out
        return int(re.search(r"(\d+) processes", said)[1]), said

    whole = groups()
    memory = float(re.search(r"\n0 +4 +\d+ +[\d,]+ +([\d.]+) GB", whole[1])[1])
    assert whole[0] == 1 and groups("launcher.pack=false")[0] == 4
    assert groups(f"launcher.memory_gb={memory - 0.02}")[0] == 2
    alone = groups("launcher.memory_gb=0.01")
    assert alone[0] == 4 and "alone is estimated at more than 0.0 GB" in alone[1]


@pytest.mark.slow
def test_one_process_a_member_gives_the_same_bits(tmp_path):
    packed = trained(tmp_path / "packed", ["layer=1"], ["layer=2"])
    launched(tmp_path / "parted", ["layer=1", "layer=2"], words=["launcher.pack=false"])
    assert len(list((tmp_path / "parted" / "groups").iterdir())) == 2
    for run in packed:
        assert weights(run) == weights(tmp_path / "parted" / run.identity)


KILLED = [*LONG, "budget.tokens=24576", "checkpoint_every=0.2", "logger=csv"]
LONGER = "budget.tokens=40960"
MEMBERS = [["layer=1", "layer=2"], ["seed=0", "seed=1"]]


@pytest.mark.parametrize(
    ("kills", "axes", "count", "length"),
    [(1, MEMBERS[:1], 2, []), pytest.param(3, MEMBERS, 4, [LONGER], marks=pytest.mark.slow)],
)
def test_kills_lose_nothing_and_double_nothing(tmp_path, capfd, kills, axes, count, length):
    """SIGKILL at random moments of one packed sweep, started again each time; at last the line is typed again."""
    words = [*KILLED, *length]
    launched(tmp_path / "whole", *axes, words=words)
    folder, draw = tmp_path / "killed", torch.Generator().manual_seed(0)
    members = members_in(folder, [(own, composed(*words, *own)) for own in itertools.product(*axes)])
    (group,) = groups_of(folder, members, [], pack=True, fits=lambda some: True)
    group.write()
    saved = 0
    for _ in range(kills):
        process = subprocess.Popen([warm.COLD, "-m", "tunediff.study.work", str(group.folder)], cwd=ROOT)
        target = saved + 2 + int(30 * torch.rand((), generator=draw))
        begun = time.monotonic()
        while step_at(group.folder) < target:
            assert process.poll() is None and time.monotonic() - begun < 60, f"it ended before step {target}"
            time.sleep(0.02)
        time.sleep(0.3 * float(torch.rand((), generator=draw)))
        process.kill()
        process.wait()
        until_free(folder)
        assert step_at(group.folder) >= saved
        saved = step_at(group.folder)
    assert saved > 2 * kills and not (folder / members[0].run.identity / "dictionary").exists()
    capfd.readouterr()
    launched(folder, *axes, words=words)
    said = capfd.readouterr().out
    assert said.count("goes on from step") == count and f"{count} of {count} members are finished" in said
    same_runs(folder, tmp_path / "whole")


def step_at(group):
    return max(
        (int(re.search(r"step-(\d+)", p.name)[1]) for p in group.glob("checkpoints/step-*[0-9].json")), default=0
    )


def same_runs(one, other):
    """Two sweeps left the same runs: weights, curves and logged rows, and nothing of their checkpoints."""
    names = sorted(path.parent.name for path in one.glob("*/identity.json"))
    assert names == sorted(path.parent.name for path in other.glob("*/identity.json")) and len(names) > 1
    for name in names:
        a, b = one / name, other / name
        assert weights(a) == weights(b)
        assert (a / "csv" / "metrics.csv").read_text() == (b / "csv" / "metrics.csv").read_text()
        tables = [pyarrow.parquet.read_table(path / "tables" / "training.parquet").to_pydict() for path in (a, b)]
        assert tables[0] == tables[1] and tables[0]["step"] == sorted(set(tables[0]["step"]))
    assert not list(one.rglob("*.ckpt")) and not list(one.rglob("*.partial"))


@pytest.mark.slow
def test_ten_kills_of_the_whole_command(tmp_path):
    """The same by the command that is typed: launcher and worker die together."""
    words = [*KILLED, "budget.tokens=81920", "layer=1,2", "seed=0,1"]
    sweep_call(tmp_path / "whole", *words)
    folder, draw, saved = tmp_path / "killed", torch.Generator().manual_seed(0), 0
    for _ in range(10):
        command = [warm.python(), "train.py", "-m", *SMALL, *words, f"hydra.sweep.dir={folder}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet) as process:
            target = saved + 5 + int(20 * torch.rand((), generator=draw))
            while max(map(step_at, folder.glob("groups/*")), default=0) < target:
                assert process.poll() is None
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
        saved = max(map(step_at, folder.glob("groups/*")))
    said = sweep_call(folder, *words)
    assert "goes on from step" in said and "4 of 4 members are finished" in said
    same_runs(folder, tmp_path / "whole")


def test_a_child_saves_and_ends_when_its_launcher_is_gone_and_the_folder_is_free_again(tmp_path):
    words = [*LONG, "budget.tokens=2000000", "checkpoint_every=1000"]
    command = [warm.python(), "train.py", "-m", *SMALL, *words, "layer=1,2", f"hydra.sweep.dir={tmp_path}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, **quiet) as process:
        while not any(s.get("step", 0) > 0 for s in states(tmp_path).values()):
            time.sleep(0.1)
        assert "is being written by process" in refused(tmp_path, ["layer=1", "layer=2"])  # two sweeps on one folder
        run = next(path.parent for path in tmp_path.glob("*/config.yaml"))
        with pytest.raises(Refused, match=r"The run .* is being written by process \d+ on"):
            study(composed(), run)
        process.kill()  # the launcher alone
    until_free(tmp_path)
    assert {folders.read_json(path)["state"] for path in tmp_path.glob("*/state.json")} == {"interrupted"}
    assert step_at(next(tmp_path.glob("groups/*"))) > 0


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (["layer=1", "layer=9"], "error: layer=9: layer=9 is out of range"),
        (
            ["dictionary.sparsity.k=8", "dictionary.sparsity.k=80"],
            "error: dictionary.sparsity.k=80: dictionary.sparsity.k=80 is larger than the dictionary",
        ),
        (
            ["budget.latents=99", "budget.latents=many"],
            "error: budget.latents=many: dictionary.latents=many: give a number from 1, or a multiple of the width",
        ),
        (["logger=none", "logger=wandb"], "but there is no key: run `wandb login` first"),
    ],
)
def test_a_bad_member_is_refused_before_any_runs(tmp_path, monkeypatch, axis, message):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    words = ["logger.wandb.offline=false"] if "wandb" in axis[1] else []
    assert message in refused(tmp_path, *([[axis[1]], words] if words else [axis]))
    assert not list(tmp_path.glob("*/config.yaml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra.sweep.dir=/dev/null/sweep"], "error: Cannot make the folder /dev/null/sweep: Not a directory."),
        (["laier=1,2"], "error: laier is not a setting here. Did you mean layer?"),
    ],
)
def test_a_bad_line_is_answered_in_one_sentence(words, message):
    said = call("train.py", "-m", *SMALL, *words, good=False)
    assert message in said and "Traceback" not in said


# -- elsewhere -------------------------------------------------------------------------------------------------------


def offline_run(path):
    """What a .wandb file holds: its run record, history rows and summary. The file is a log of protobuf records in
    blocks of 32 KiB, each piece with checksum, length and type (whole, first, middle, last)."""
    from wandb.proto import wandb_internal_pb2

    data, at, pieces, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            records.append(record)
            pieces = b""

    def items(some):
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in some}

    run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    config = items(run.config.update)
    for record in records:
        if record.WhichOneof("record_type") == "config":
            config |= items(record.config.update)
    history = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    summary = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    return run, config, history, summary


def test_one_process_logs_as_many_wandb_runs_as_members_and_they_read_back(tmp_path):
    sweep_call(
        tmp_path,
        "layer=1",
        "dictionary=l1_crosscoder,batchtopk_crosscoder",
        "evaluation=[fidelity]",
        "logger=[wandb,csv,tensorboard]",
        "sweep=night",
    )
    files = list(tmp_path.glob("*/wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and len(list((tmp_path / "groups").iterdir())) == 1
    for path in files:
        folder = path.parents[2]
        run, config, history, summary = offline_run(path)
        assert run.run_id == folder.name and run.run_group == "night" and run.job_type == "train"
        assert set(run.tags) == {"resid_post", f"layer {config['layer']}"}
        settings = json.loads((folder / "identity.json").read_text())["settings"]
        assert config["dictionary.sparsity._target_"] == settings["dictionary"]["sparsity"]["_target_"]
        assert config["layer"] == settings["layer"]
        assert [row["step"] for row in history] == [0, 7, 8] and "loss/reconstruction" in history[0]
        expected = {name: value for name, value in findings(folder).items() if value is not None}
        assert {name: summary[name] for name in expected} == pytest.approx(expected)
        rows = (folder / "csv" / "metrics.csv").read_text().splitlines()
        assert "fidelity/explained_variance/base" in rows[0] and len(rows) == 4
        assert list((folder / "tensorboard").glob("events.*"))
    assert not list(tmp_path.rglob("*.netrc"))


def test_all_places_name_the_models_and_the_layer_that_a_relative_depth_is(tmp_path):
    """The page, the comparison and W&B: not the depth that was asked for, nor the paths alone."""
    for role, name in (("base", "Maths-1B"), ("tuned", "Reasoner-1B")):
        shutil.copytree(ROOT / "src" / "tunediff" / "toy" / "weights" / role, tmp_path / "models" / name)
    places = [f"model_pair.{r}.path={tmp_path}/models/{n}" for r, n in (("base", "Maths-1B"), ("tuned", "Reasoner-1B"))]
    runs = trained(tmp_path / "runs", ["layer=0.5", "logger=wandb", *places], ["layer=1", "logger=wandb", *places])
    assert [run.error for run in runs] == [None, None] and runs[0].cfg.layer == 0.5
    for run, layer in zip(runs, ("2", "1"), strict=True):
        (file,) = run.folder.glob("wandb/offline-run-*/*.wandb")
        record, config, _, _ = offline_run(file)
        assert set(record.tags) == {"resid_post", f"layer {layer}"}
        assert config["study.layer"] == layer and config["study.model_pair"] == "Reasoner-1B vs Maths-1B"
        payload = json.loads(re.search(r'id="payload">(.*?)</script>', (run.folder / "report.html").read_text())[1])
        assert payload["study"]["layer"] == layer and payload["study"]["model_pair"] == "Reasoner-1B vs Maths-1B"
    said = compare([tmp_path / "runs"])
    (at,) = (n for n, word in enumerate(said.split("\n")[0].split()) if word == "layer")
    assert [line.split()[at] for line in said.split("\n")[1:3]] == ["1", "2"] and "0.5" not in said.split("\n")[1]
    assert "models: Reasoner-1B vs Maths-1B\n" in said
    table = pyarrow.parquet.read_table(tmp_path / "runs" / "compare.parquet").to_pydict()
    assert table["layer"] == [1, 2] and set(table["models"]) == {"Reasoner-1B vs Maths-1B"}
    alone = compare([runs[0].folder])
    assert "models: Reasoner-1B vs Maths-1B, layer 2\n" in alone
    table = pyarrow.parquet.read_table(runs[0].folder / "compare.parquet").to_pydict()
    assert (table["layer"], table["models"]) == (["2"], ["Reasoner-1B vs Maths-1B"])


def test_a_sweeper_is_told_the_optimized_metric(tmp_path):
    said = sweep_call(
        tmp_path, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "hydra.sweeper.direction=minimize", "hydra.sweeper.sampler.seed=0",
        "optimizer.learning_rate=interval(0.0001,0.01)", "optimized_metric=fidelity/l0/mean", "evaluation=[fidelity]",
        *TWO_STEPS, "budget.evaluation_tokens=600",
    )  # fmt: skip
    values = [findings(path.parent)["fidelity/l0/mean"] for path in tmp_path.glob("*/findings.json")]
    assert len(values) == 2 and f"Best value: {min(values)}" in said
