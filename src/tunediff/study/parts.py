"""Composed config -> the parts of one study, each checked before a model is loaded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from tunediff import folders
from tunediff.activations import WholeSequences, check_buffer
from tunediff.claims import claims_in, written
from tunediff.dictionary import Dictionary, LearningDictionary, TranscoderAdapter, latents_of
from tunediff.evaluations import Evaluation, Given, Needs, Trained, declared
from tunediff.evaluations.latents.columns import checked
from tunediff.evaluations.latents.selection import check_count
from tunediff.folders import begin_manifest, write_atomically
from tunediff.hookpoints import add_hookpoint
from tunediff.models import ALL_LAYERS, Agreed, ModelPair, TranscoderFiles, agree
from tunediff.schedules import Length
from tunediff.settings import LEARNING, READ_BY_STUDY, build, check, identity, material, plain, within
from tunediff.shapes import ADAPTER, HYBRID, ROLES, TUNED, Refused, Stream, flat, lacking
from tunediff.text import Text, Tokenizer
from tunediff.training import Learner, TranscoderLearner
from tunediff.trusted import check_file, strings_in, target_of, unresolved, variables_of, with_references

STUDY = "budget model_pair text dictionary l1_schedule optimizer activations evaluation task direction claims trainer logger layer seed trust commits"
STUDY = [*STUDY.split(), "sweep", "launcher", "dry_run", "checkpoint_every", "logits_mb", "optimized_metric"]
NAMED = 6  # settings in which two studies differ
TOY_END = "<｜end｜>"  # the end token of the embedded pair, which no other tokenizer has


def learns(cfg: DictConfig) -> bool:
    """True for a study that trains a dictionary; one without measures the pair alone. Raises Refused for half of either."""
    given = [part for part in LEARNING if part in cfg]
    if given and len(given) < len(LEARNING):
        missing = [part for part in LEARNING if part not in cfg]
        raise Refused(
            f"The study has {', '.join(given)}, but no {', '.join(missing)}: a dictionary is trained with all of "
            f"{', '.join(LEARNING)}. Choose an option of each, or leave the experiment out that takes them away."
        )
    return bool(given)


def pair_and_text(cfg: DictConfig) -> tuple[ModelPair, Text]:
    """The two models, without their weights, and what they read. The pair knows the marks of the text's thinking."""
    pair, text = build(cfg.model_pair), build(cfg.text)
    if not isinstance(pair, ModelPair):
        raise Refused(
            f"model_pair has {', '.join(map(str, cfg.model_pair))} and is no pair: a file of your own is a copy of "
            "conf/model_pair/local.yaml, which begins with defaults: [defaults/pair@_here_, _self_], with both paths."
        )
    pair.knows(text.manner.layout)
    return pair, text


def refuse_toy_problems(evaluations: Mapping[str, Evaluation], pair: ModelPair) -> None:
    """Raises Refused for an evaluation that asks the toy language's problems of models that were not made of it."""
    if TOY_END in pair.tokenizers[0].get_vocab():
        return
    for name, evaluation in evaluations.items():
        for task, problems in (getattr(evaluation, "tasks", None) or {}).items():
            rows = getattr(problems, "rows", None)
            if getattr(getattr(rows, "func", rows), "__module__", "").startswith("tunediff.toy"):
                raise Refused(
                    f"evaluation={name} asks the problems of task={task}, the made-up language of the embedded pair, and "
                    f"{pair.source(pair.owner).path} speaks another: name others, such as task=math500, or several, "
                    "task=[math500,gsm8k]."
                )


def refuse_toy_text(cfg: DictConfig, tokenizer: Tokenizer, path: str) -> None:
    """Raises Refused for the toy language before a model that was not made of it."""
    toy = str(OmegaConf.select(cfg, "text.rows._target_")).startswith("tunediff.toy")
    if toy and TOY_END not in tokenizer.get_vocab():
        raise Refused(
            f"text=toy is the made-up language of the embedded pair, and {path} speaks another: name what is read, "
            "text=openr1_math from the Hub, or text=traces text.rows.path=<file.jsonl>."
        )


