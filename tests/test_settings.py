"""Every option composes and builds; what is misspelt or wrong is refused by name; the identity cannot lie."""

import copy
import functools
import importlib
import inspect
import pkgutil
import re

import hydra
import pytest
from omegaconf import OmegaConf

import tunediff
from conftest import ROOT
from tunediff.models import ModelSource
from tunediff.schedules import Length
from tunediff.settings import (
    build,
    check,
    check_command_line,
    identity,
    stream_key,
    with_files,
    within,
)
from tunediff.settings.identity import IMMATERIAL
from tunediff.shapes import Refused, Stream
from tunediff.study.described import dictionary_name
from tunediff.study.estimate import cost_of
from tunediff.study.finetune import FINE_TUNE
from tunediff.study.parts import (
    STUDY,
    build_dictionary,
    build_learner,
    evaluations_of,
    inside,
    learns,
    streams_of,
)
from tunediff.study.run import Run
from tunediff.study.train import study
from tunediff.study.trainer import make_trainer, shares_out_layers
from tunediff.training import Learner, Recipe, TranscoderLearner
from tunediff.trusted import target_of

CONF = ROOT / "conf"
STREAMS = [Stream("base", "resid_post", 1, 16), Stream("tuned", "resid_post", 1, 16)]
PENALISED = {"l1_schedule": ["dictionary=l1_crosscoder"]}
GIVEN = {
    "experiment=shifting_the_gradient": ["evaluation.trait.scorer.judge.model=m"],
    "evaluation=gradient": ["evaluation.gradient.layer=1"],
    "direction=contrasting_texts": ["direction.shows.rows.path=a.jsonl", "direction.shows_not.rows.path=b.jsonl"],
    "direction=decoder_row": ["direction.latent=3"],
    "direction=file": ["direction.path=tuned.safetensors"],
    "model_pair=local": ["model_pair.base.path=a", "model_pair.tuned.path=b"],
    "model_pair=qwen32b_lora": ["model_pair.tuned.adapter=a"],
    "experiment=rank1_lora": ["model_pair.tuned.adapter=a"],
    **{
        f"experiment=s1k_{name}": ["model_pair.base.path=a", "model_pair.tuned.path=b"]
        for name in ("reasoning", "crosscoder", "layers", "buffer")
    },
    **{  # the streams of this test are narrow
        f"experiment=r1_{name}": ["dictionary.sparsity.k=8"] for name in ("answer_length", "sae", "shift", "steering")
    },
    "model=local": ["model.path=a"],
    "evaluation=autointerp": ["evaluation.autointerp.judge.model=m"],
    "evaluation=trait_judge": ["evaluation.trait.scorer.judge.model=m"],
    **{
        f"evaluation={name}": ["dictionary=transcoder_adapter"]
        for name in ("replacement", "adapter_recovery", "latent_sets", "attribution_graphs")
    },
    "text=judged_traces": ["text.prepare.judged.judge.model=m"],
    "activations=sequences": ["dictionary=transcoder_adapter"],
    "optimizer=adam_cosine": ["dictionary=transcoder_adapter"],
    "dictionary/objective=distillation": ["dictionary=transcoder_adapter"],
    "dictionary/objective=distillation_code": ["dictionary=transcoder_adapter"],
    "dictionary/sparsity=dual_batchtopk": ["dictionary=delta_crosscoder"],
    **{
        f"text={name}": ["text.rows.path=x"]
        for name in ("s1k_files", "openthoughts_files", "openr1_math_files", "contrastive")
    },
}


@functools.cache
def composed_once(*overrides, name):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose(name, list(overrides))


def composed(*overrides, name="train"):
    return copy.deepcopy(composed_once(*overrides, name=name))


OF_FINE_TUNES = ("model", "recipe")
# those of a group that has options of both verbs
FINE_TUNES = {
    f"experiment={p.stem}" for p in (CONF / "experiment").glob("*.yaml") if "override /recipe" in p.read_text()
}


def is_of_fine_tunes(option):
    return option.partition("=")[0] in OF_FINE_TUNES or option in FINE_TUNES


def options():
    for path in sorted(CONF.rglob("*.yaml")):
        if path.parent != CONF and path.parent.name != "defaults":
            yield f"{path.parent.relative_to(CONF)}={path.stem}"


@pytest.mark.parametrize("option", list(options()))
def test_every_option_opens_with_when_to_choose_it(option):
    group, _, name = option.partition("=")
    lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @package"))
    assert first.startswith("# Choose it ") and len(first) > 40


