"""A sweep: what is shared, what is skipped, what goes on, and that nobody notices who else was there."""

import itertools
import json
import os
import signal

import hydra
import pyarrow.parquet
import pytest
import torch
from omegaconf import open_dict

from conftest import ROOT
from test_study import call
from tunediff import folders
from tunediff.run import Run, train
from tunediff.settings import stream_key

SMALL = ["scale=smoke", "trainer=cpu", "evaluation=none"]


def composed(*words):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = hydra.compose("train", [*SMALL, *words])
    with open_dict(cfg):
        cfg.sweep = "test"
    return cfg


def trained(folder, *members, **options):
    """The runs of members (lists of overrides) as one group."""
    runs = []
    for n, words in enumerate(members):
        run = Run(composed(*words), folder / str(n))
        run.folder.mkdir(parents=True)
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


@pytest.mark.parametrize("activations", ["live", "stored"])
def test_packed_members_have_the_bits_that_each_has_alone(tmp_path, activations):
    """2 layers x {L1, BatchTopK} x 2 seeds."""
    axes = [
        ["layer=1", "layer=2"],
        ["dictionary=l1_crosscoder", "dictionary=batchtopk_crosscoder"],
        ["seed=0", "seed=1"],
    ]
    common = [f"activations={activations}"]
    members = [[*words, *common] for words in itertools.product(*axes)]
    if activations == "stored":
        members = [[*words, f"activations.folder={tmp_path / 'rows'}"] for words in members]
    together = trained(tmp_path / "together", *members)
    assert len({stream_key(run.cfg) for run in together}) == 1 and len({weights(run) for run in together}) == 8
    for n, words in enumerate(members):
        (alone,) = trained(tmp_path / f"alone-{n}", words)
        assert alone.identity == together[n].identity
        assert weights(alone) == weights(together[n]), words
        assert alone.member.history == together[n].member.history


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

    def broken(source):
        model = load(source)
        if source.path.endswith("tuned"):
            with torch.no_grad():
                model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
        return model

    monkeypatch.setattr(models.ModelSource, "weights", broken)
    runs = trained(tmp_path, ["layer=1"], ["layer=2"])
    assert runs[0].error is None and "tuned.resid_post.2 gives a value that is not finite" in str(runs[1].error)


# -- exact resumption ------------------------------------------------------------------------------------------------

LONG = ["budget.tokens=65536", "optimizer.batch=256", "budget.buffer=2048"]  # 256 steps


def killed_at(folder, members, step, monkeypatch, how):
    """Trains until `step` and dies there as `how` says, with a checkpoint at an earlier step."""
    from tunediff.training import fit

    whole = fit.DictionaryTraining.training_step

    def dies(module, batch, index):
        if module.step == step:
            raise how
        return whole(module, batch, index)

    with monkeypatch.context() as m:
        m.setattr(fit.DictionaryTraining, "training_step", dies)
        with pytest.raises(type(how)):
            trained(folder, *members)


@pytest.mark.parametrize("kind", ["live", "stored"])
@pytest.mark.parametrize("packed", [False, True])
def test_killed_at_any_step_it_becomes_what_it_would_have_become(tmp_path, monkeypatch, kind, packed):
    common = [*LONG, f"activations={kind}", "checkpoint_every=0.05", "logger=csv"]
    common += [f"activations.folder={tmp_path / 'rows'}"] if kind == "stored" else []
    members = [[*common, "layer=2"], [*common, "layer=1", "dictionary=l1_crosscoder"]][: 2 if packed else 1]
    whole = trained(tmp_path / "whole", *members)
    for step in (97, 201):
        killed_at(tmp_path / f"cut-{step}", members, step, monkeypatch, SystemExit(9))
        folder = tmp_path / f"cut-{step}"
        saved = [path.name for path in (folder / "checkpoints").glob("*.ckpt")]
        assert len(saved) == 2, saved  # members and stream of one step
        runs = [Run(composed(*words), folder / str(n)) for n, words in enumerate(members)]
        train(runs, folder / "checkpoints")
        for one, again in zip(whole, runs, strict=True):
            assert weights(one) == weights(again)
            assert one.member.history == again.member.history
            rows = (again.folder / "csv" / "metrics.csv").read_text()
            assert rows == (one.folder / "csv" / "metrics.csv").read_text()


def test_one_member_of_a_group_goes_on_without_the_others(tmp_path, monkeypatch):
    """As after launcher.pack=false, or a line that names fewer members."""
    members = [[*LONG, "layer=2", "checkpoint_every=0.05"], [*LONG, "layer=1", "checkpoint_every=0.05"]]
    whole = trained(tmp_path / "whole", *members)
    killed_at(tmp_path / "cut", members, 150, monkeypatch, SystemExit(9))
    from tunediff.training import latest_checkpoint

    saved = latest_checkpoint(tmp_path / "cut" / "checkpoints")
    run = Run(composed(*members[1]), tmp_path / "cut" / "1")
    train([run], tmp_path / "alone" / "checkpoints", resume_from=saved)
    assert weights(run) == weights(whole[1])


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


@pytest.mark.parametrize("dictionary", ["l1_crosscoder", "batchtopk_crosscoder"])
def test_two_processes_reach_the_loss_of_one_with_the_same_batches(tmp_path, dictionary):
    words = [
        "scale=smoke",
        "evaluation=none",
        f"dictionary={dictionary}",
        "layer=2",
        "dictionary.normalisation.sink_multiple=1.2",
    ]
    words += ["budget.tokens=24576", "activations.buffer=3072"]
    call("train.py", *words, "trainer=cpu", f"hydra.run.dir={tmp_path / 'one'}", OMP_NUM_THREADS="1")
    call(
        "train.py",
        *words,
        "trainer=ddp",
        "trainer.accelerator=cpu",
        f"hydra.run.dir={tmp_path / 'two'}",
        seconds=90,
        OMP_NUM_THREADS="1",
    )
    curves = [
        pyarrow.parquet.read_table(tmp_path / n / "tables" / "training.parquet").to_pydict() for n in ("one", "two")
    ]
    assert curves[0].keys() == curves[1].keys() and len(curves[0]["step"]) == 3
    for name, values in curves[0].items():
        assert values == pytest.approx(curves[1][name], rel=2e-4, abs=1e-5), name