def agreed_upon(cfg: DictConfig, *, evaluated: bool) -> tuple[ModelPair, Text, Agreed]:
    """The pair and the text of pair_and_text, once the text was looked at and found to be one that both models can read."""
    pair, text = pair_and_text(cfg)
    refuse_toy_text(cfg, pair.tokenizers[0], pair.source(pair.owner).path)
    text.check(evaluated=evaluated)
    # a pair that a transcoder adapter stands in reads by the tuned model's attention alone: the base lends its MLPs
    agreed = agree(pair, text, roles=(TUNED,) if inside(cfg) else ROLES)
    return pair, text, agreed._replace(notes=[*agreed.notes, *text.told()])


def evaluations_of(nodes: DictConfig | None, *, learns: bool, inside: bool = False) -> dict[str, Evaluation]:
    """The evaluations of a config. Raises Refused for one that asks about a dictionary where there is none, or about another
    kind: one that stands `inside` the models reconstructs nothing, and the others replace nothing."""
    for name, node in (nodes or {}).items():
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise Refused(f"evaluation.{name}={node} names no class: evaluation.{name}._target_=<a class with `run`>.")
    built: dict[str, Evaluation] = {str(name): build(node) for name, node in (nodes or {}).items()}
    for name, evaluation in built.items():
        if not callable(getattr(evaluation, "run", None)):
            raise Refused(f"evaluation={name}: {evaluation!r:.80} has no method `run`, which asks the question.")
        needs = declared(evaluation, "needs")
        if not learns and needs is not Needs.PAIR:
            raise Refused(
                f"evaluation={name} needs a dictionary, and this study trains none: leave it out, as in "
                "evaluation=[layer_divergence,tokenizers], or leave out the experiment that takes the dictionary away."
            )
        if inside and needs is Needs.RECONSTRUCTION:
            raise Refused(
                f"evaluation={name} measures what a dictionary reconstructs, and a transcoder adapter reconstructs nothing: "
                "choose evaluation=replacement."
            )
        if learns and not inside and needs is Needs.ADAPTER:
            raise Refused(f"evaluation={name} asks about a transcoder adapter: choose dictionary=transcoder_adapter.")
        latents, role = declared(evaluation, "latents"), getattr(evaluation, "role", None)
        if isinstance(latents, str):
            checked(latents)  # before hours of training, not after them
        if inside and isinstance(latents, int):
            check_count(latents, [ADAPTER], setting=f"evaluation.{name}.latents")
        if inside and role not in (None, ADAPTER):
            raise Refused(
                f"evaluation.{name}.role={role}: latents of a transcoder adapter are written in the adapter model: leave "
                f"{name} out, or set evaluation.{name}.role=null."
            )
    return built


def check_evaluations(evaluations: Mapping[str, Evaluation], pair: ModelPair, text: Text, *, tokens: int) -> None:
    """Raises Refused for an evaluation that this pair or its text cannot answer, as far as that shows without weights."""
    refuse_toy_problems(evaluations, pair)
    for evaluation in evaluations.values():
        if callable(check := getattr(evaluation, "check", None)):
            check(pair, text)
    check_labels(evaluations, pair, text, tokens=tokens)


def check_labels(evaluations: Mapping[str, Evaluation], pair: ModelPair, text: Text, *, tokens: int) -> None:
    """Raises Refused for an evaluation that asks for a label of which the held-out text has too few tokens."""
    asked = {name: dict(declared(evaluation, "asks_for")) for name, evaluation in evaluations.items()}
    needed: dict[str, int] = {}
    for label, count in (one for labels in asked.values() for one in labels.items()):
        needed[label] = max(count, needed.get(label, 0))
    if not needed:
        return
    found = text.labelled(pair.tokenizers, foreign=pair.foreign, needed=needed, tokens=tokens)
    for name, labels in asked.items():
        for label, count in labels.items():
            if found[label] < count:
                there = ", ".join(f"{one} ({number:,})" for one, number in found.most_common() if number)
                of = f"evaluation.{name}"
                way = (
                    f"{of}.chosen_by.label=... and .at=..., or latents, {of}.latents=[3,17]"
                    if hasattr(evaluations[name], "chosen_by")
                    else f"{of}.label=... and .at=..., or leave {name} out"
                )
                raise Refused(
                    f"evaluation={name} asks for the label '{label}', of which the held-out text has {found[label]} tokens and "
                    f"{count} {'is' if count == 1 else 'are'} needed. Its labels are {there or 'none'}: name one with {way}."
                )