@pytest.mark.parametrize(
    "option", [o for o in options() if is_of_fine_tunes(o) or o.partition("=")[0] in ("text", "trainer", "logger")]
)
def test_every_option_of_a_fine_tune_composes_and_builds(option, tmp_path):
    cfg = composed(option, *GIVEN.get(option, []), name="finetune")
    with within(tmp_path):
        check(cfg, FINE_TUNE)
        for node in (cfg.logger or {}).values():
            build(node)
    assert list(tmp_path.iterdir()) == []
    recipe, source = build(cfg.recipe), build(cfg.model)
    assert isinstance(recipe, Recipe) and isinstance(source, ModelSource) and len(identity(cfg)) == 12
    recipe.learning_rate_schedule.check(Length(100, 8))
    build(cfg.text)


@pytest.mark.parametrize("option", [o for o in options() if not is_of_fine_tunes(o)])
def test_every_option_of_a_study_composes_and_builds(option, tmp_path):
    group, _, name = option.partition("=")
    cfg = composed(option, *GIVEN.get(option, []), *PENALISED.get(group, []))
    with within(tmp_path):
        check(cfg, STUDY)
        for node in (cfg.logger or {}).values():
            build(node)
    assert list(tmp_path.iterdir()) == []  # a logger that was only made has written nothing
    build(cfg.text)
    if learns(cfg):
        streams = [stream for stream in STREAMS if cfg.dictionary.reads in ("both", stream.role)] or STREAMS[1:]
        objective, activations = build(cfg.dictionary.objective), build(cfg.activations)
        schedules = build(cfg.l1_schedule), build(cfg.optimizer.learning_rate_schedule)
        if not inside(cfg):
            member = Learner("m", build_dictionary(cfg.dictionary, streams), objective, *schedules)
        else:
            made = build_dictionary(cfg.dictionary, [Stream("adapter", "mlp_in", n, 16) for n in range(3)])
            member = TranscoderLearner("m", made, objective, *schedules, sequences=activations)
        member.check(Length(9999, 64))
    evaluations_of(cfg.get("evaluation"), learns=learns(cfg), inside=inside(cfg))
    assert callable(build(cfg.direction).find)
    build(cfg.trainer, logger=False, enable_progress_bar=False, enable_checkpointing=False) if option not in (
        "trainer=bf16",
        "trainer=fp16",
        "trainer=fsdp",
    ) else None
    assert len(identity(cfg)) == 12


@pytest.mark.parametrize("option", [o for o in options() if o.startswith("dictionary/sparsity=")])
def test_every_sparsity_composes_with_a_transcoder_adapter(option):
    """What one option sets must not reach another."""
    cfg = composed("dictionary=transcoder_adapter", option)
    check(cfg, STUDY)
    streams = [Stream("adapter", "mlp_in", n, 16) for n in range(3)]
    refused = {
        "matryoshka": "a transcoder adapter has no nested ones",
        "dual_batchtopk": "of latents that a partition shares",
    }
    if (name := option.partition("=")[2]) in refused:
        with pytest.raises(Refused, match=refused[name]):
            build_dictionary(cfg.dictionary, streams)
        return
    assert len(build_dictionary(cfg.dictionary, streams).layers) == 3


def test_a_file_anywhere_is_an_option_of_its_group(tmp_path, monkeypatch):
    place = tmp_path / "a run, 3=x"
    place.mkdir()
    (place / "pair.yaml").write_text((CONF / "model_pair" / "toy_self.yaml").read_text())
    given = with_files([f"model_pair={place}/pair.yaml", "seed=1", "text.rows.path=a.yaml"], CONF)
    assert given[1:] == ["seed=1", "text.rows.path=a.yaml"]
    check_command_line(given[:2], CONF, "train")
    assert composed(*given[:2]).model_pair == composed("model_pair=toy_self").model_pair
    monkeypatch.chdir(place)
    (swept,) = with_files(["model_pair=toy,pair.yaml"], CONF)
    check_command_line([swept], CONF, "train")
    assert composed(f"model_pair={swept.partition(',')[2]}").model_pair == composed("model_pair=toy_self").model_pair
    with pytest.raises(Refused, match="missing.yaml: there is no such file"):
        with_files(["model_pair=missing.yaml"], CONF)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("evaluation={file}", ["entropy"]),
        ("evaluation=[{file}]", ["entropy"]),
        ("evaluation=[fidelity,{file}]", ["fidelity", "entropy"]),
        ("evaluation=[ '{file}' , geometry]", ["entropy", "geometry"]),
        ('evaluation=[geometry,"{odd}",fidelity]', ["geometry", "odd", "fidelity"]),
    ],
)
def test_a_file_in_a_list_of_options_is_one_of_them(tmp_path, words, names):
    files = {"file": tmp_path / "entropy.yaml", "odd": tmp_path / "it's a folder" / "odd, 3=x.yaml"}
    for name, file in zip(("entropy", "odd"), files.values(), strict=True):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{name}: {{_target_: tunediff.evaluations.LogitEffect, tokens: 7}}")
    given = with_files([words.format(**files)], CONF)
    for verb in ("train", "evaluate"):
        check_command_line([*given, "run=x"] if verb == "evaluate" else given, CONF, verb)
        cfg = composed(*given, name=verb)
        built = evaluations_of(cfg.evaluation, learns=True)
        assert list(built) == names and next(built[n] for n in names if n in ("entropy", "odd")).tokens == 7


def refused(*arguments, verb="train"):
    with pytest.raises(Refused) as caught:
        check_command_line(arguments, CONF, verb)
    return str(caught.value)


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("laier=3", "layer"),
        ("dictionary.latens=3", "dictionary.latents"),
        ("dictionary.sparsity.kk=3", "dictionary.sparsity.k"),
        ("modelpair=toy", "model_pair"),
        ("threshold_memory=3", "dictionary.sparsity.threshold_memory"),
        ("dictionary=batchtopk_croscoder", "batchtopk_crosscoder"),
        ("evaluation=[fidelty]", "fidelity"),
    ],
)
def test_a_misspelt_word_is_refused_with_the_nearest_legal_one(argument, nearest):
    assert f"Did you mean {nearest}?" in refused(argument)


def test_a_word_like_no_other_is_answered_with_the_list():
    assert "The settings are activations, budget, checkpoint_every, claims, dictionary" in refused("zzzzqqq=1")


def test_what_a_verb_cannot_do_without_is_asked_for_before_anything_is_read(tmp_path):
    said = "run is not set: give it on the command line, python evaluate.py run=<the run folder>."
    assert refused(verb="evaluate") == refused("evaluation=[geometry]", verb="evaluate") == said
    check_command_line(["--cfg", "job"], CONF, "evaluate")  # a look at the config needs no run
    (tmp_path / "make.yaml").write_text("out: ???\nwidth: ???  # of the pair\n")
    for given, left in (([], "out=<...>"), (["out=x"], "width=<of the pair>")):
        with pytest.raises(Refused, match=f"is not set: .* python make.py {left}"):
            check_command_line(given, tmp_path, "make")
    check_command_line(["out=x", "width=3"], tmp_path, "make")
    check_command_line(["-m", "out=x,y", "width=3"], tmp_path, "make")