def streams_of(cfg: DictConfig, pair: ModelPair) -> list[Stream]:
    """The streams that the dictionary of a config reads; without one, all layers of both models. Raises Refused for a
    dictionary that would read an adapter which has not been trained."""
    if not learns(cfg):
        return [stream for role in ROLES for stream in pair.streams("resid_post", ALL_LAYERS, reads=role)]
    hookpoint, reads = cfg.dictionary.hookpoint, cfg.dictionary.reads
    row = {key: hookpoint[key] for key in hookpoint if key not in ("name", "equal_widths", "layer")}
    if row:
        add_hookpoint(hookpoint.name, row)
    if (reads == ADAPTER) is not inside(cfg) or reads == HYBRID:
        raise Refused(
            f"dictionary.reads={reads}: hybrid and adapter stand beside a pair once an adapter was trained, and a dictionary "
            "reads base, tuned, both or difference; dictionary=transcoder_adapter reads adapter."
        )
    return pair.streams(hookpoint.name, plain(cfg.layer), reads=reads, equal_widths=hookpoint.equal_widths)


def inside(cfg: DictConfig) -> bool:
    """True for a study whose dictionary stands inside the models and changes them, as its class says; the others
    learn from the same activations side by side."""
    if not learns(cfg):
        return False
    kind = target_of(cfg.dictionary)
    return isinstance(kind, type) and issubclass(kind, TranscoderAdapter)


def build_learner(
    cfg: DictConfig, streams: list[Stream], *, weights: bool = True
) -> tuple[Learner | TranscoderLearner, Length | None]:
    """The dictionary of a study with all that trains it, and the length of its training; None for a transcoder adapter,
    whose steps are known once the text was read. Without `weights`, for a look at what would run, an adapter has none, and
    another dictionary has all its latents over small vectors. Raises Refused for parts that do not fit one another."""
    activations, adapter = build(cfg.activations), inside(cfg)
    if adapter and not isinstance(activations, WholeSequences):
        raise Refused(
            "A transcoder adapter learns inside the models: leave activations and optimizer out, or choose "
            "activations=sequences and optimizer=adam_cosine."
        )
    if isinstance(activations, WholeSequences) and not adapter:
        raise Refused(
            f"activations=sequences is for dictionary=transcoder_adapter; {cfg.dictionary._target_} learns from shuffled "
            "activations: choose activations=live or stored."
        )
    given = {
        "name": identity(cfg),
        "objective": build(cfg.dictionary.objective),
        "l1_schedule": build(cfg.l1_schedule),
        "learning_rate_schedule": build(cfg.optimizer.learning_rate_schedule),
        "learning_rate": cfg.optimizer.learning_rate,
        "betas": tuple(map(float, cfg.optimizer.betas)),
        "clip_norm": cfg.optimizer.clip_norm,
    }
    if adapter:
        made = build_adapter(cfg, streams, weights)
        return TranscoderLearner(dictionary=made, sequences=activations, **given), None
    length = Length(cfg.budget.tokens // cfg.optimizer.batch, cfg.optimizer.batch)
    if length.steps < 1:
        raise Refused(
            f"budget.tokens={cfg.budget.tokens} is less than one batch of optimizer.batch={cfg.optimizer.batch}."
        )
    check_buffer(cfg.activations.buffer, cfg.optimizer.batch)
    learner = Learner(
        dictionary=build_dictionary(*((cfg.dictionary, streams) if weights else smaller(cfg, streams))),
        resampling=build(cfg.optimizer.resampling),
        compile=cfg.optimizer.compile,
        **given,
    )
    learner.check(length)
    return learner, length


def smaller(cfg: DictConfig, streams: list[Stream]) -> tuple[DictConfig, list[Stream]]:
    """The dictionary's node with its number of latents, and the same streams over small vectors: those of equal width stay
    so."""
    node, widths = cfg.copy(), sorted({stream.width for stream in streams})
    node.dictionary.latents = latents_of(cfg.dictionary.latents, streams)
    return node.dictionary, [stream._replace(width=8 * (1 + widths.index(stream.width))) for stream in streams]


def build_dictionary(node: DictConfig, streams: list[Stream]) -> Any:
    """The dictionary of a config, over these streams; the settings that the study reads stand beside its own. Raises Refused
    for one that this machine cannot hold, and for one without a member that is asked of a dictionary."""
    settings = {key: node[key] for key in node if key not in READ_BY_STUDY["dictionary"]}
    try:
        made = build(settings)(streams)
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise Refused(
            f"dictionary.latents={settings.get('latents')}: this machine has no memory for so many; take fewer."
        ) from error
    except TypeError as error:
        if "missing" not in str(error):
            raise
        raise Refused(
            f"dictionary={node._target_}: {str(error).partition('() ')[2]}, a setting that was left out."
        ) from error
    if missing := lacking(made, Dictionary if isinstance(made, TranscoderAdapter) else LearningDictionary):
        raise Refused(
            f"dictionary={node._target_} lacks {', '.join(missing)}: what a dictionary has to have is in "
            "tunediff/dictionary/protocol.py."
        )
    return made


def build_adapter(cfg: DictConfig, streams: list[Stream], weights: bool) -> TranscoderAdapter:
    """A transcoder adapter at its own start, or with the weights of another one. Raises Refused for a start of another
    shape, and where there is nothing to train and no start to measure."""
    with contextlib.nullcontext() if weights else torch.device("meta"):
        adapter: TranscoderAdapter = build_dictionary(cfg.dictionary, streams)
    if cfg.dictionary.start is None:
        if cfg.budget.tokens < 1:
            raise Refused(
                "budget.tokens=0 trains nothing: name what is measured, dictionary.start=<run folder or checkpoint>."
            )
        return adapter
    files = TranscoderFiles(cfg.dictionary.start, cfg.dictionary.get("start_revision"))
    here = (len(adapter.layers), adapter.latents_per_layer, adapter.layers[0].b_dec is not None)
    there = (len(files.streams), files.latents, files.decoder_bias)
    if here != there:
        raise Refused(
            f"dictionary.start={files.place} has {there[0]} layers of {there[1]:,} latents, decoder_bias={there[2]}; the study "
            f"asks for {here[0]} of {here[1]:,}, decoder_bias={here[2]}: set dictionary.latents={there[1]} "
            f"dictionary.decoder_bias={str(there[2]).lower()}."
        )
    if weights:
        known = files.read().state_dict()
        adapter.load_state_dict({name: known.get(name, own) for name, own in adapter.state_dict().items()})
    return adapter


def given_of(
    pair: ModelPair,
    text: Text,
    dictionary: Dictionary | None,
    tokens: int,
    folder: Path,
    *,
    logits_mb: float,
    companions: Mapping[str, Any] | None = None,
    starting_rows: Callable[[], list[Tensor]] | None = None,
) -> Given:
    """The pair and text that evaluations are given, Trained where there is a dictionary. A transcoder adapter joins the loaded
    pair as models of its own."""
    if dictionary is None:
        return Given(pair, text, tokens, folder=folder, logits_mb=logits_mb)
    if isinstance(dictionary, TranscoderAdapter):
        pair.stand_beside(dictionary)
    beside = dict(companions or {})
    given = {"folder": folder, "logits_mb": logits_mb, "companions": beside, "starting_rows": starting_rows}
    return Trained(pair, text, tokens, dictionary=dictionary, **given)


def write_config(cfg: DictConfig, folder: Path) -> None:
    """Writes config.yaml, resolved, so that it runs again as it is. The logger keeps its references to the run folder, and
    what stands in an environment variable its name; whom one trusts is nothing that a file says."""
    kept = {key: cfg[key] if key == "logger" else unresolved(cfg[key]) for key in cfg if key != "hydra"}
    text = OmegaConf.to_yaml(OmegaConf.create({**kept, "trust": []}))
    begin_manifest(folder)
    write_atomically(folder / "config.yaml", text)
    stands_for = {"identity": identity(cfg), "settings": material(cfg), "commits": plain(cfg.get("commits")) or {}}
    write_atomically(folder / "identity.json", json.dumps(stands_for, indent=1))


def write_claims(cfg: DictConfig, folder: Path) -> None:
    """Writes claims.json beside the identity.json that was written, before anything is measured: the claims of a config with their
    digests. Those that the same study wrote there when it began earlier are kept, and one that reads otherwise now is marked.
    Without any no file is written."""
    path, stands_for = folder / "claims.json", folders.read_json(folder / "identity.json")["identity"]
    before = folders.read_json(path)
    if before.get("identity") != stands_for:
        path.unlink(missing_ok=True)
        before = {}
    if claims := claims_in(plain(cfg.get("claims"))):
        with folders.as_written(path):  # what stands there may not be as it was
            content = {"identity": stands_for, **written(claims, before, folders.clock())}
        write_atomically(path, json.dumps(content, indent=1))


def other_settings(cfg: DictConfig, folder: Path) -> str:
    """The names of the settings, and of what was read, in which the run of a folder differs from a config: the first few, and
    how many more there are."""
    now, before = flat(material(cfg)), flat(folders.read_json(folder / "identity.json").get("settings", {}))
    other = [name for name in {*before, *now} if before.get(name) != now.get(name)]
    names = sorted(other, key=lambda name: (name.count("."), name))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}" if names else "version"