def test_legal_command_lines_pass():
    for line in (
        [],
        ["layer=2"],
        ["-m", "layer=1,2,3", "seed=range(0,3)"],
        ["dictionary=l1_crosscoder", "dictionary.sparsity.coefficient=2"],
        ["-m", "dictionary=l1_crosscoder,batchtopk_crosscoder"],
        ["hydra.run.dir=x", "logger=wandb", "logger.wandb.offline=false"],
        ["evaluation=none"],
        ["evaluation=[fidelity,geometry]", "scale=smoke"],
        ["text=traces", "text.rows.path=x", "+text.fields.response=r"],
        ["--config-path", "somewhere", "--config-name", "config"],
    ):
        check_command_line(line, CONF, "train")
    check_command_line(["run=x", "evaluation=[geometry]"], CONF, "evaluate")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+dictionary.latens=3"],
            "dictionary.latens is not a setting of tunediff.dictionary.Crosscoder. Did you mean dictionary.latents",
        ),
        (["dictionary.sparsity.k=many"], "dictionary.sparsity.k='many' is not of type int"),
        (["+colour=red"], "colour is not a setting here"),
        (
            ["model_pair=local"],
            "model_pair.base.path is not set: give it on the command line, model_pair.base.path=<...>",
        ),
        (
            ["evaluation=autointerp"],
            "evaluation.autointerp.judge.model is not set: give it on the command line, evaluation.autointerp.judge.model=<...>",
        ),
        (["text.rows._target_=os.system"], "names a package that is not trusted"),
        (["text.rows._target_=tunediff.text.read_fils"], "Did you mean tunediff.text.read_files"),
        (["text.context=[1,2]"], r"text.context=\[1, 2\] is not of type int"),
        (
            ["+trainer.precison=3"],
            "trainer.precison is not a setting of lightning.Trainer. Did you mean trainer.precision",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(overrides, message):
    with pytest.raises(Refused, match=message):
        check(composed(*overrides), STUDY)


def test_a_package_of_ones_own_can_be_trusted():
    cfg = composed("+evaluation.mine={_target_: itertools.count, step: 2}", "trust=[itertools]")
    check(cfg, STUDY)
    cfg.trust = []
    with pytest.raises(Refused, match=r"evaluation.mine._target_=itertools.count .* add trust=\[itertools\]"):
        check(cfg, STUDY)


def leaves(node, path=""):
    for key, value in node.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from leaves(value, where)
        else:
            yield where, value


def test_any_change_of_any_setting_changes_the_identity():
    plain = OmegaConf.to_container(composed(), resolve=True)
    seen = {identity(OmegaConf.create(plain))}
    changed = 0
    for where, _ in leaves(plain):
        if where.split(".")[0] in IMMATERIAL and where != "trainer.precision":
            continue
        cfg = OmegaConf.create(plain)
        OmegaConf.update(cfg, where, "another")
        seen.add(identity(cfg))
        changed += 1
    assert changed > 40 and len(seen) == changed + 1


def test_what_cannot_change_a_number_leaves_the_identity():
    same = [composed(), composed("logger=csv"), composed("trust=[x]"), composed("logits_mb=64")]
    same += [composed("sweep=x", "dry_run=true", "launcher.pack=false", "checkpoint_every=1")]
    same += [composed("launcher.device=h200")]
    assert len({identity(cfg) for cfg in same}) == 1
    # trainer=auto leaves the precision to the machine, which these two do not
    assert identity(composed("trainer=cpu")) == identity(composed("trainer=ddp")) != identity(composed())
    inside = [composed("dictionary=transcoder_adapter", *more) for more in ([], ["logits_mb=64"])]
    assert [cfg.dictionary.objective.logits_mb for cfg in inside] == [512, 64] and len(set(map(identity, inside))) == 1
    assert identity(composed("activations=stored")) == identity(
        composed("activations=stored", "activations.folder=elsewhere")
    )


def test_members_share_a_stream_unless_they_differ_in_what_decides_its_rows():
    key = stream_key(composed())
    for free in (
        ["layer=1", "dictionary/hookpoint=mlp_out", "dictionary=l1_crosscoder", "l1_schedule=warmup", "seed=3"],
        ["optimizer.learning_rate=1e-4", "budget.latents=99", "evaluation=none", "logger=csv", "checkpoint_every=1"],
        ["dictionary/normalisation=unit_rms", "budget.dead_after=7", "launcher.pack=false", "sweep=x"],
    ):
        assert key == stream_key(composed(*free)), free
    for change in (
        "text.seed=4",
        "text.context=99",
        "optimizer.batch=512",
        "budget.tokens=5",
        "budget.buffer=9999",
        "model_pair.base.dtype=bfloat16",
        "activations.dtype=bfloat16",
        "trainer=bf16",
        "trainer.devices=2",
    ):
        assert key != stream_key(composed(change)), change


def test_whole_numbers_may_stand_for_betas():
    learner, _ = build_learner(composed("scale=smoke", "optimizer.betas=[0,0]"), STREAMS)
    assert learner.betas == (0.0, 0.0) and all(type(beta) is float for beta in learner.betas)


def test_settings_are_refused_where_they_are_built():
    for overrides, message in (
        (["dictionary.sparsity.k=9999"], "k=9999 is larger than the dictionary"),
        (["dictionary=dfc", "dictionary.partition.free=0.5"], "the shares of the parts sum to 1"),
        (["dictionary/sparsity=matryoshka", "dictionary.sparsity.prefixes=[0.5]"], "rising shares of the latents"),
    ):
        with pytest.raises(Refused, match=message):
            build_dictionary(composed(*overrides).dictionary, STREAMS)


@pytest.mark.parametrize("words", [["reads=hybrid"], ["reads=adapter"], ["reads=tuned", "transcoder_adapter"]])
def test_models_that_stand_beside_a_pair_are_read_by_what_stands_in_them(words):
    reads, *dictionary = words
    cfg = composed(f"dictionary.{reads}", *(f"dictionary={name}" for name in dictionary))
    with pytest.raises(Refused, match=f"dictionary.{reads}: hybrid and adapter stand beside a pair"):
        streams_of(cfg, build(cfg.model_pair))


def test_a_precision_that_the_device_lacks_or_that_rounds_the_weights_is_refused(tmp_path):
    with pytest.raises(
        Refused, match="trainer.precision=16-mixed needs a GPU, and this is the cpu: choose trainer=bf16"
    ):
        make_trainer(composed("trainer=fp16", "trainer.accelerator=cpu"), tmp_path)
    with pytest.raises(
        Refused, match="bf16-true: weights and statistics are kept in float32; choose 32-true, bf16-mixed"
    ):
        make_trainer(composed("trainer=bf16", "trainer.precision=bf16-true"), tmp_path)


def test_every_option_of_dictionary_says_only_how_it_differs():
    """What an option sets is not what it would have been anyway, so that a reader sees the method and nothing else."""
    given = OmegaConf.to_container(OmegaConf.load(CONF / "dictionary" / "defaults" / "crosscoder.yaml"))
    for path in (CONF / "dictionary").glob("*.yaml"):
        if "defaults/crosscoder@_here_" not in path.read_text():  # another class, with settings of its own
            continue
        for key, value in OmegaConf.load(path).items():
            assert key not in given or given[key] != value, f"{path.name}: {key}"


def test_every_evaluation_of_behaviour_says_only_how_it_differs_and_takes_the_settings_they_share():
    shared = OmegaConf.to_container(OmegaConf.load(CONF / "evaluation" / "defaults" / "behaviour.yaml"))
    own = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (CONF / "evaluation").glob("*.yaml")}
    sharing = {name: options[name] for name, options in own.items() if "defaults" in options and name in options}
    assert len(sharing) == 12
    for name, options in sharing.items():
        assert own[name]["defaults"] == [f"defaults/behaviour@{name}", "_self_"]
        assert not [key for key in options if options[key] == shared.get(key, Ellipsis)], name
    cfg = composed(f"evaluation=[{','.join(sharing)}]", *(f"evaluation.{name}.decoding.tokens=7" for name in sharing))
    check(cfg, STUDY)
    assert {cfg.evaluation[name].decoding.tokens for name in sharing} == {7}
    for key, value in (("problems", "many"), ("tasks", 3), ("hesitations", "wait")):
        for name in sharing:
            wrong = copy.deepcopy(cfg)
            wrong.evaluation = {name: {**wrong.evaluation[name], key: value}}
            with pytest.raises(Refused, match=f"evaluation.{name}.{key}"):
                check(wrong, STUDY)