def refuse_gone(cfg: DictConfig, folder: Path, before: Iterable[str], now: Iterable[str]) -> None:
    """Raises Refused where files are gone that the study of a folder read: `before` and `now` are the settings that name some."""
    written, there = list(strings_in(with_references(cfg))), {*now}
    for name in before:
        named = ", ".join(value for key, value in written if key == name or key.startswith(f"{name}."))
        if not named or name in there or name.startswith("evaluation."):
            continue
        places = [place.removeprefix("env:") for place in variables_of(named)]
        way = f"Set {' and '.join(places)} as then." if places else "Put it back, or go to where the study ran."
        raise Refused(f"{name}={named}: nothing is there, and the study of {folder} read it. {way}")


def commits_kept(folder: Path, *, saved: bool) -> dict[str, Any]:
    """The commits of a run that goes on where it was begun; none of one that is finished, or that failed with nothing `saved`:
    typed again it begins anew, at what the branches stand for now."""
    with contextlib.suppress(Refused):  # it is said where the folder is looked at
        state = folders.read_json(folder / "state.json").get("state")
        if state not in (None, folders.FINISHED, *([] if saved else [folders.FAILED])):
            return dict(folders.read_json(folder / "identity.json").get("commits", {}))
    return {}


def config_of(folder: Path, trust: Sequence[str] = (), *, fine_tune: bool = False) -> DictConfig:
    """The config of a run as data: looked at as a stranger's, with nothing in it imported or resolved; which commits the
    branches in it stand for is not asked any more. `trust` are the packages whose classes it may name, and env:NAME the
    environment variables it may read. Raises Refused for one that says more than a study does, and for a fine-tune unless
    that is welcome."""
    content = check_file(folder / "config.yaml", trust=trust)
    if "recipe" in content and not fine_tune:
        raise Refused(
            f"{folder} is a fine-tune, not a study: python train.py model_pair={folder / 'pair.yaml'} makes one."
        )
    needed = ("model", "text") if "recipe" in content else ("model_pair", "text", "budget")
    if missing := [name for name in needed if name not in content]:
        raise Refused(f"{folder / 'config.yaml'} is no study's: it has no {missing[0]}. Restore it from a copy.")
    return OmegaConf.create({"commits": {}, **content, "trust": list(trust)})


def read_config(folder: Path, trust: Sequence[str] = ()) -> DictConfig:
    """The config of a run, every setting of it checked. Raises Refused for what config_of refuses, and what cannot be built."""
    cfg = config_of(folder, trust)
    with within(folder):
        check(cfg, STUDY)
    return cfg