def described(node):
    """Every part of a config that describes an object."""
    if isinstance(node, dict):
        yield from ([node] if "_target_" in node else [])
        for value in node.values():
            yield from described(value)
    elif isinstance(node, list):
        for value in node:
            yield from described(value)


def test_a_default_of_an_evaluation_is_that_of_every_option_that_writes_it():
    """A notebook and the command line ask the same question: a value that options differ in has no default."""
    compared = 0
    for path in (CONF / "evaluation").glob("*.yaml"):
        for node in described(OmegaConf.to_container(OmegaConf.load(path))):
            if not node["_target_"].startswith("tunediff.evaluations."):
                continue
            parameters = inspect.signature(target_of(node)).parameters
            for key in node.keys() & parameters.keys():
                value, default = node[key], parameters[key].default
                if default is not inspect.Parameter.empty and not isinstance(value, dict):
                    value = tuple(value) if isinstance(default, tuple) else value
                    assert value == default, f"{path.name}: {key}"
                    compared += 1
    assert compared > 50


def test_every_dictionary_is_told_of_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for path in (CONF / "dictionary").glob("*.yaml"):
        assert f"`{path.stem}`" in readme, path.stem


def test_every_group_is_named_in_the_contents_page():
    contents, of_fine_tunes = ((CONF / f"{verb}.yaml").read_text() for verb in ("train", "finetune"))
    groups = {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert all(re.search(rf"- {group}(@\w+)?:", contents) for group in groups - {"hydra", *OF_FINE_TUNES})
    assert all(f"- {group}:" in of_fine_tunes for group in OF_FINE_TUNES) and "hydra/launcher: local" in contents


def test_a_folder_of_ones_own_options_is_found(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mine.yaml").write_text(
        "# Choose it here.\n_target_: tunediff.text.Text\nrows: {_target_: tunediff.text.read_files, _partial_: true, path: x}\n"
    )
    line = [f"hydra.searchpath=[file://{tmp_path}]", "text=mine"]
    check_command_line(line, CONF, "train")
    cfg = composed(*line)
    check(cfg, STUDY)
    assert cfg.text.rows.path == "x"


def test_a_word_where_an_object_belongs_is_refused_with_the_way_to_name_one():
    cfg = composed("evaluation=ablation", "evaluation.ablation.chosen_by=null")
    check(cfg, STUDY)
    cfg.evaluation.ablation.gate = "thinking"
    with pytest.raises(
        Refused, match=r"gate='thinking' is no Gate: name its class, evaluation.ablation.gate._target_="
    ):
        check(cfg, STUDY)


def given_in_conf():
    """(target, argument) -> the values that conf gives it: those of its files of defaults, where they have it."""
    homes, elsewhere = {}, {}

    def walk(node, found):
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(value, found)
        if isinstance(node, dict) and str(node.get("_target_")).startswith("tunediff."):
            for name, value in node.items():
                if not name.startswith("_") and "${" not in str(value) and "???" not in str(value):
                    made = hydra.utils.instantiate(value, _convert_="all") if "_target_" in str(value) else value
                    found.setdefault((node["_target_"], name), []).append(tuple(made) if type(made) is list else made)

    for path in CONF.rglob("*.yaml"):
        node = OmegaConf.to_container(OmegaConf.load(path))
        for parent in node.get("defaults", []):  # an option of no target of its own has that of what it begins with
            if str(parent).endswith("@_here_"):
                beginning = OmegaConf.load((path.parent / parent.removesuffix("@_here_")).with_suffix(".yaml"))
                node = {"_target_": beginning.get("_target_"), **node}
        walk(node, homes if path.parent.name == "defaults" else elsewhere)
    return elsewhere | {key: [*values, *elsewhere.get(key, [])] for key, values in homes.items()}


def test_a_default_has_its_home_in_conf():
    """An argument that may be left out in Python is then absent (None, empty, false), or has the value that conf gives
    it: that of a file of defaults, or of one of the options."""
    two_homes = {}
    for (target, name), values in given_in_conf().items():
        argument = inspect.signature(hydra.utils.get_object(target)).parameters.get(name)
        default = inspect.Parameter.empty if argument is None else argument.default
        if default is inspect.Parameter.empty or (not default and (default is False or default != 0)):
            continue
        if default not in values:
            two_homes.setdefault(target, []).append(f"{name} is {default!r} in the code and {values} in conf")
    two_homes.pop("tunediff.dictionary.Partition")  # a share that is left out is a part that is not there
    two_homes.pop("tunediff.generation.Decoding")  # an evaluation takes the budget of its task, Python has none at hand
    assert not two_homes


def test_a_class_from_elsewhere_is_taken_for_what_it_inherits_from(tmp_path, monkeypatch):
    (tmp_path / "outside.py").write_text(
        "from tunediff import dictionary\n"
        "from tunediff.training import Shards\n"
        "class Gated(dictionary.TranscoderAdapter): pass\n"
        "class TranscoderAdapter(dictionary.Crosscoder): pass\n"
        "class Parted(Shards): pass\n"
        "class OfShards: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def mine(*words):
        cfg = composed("scale=smoke", "trust=[outside]", *words)
        check(cfg, STUDY)
        return cfg

    adapter = mine("dictionary=transcoder_adapter", "dictionary._target_=outside.Gated")
    streams = [Stream("adapter", "mlp_in", n, 16) for n in range(3)]
    learner, _ = build_learner(adapter, streams)
    assert inside(adapter) and isinstance(learner, TranscoderLearner)
    assert dictionary_name(adapter) == dictionary_name(composed("dictionary=transcoder_adapter"))
    crosscoder = mine("dictionary._target_=outside.TranscoderAdapter")
    assert not inside(crosscoder) and isinstance(build_learner(crosscoder, STREAMS)[0], Learner)
    for cfg, activations in ((adapter, "live"), (crosscoder, "sequences")):
        cfg.activations = composed(f"activations={activations}").activations
        with pytest.raises(Refused, match="activations"):
            build_learner(cfg, streams)
    parted = mine("trainer=fsdp", "trainer.strategy._target_=outside.Parted")
    other = mine("trainer=fsdp", "trainer.strategy._target_=outside.OfShards")
    assert shares_out_layers(parted) and not shares_out_layers(other)


def test_rows_that_statistics_are_fitted_on_are_in_the_estimate(tmp_path):
    def cost(*words):
        cfg = composed("scale=smoke", "activations=stored", *words)
        run, pair = Run(cfg, tmp_path), build(cfg.model_pair)
        run.build(pair, build(cfg.text), weights=False)
        return cost_of([run], pair, None)

    few, many = cost("evaluation=none"), cost("evaluation=none", "activations.fit_tokens=1000000")
    assert many.disk > 2 * few.disk and sum(many.training.values()) > 2 * sum(few.training.values())


# -- every guard is called ------------------------------------------------------------------------------------------------


SMOKE = ("scale=smoke", "trainer=cpu", "dry_run=true", "evaluation=none")
ASKED_OF_A_MODEL = {"Distillation", "Imitation"}  # whether its head is followed: where a model is given to train
FILES_OF_ITS_OWN = {"AdaptedSource"}  # which test_whole_models.py makes
IN_A_STUDY = {  # class -> a study that has one
    "AuxK": [],
    **{
        kind: [f"evaluation={name}"]
        for kind, name in (
            ("Benchmark", "benchmark"),
            ("Intervention", "ablation"),
            ("SteeringSweep", "steering_sweep"),
            ("DirectionsByLayer", "directions"),
            ("DirectionSteering", "direction_steering"),
            ("DirectionNecessity", "direction_necessity"),
        )
    },
    "Recovery": ["evaluation=recovery"],
    "Gradient": ["evaluation=gradient", "evaluation.gradient.layer=1"],
    "Trait": ["evaluation=trait", "text=toy_trait", "task=toy_trait"],
    "LoraAblation": ["model_pair=toy_lora", "evaluation=lora_ablation"],
    "PolarityExamples": ["model_pair=toy_lora", "evaluation=polarity_examples"],
    "UnitComparison": ["model_pair=toy_lora", "evaluation=unit_comparison"],
    "AdapterRecovery": ["dictionary=transcoder_adapter", "evaluation=adapter_recovery"],
    "LatentSets": ["dictionary=transcoder_adapter", "evaluation=latent_sets"],
    "Anneal": [],
    "Constant": [],
    "DeltaLoss": ["dictionary=delta_crosscoder"],
    "Difference": ["dictionary=unmasked_delta_crosscoder"],
    "ModelSource": [],
    "Reconstruction": [],
    "Resampling": ["optimizer.resampling={_target_: tunediff.training.Resampling, every: 0.1}"],
    "Text": [],
    "Warmup": ["dictionary=l1_crosscoder", "l1_schedule=warmup"],
    "WarmupCooldown": [],
    "WarmupCosine": ["dictionary=transcoder_adapter"],
}


def guarded():
    """Every class of ours that an option may name and that can refuse its settings in a method of the name check."""
    named = {name for path in CONF.rglob("*.yaml") for name in re.findall(r"tunediff\.[\w.]+", path.read_text())}
    found = {}
    for module in pkgutil.walk_packages(tunediff.__path__, "tunediff."):
        for name, one in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if f"{module.name}.{name}" in named and callable(getattr(one, "check", None)):
                found[name] = one
    return found


@pytest.mark.parametrize("name", sorted(set(guarded()) - ASKED_OF_A_MODEL - FILES_OF_ITS_OWN))
def test_every_check_of_a_setting_is_reached_by_a_dry_run(name, tmp_path, monkeypatch):
    one, reached = guarded()[name], []
    own = one.check

    def watched(self, *args, **kwargs):
        reached.append(type(self))
        return own(self, *args, **kwargs)

    monkeypatch.setattr(one, "check", watched)
    words = IN_A_STUDY[name]
    asks = any(word.startswith("evaluation=") for word in words)
    study(composed(*(word for word in SMOKE if not (asks and "evaluation" in word)), *words), tmp_path / "run")
    assert one in reached and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["optimizer.resampling={_target_: tunediff.training.Resampling, every: 0.0001}"],
            "every=0.0001 is less than a",
        ),
        (
            ["dictionary=transcoder_adapter", "l1_schedule={_target_: tunediff.schedules.Warmup, warmup: x}"],
            "warmup=x: ",
        ),
        (
            ["dictionary=transcoder_adapter", "l1_schedule={_target_: tunediff.schedules.WarmupCosine, floor: -5}"],
            "floor=-5: give a factor from 0 to 1",
        ),
        (["dictionary=jumprelu_crosscoder", "dictionary.sparsity.bandwidth=0"], "bandwidth=0: give a width above 0"),
    ],
)
def test_what_training_cannot_follow_is_refused_by_a_dry_run(words, message, tmp_path):
    with pytest.raises(Refused, match=message):
        study(composed(*SMOKE, *words), tmp_path / "run")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("budget.evaluation_tokens=0", "budget.evaluation_tokens=0: input should be greater than 0"),
        ("budget.tokens=null", "budget.tokens=None: input should be a valid integer"),
        ("budget.fit_tokens=-1", "activations.fit_tokens=-1: input should be greater than 0"),
        ("budget.buffer=1000", "activations.buffer=1000 must hold at least two batches of 1024 tokens"),
        ("optimizer.batch=0", "optimizer.batch=0: input should be greater than 0"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate=nan: input should be"),
        ("optimizer.learning_rate=abc", "optimizer.learning_rate=abc: input should be a valid number"),
        ("optimizer.betas=[0.9,1.5]", "input should be less than 1"),
        ("text.seed=-1", "text.seed=-1: input should be greater than or equal to 0"),
        ("text.segments=[]", "text.segments=[] keeps no token"),
        ("trainer.devices=0", "trainer.devices=0: input should be greater than 0"),
        ("trainer.devices=auto", "trainer.devices=auto: input should be a valid integer"),
        ("dictionary.decoder_norm=-1", "dictionary.decoder_norm=-1: give a norm above 0"),
        ("dictionary.decoder_norm=inf", "dictionary.decoder_norm=inf: give a norm above 0"),
        ("trust=mine", "trust=mine is one word and no list of packages: trust=[mine]"),
        ("~dictionary.hookpoint", "dictionary.hookpoint is not set. The study reads it beside the settings of"),
        ("~dictionary.l1_schedule", "dictionary.l1_schedule is not set. The study reads it beside the settings of"),
        ("optimizer.clip_norm=0", "optimizer.clip_norm=0: input should be greater than 0"),
        ("logits_mb=0", "logits_mb=0: input should be greater than 0"),
        ("checkpoint_every=-1", "checkpoint_every=-1: input should be greater than or equal to 0"),
        ("checkpoint_every=null", "checkpoint_every=None: input should be a valid number"),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("dictionary.objective.terms.auxk.weight=nan", "terms.auxk.weight=nan is no number"),
        ("layer=[]", "layer=[] names no layer"),
        ("layer=[3,0.75]", r"layer=[3, 0.75] names layer 3 twice"),
        ("dictionary.sparsity.k_schedule.start=-3", "k_schedule: start=-3: give a factor above 0"),
        ("dictionary.sparsity.k_schedule.start=0", "start=0: give a factor above 0"),
        ("dictionary.sparsity.threshold_memory=2", "threshold_memory=2: give a decay from 0 to below 1"),
        ("dictionary.encoder_norm=-1", "dictionary.encoder_norm=-1: give a norm above 0"),
        ("dictionary.objective.terms.auxk.latents=-3", "terms.auxk.latents=-3: give a number from 1"),
        ("budget.dead_after=-1", "dead_after=-1: give a number of tokens from 1"),
        ("trainer.precision=64-true", "trainer.precision=64-true: weights and statistics are kept in float32"),
        ("optimizer.compile=nonsense", "optimizer.compile=nonsense: the backends of torch.compile here are"),
        ("activations.dtype=float99", "activations.dtype='float99': choose float32, bfloat16, float16"),
        ("model_pair.base.dtype=auto", "model_pair.base.dtype='auto': choose float32, bfloat16, float16"),
        ("budget.latents=1e11", "dictionary.latents=100000000000"),
        ("+dictionary.objective.terms.mine={_target_: tunediff.objectives.AuxK}", "terms.mine.weight is not set"),
        ("+dictionary.objective.terms.mine={weight: 1}", "terms.mine is a dict, and no subclass of objectives.Term"),
    ],
)
def test_a_number_that_a_run_would_fail_on_is_refused_by_a_dry_run(word, said, tmp_path):
    from tunediff.study.train import study

    with pytest.raises(Refused, match=re.escape(said)):
        study(composed("scale=smoke", "trainer=cpu", "evaluation=none", "dry_run=true", word), tmp_path / "run")
