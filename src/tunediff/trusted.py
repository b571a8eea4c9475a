"""The classes that a config may build, and what a config from a file may say: a stranger's folder is data.

A node is built only where its `_target_` is one of BUILDABLE to the letter, or is written in a package that the command
line trusts (trust=[mypkg]). A file that is read, as of a finished run or by model_pair=<file>, is looked at before it
is composed: it may neither set up Hydra nor trust anybody, and what would send or write something elsewhere has to be
typed again. Knows no torch.
"""

from __future__ import annotations

import contextvars
import difflib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.resolvers.oc import decode, env

from tunediff.files import opened
from tunediff.folders import verify
from tunediff.shapes import Refused, path_in

# classes, and functions that give rows, steps or a rule; none writes a file, starts a process or imports by name
BUILDABLE = frozenset(
    f"{package}.{name}"
    for package, names in {
        "lightning": "Trainer",
        "tunediff.activations": "Live Stored WholeSequences",
        "tunediff.benchmarks": "Choices ManyNumbers Task",
        "tunediff.dictionary": (
            "BatchTopK Crosscoder DualBatchTopK JumpReLU L1 Linear Normalisation Partition TopK TranscoderAdapter"
        ),
        "tunediff.directions": (
            "ContrastingTexts DecoderRow DifferenceOfMeans FromFile Orthogonal PairDifference "
            "PersonaVector PrincipalComponent RandomDirection Unembedding WithoutLogitEffect "
        ),
        "tunediff.edits": (
            "Add AfterMatch AfterPrefix AfterTokens Answer Clamp Every Everywhere Keep MeanAblate Patch Prompt Response "
            "Scale Thinking WhileActive Zero"
        ),
        "tunediff.evaluations": (
            "AdapterRecovery AttentionSinks AttributionGraphs Autointerp Benchmark DirectionNecessity "
            "DirectionSteering DirectionsByLayer Examples Fidelity Geometry Gradient Intervention Judge "
            "KLPatching LabelAlignment LatentCache LatentClasses LatentScaling LatentSets LayerDivergence "
            "LogitEffect LoraAblation PolarityExamples Positions Probing Recovery Replacement Segments SentenceJudge SteeringSweep "
            "Telling Tokenizers Trait TraitJudge Twin UnitComparison persona_questions"
        ),
        "tunediff.generation": "Batched Decoding VLLM",
        "tunediff.loggers": "Csv TensorBoard Wandb",
        "tunediff.models": "AdaptedSource ModelPair ModelSource",
        "tunediff.objectives": "AuxK DeltaLoss Difference Distillation Imitation Reconstruction",
        "tunediff.schedules": "Anneal Constant Warmup WarmupCooldown WarmupCosine",
        "tunediff.text": "Inoculate Text each_generation exchange in_s1_form read_files read_hub",
        "tunediff.toy.language": "benchmark is_held_out mixture rows",
        "tunediff.toy.traits": "ToyTrait benchmark rows",
        "tunediff.training": "Added AllWeights GradientAlong Lora Recipe Replicas Resampling Shards Watched",
    }.items()
    for name in names.split()
)
SPECIAL = ("_target_", "_partial_")  # of Hydra's keys; the others call by place, or turn the look at what is below away

LARGEST, DEEPEST = 1_000_000, 50  # bytes and levels of a config that is read
BEGINS = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
ENDS = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
RESOLVERS = ("oc.select", "run_folder", "identity", "line", "now")  # that a config that is read may use
VARIABLES = ("TUNEDIFF_DATA",)  # environment variables that it may use: a place, and no secret
# by which text, keys or findings leave this machine, and what sends nothing
SENDS: Mapping[str, tuple[Any, ...]] = {
    "endpoint": (None,),
    "key_variable": (None,),
    "offline": (True,),
    "private": (False,),
}
HERE = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)")  # what is sent there stays on this machine
INTERPOLATION = re.compile(r"\$\{\s*([^:}\s]*)\s*([:}]?)(?=\s*([^,}\s]*))")
VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]*)")
DECODED = re.compile(r"\$\{oc\.decode:\$\{oc\.env:[^${}]*\}\}")
NODE = re.compile(r"\.*[\w.\[\]-]*")


def check_trust(trust: Any) -> list[str]:
    """The packages, and environment variables as env:NAME, that the command line trusts. Raises Refused for what is no list
    of these."""
    if isinstance(trust, str):
        raise Refused(f"trust={trust} is one word and no list of packages: trust=[{trust}].")
    if trust is not None and not isinstance(trust, list | tuple):
        raise Refused(f"trust={trust!s:.60} is no list of packages, such as trust=[mypkg].")
    for word in trust or ():
        if not isinstance(word, str) or not re.fullmatch(r"env:\w+|[A-Za-z_]\w*", word):
            raise Refused(
                f"trust has {word!r}, which is neither the name of a package nor env:<an environment variable>."
            )
        if word in ("tunediff", "hydra_plugins"):
            raise Refused(
                f"trust=[{word}]: what may be built of {word} is in tunediff/trusted.py, and the rest never is."
            )
    return list(trust or ())


def target_of(node: Mapping[str, Any]) -> Any:
    """The class or function that the _target_ of a node names. Raises ImportError, AttributeError or ValueError where there
    is none."""
    module, _, attribute = node["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def check_name(node: Mapping[str, Any], path: str, trust: Sequence[str]) -> str:
    """The name of what a node at `path` of a config builds; nothing is imported. Raises Refused for what it may not build, and
    for keys of Hydra's that are not looked through."""
    name = node["_target_"]
    special = [key for key in node if str(key).startswith("_") and str(key).endswith("_") and key not in SPECIAL]
    if special:
        raise Refused(
            f"{path}.{special[0]} is not followed here: a node has {' and '.join(SPECIAL)}, and settings by name."
        )
    if not isinstance(node.get("_partial_", False), bool):
        raise Refused(f"{path}._partial_={node['_partial_']!r}: true or false.")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name):
        raise Refused(f"{path}._target_={name!r} is no name of a class such as tunediff.evaluations.Fidelity.")
    package = name.partition(".")[0]
    if name not in BUILDABLE and package not in trust:
        if package == "tunediff" or package in {one.partition(".")[0] for one in BUILDABLE}:
            last = name.rpartition(".")[2]
            near = [one for one in BUILDABLE if one.rpartition(".")[2] == last] or difflib.get_close_matches(
                name, BUILDABLE
            )
            way = (
                f"Did you mean {near[0]}?"
                if near
                else "A class of your own stands in a package of yours, trust=[<it>]."
            )
            raise Refused(f"{path}._target_={name} is none of what a config may build (tunediff/trusted.py). {way}")
        raise Refused(
            f"{path}._target_={name} names a package that is not trusted. If it is yours, or you have read it, add "
            f"trust=[{package}] on the command line, or trust=['{package}'] to tunediff.load."
        )
    return name


def check_target(node: Mapping[str, Any], path: str, trust: Sequence[str]) -> Any:
    """The class or function that a node at `path` of a config may build. Raises Refused for every other, before anything of
    it is imported, and for one that is not there or that its package has from elsewhere."""
    name = check_name(node, path, trust)
    package = name.partition(".")[0]
    try:
        target = target_of(node)
    except (ImportError, AttributeError, ValueError) as error:
        raise Refused(f"{path}._target_={name} cannot be imported: {error}.") from error
    home = str(getattr(target, "__module__", None)).partition(".")[0]
    if name not in BUILDABLE and home != package:
        raise Refused(f"{path}._target_={name} is written in {home}, and not in {package}, which is trusted.")
    if not callable(target):
        raise Refused(f"{path}._target_={name} is neither a class nor a function.")
    return target


def targets_in(node: Any, path: str = "") -> Iterator[tuple[Mapping[str, Any], str]]:
    """The nodes that have a _target_, with their paths, at every depth of a plain config."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node, path
        for key, value in node.items():
            yield from targets_in(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for n, value in enumerate(node):
            yield from targets_in(value, f"{path}[{n}]")


def leaves_in(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values that are neither mappings nor lists, with their paths."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves_in(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for n, value in enumerate(node):
            yield from leaves_in(value, f"{path}[{n}]")
    else:
        yield path, node


def strings_in(node: Any) -> Iterator[tuple[str, str]]:
    return ((path, value) for path, value in leaves_in(node) if isinstance(value, str))


# -- a file that is read ---------------------------------------------------------------------------------------------


def read_yaml(file: Path) -> dict[str, Any]:
    """The content of a config, nothing in it resolved. Raises Refused where it cannot be read, is too large, no mapping,
    or repeats itself by aliases, as does a small file that unfolds to gigabytes; in a run folder also where it is not as it
    was written."""
    verify(file)
    try:
        with opened(file) as content:
            raw = content.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise Refused(f"{file} has more than {LARGEST:,} bytes, which no config has.")
        text = raw.decode("utf-8")
        depth = 0
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            depth += isinstance(token, BEGINS) - isinstance(token, ENDS)
            if depth > DEEPEST:
                raise Refused(f"{file} nests deeper than {DEEPEST} levels, as no config does.")
            if isinstance(token, yaml.AliasToken):
                raise Refused(f"{file} has aliases (*name): write out what they stand for.")
        content = OmegaConf.create(text)  # the same kinds of numbers as Hydra reads
        plain = OmegaConf.to_container(content, resolve=False) if OmegaConf.is_dict(content) else None
    except Refused:
        raise
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror}.") from error
    except Exception as error:  # of YAML's parser and OmegaConf's grammar, which fail in many ways
        said = str(error).strip().splitlines()
        raise Refused(f"{file} is no config: {said[0] if said else type(error).__name__}.") from error
    if not isinstance(plain, dict):
        raise Refused(f"{file} is no config: it has no settings by name.")
    return {str(key): value for key, value in plain.items()}


def check_file(
    file: Path, *, group: str | None = None, trust: Sequence[str] = (), typed: Iterable[str] | None = None
) -> dict[str, Any]:
    """The content of a config from a file. Raises Refused for one that says more than settings of a study: a whole one, of
    a run, or an option of a `group`. `typed` are the keys that the command line gives in their place; None where what the
    config describes is only looked at, so that it neither sends nor writes."""
    content, given = read_yaml(file), {*(typed or ())}
    if group is None:
        content.pop("trust", None)  # whom the one who ran it trusted
        if content.get("hydra") == BEFORE:
            del content["hydra"]
    for key, why in (
        ("hydra", "sets up Hydra itself, which can run code and write anywhere"),
        ("trust", "says whom you trust"),
    ):
        if content.get(key):
            raise Refused(f"{file} {why} ({key}:). Only the command line does: take it out of the file.")
    if group is None and content.get("sweep") is not None:
        path_in(Path("multirun"), str(content["sweep"]), f"{file} has as sweep, the folder in multirun,")
    _check_place(file, content.pop("defaults", None) or [], group)
    within = "" if group in (None, "experiment") else f"{group}."  # a key as it is typed
    unread = {}
    for key, value in strings_in(content):
        if f"{within}{key}" not in given:
            unread |= dict.fromkeys(_check_interpolations(file, f"{within}{key}", value, trust), f"{within}{key}")
    if unread:
        raise Refused(
            f"{file} reads the environment variable{'s' * (len(unread) > 1)} {', '.join(unread)}, for {', '.join(unread.values())}. If it "
            f"may, say trust=[{','.join(f'env:{name}' for name in unread)}] on the command line, or in tunediff.load."
        )
    if typed is not None:
        check_reach(file, content, within=within, given=given, writes=group in (None, "experiment", "text"))
    for node, path in targets_in(content):
        check_name(node, path, trust)
    return content


def check_reach(file: Path, content: Any, *, within: str = "", given: Iterable[str] = (), writes: bool = True) -> None:
    """Raises Refused where the settings of a file, which stand below `within`, would send data from this machine, or write
    elsewhere, and the command line does not give them itself."""
    for key, value in leaves_in(content):
        key = f"{within}{key}"
        last = key.rpartition(".")[2]
        if last in SENDS and value not in SENDS[last] and key not in given and not HERE.match(str(value)):
            raise Refused(
                f"{file} has {key}={value}, by which data would leave this machine. If you want that, say so on the command "
                f"line: {key}=..."
            )
        if writes and last == "folder" and key not in given and _leads_away(key, value):
            raise Refused(f"{file} has {key}={value}, which is written to. If you want that, say {key}=... yourself.")


def asking_nobody(settings: Any) -> Any:
    """Plain settings in which no judge has an endpoint: so a folder that is opened sends nothing at its own word."""
    if isinstance(settings, list):
        return [asking_nobody(value) for value in settings]
    if not isinstance(settings, Mapping):
        return settings
    silent = {key: sends_nothing for key, (sends_nothing, *_) in SENDS.items() if key in settings}
    made = {key: asking_nobody(value) for key, value in settings.items()}
    return {**made, **silent} if settings.get("_target_") == "tunediff.evaluations.Judge" else made


# what stood in the config.yaml of every run once
BEFORE = {"run": {"dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}-${identity:}"}, "job": {"chdir": False}}


def _leads_away(key: str, folder: Any) -> bool:
    """True for the folder of a logger, which clears it, that is not the run's, and for one that is not below where one stands."""
    if folder == "${run_folder:}" or folder is None:
        return False
    if key.startswith("logger.") or not isinstance(folder, str):
        return True
    return Path(folder).is_absolute() or folder.startswith("~") or ".." in Path(folder).parts or "${" in folder


def _check_place(file: Path, defaults: Any, group: str | None) -> None:
    """Raises Refused for a file that reaches out of its group, by its defaults or by its @package."""
    if group is None and defaults:
        raise Refused(f"{file} is composed of others (defaults:): a config by --config-path stands for itself.")
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        if re.search(r"hydra|\.\.|//|searchpath|\$", words := str(entry)):
            raise Refused(f"{file} has defaults: {words}, which may name options of the groups in conf/ alone.")
    for package in re.findall(r"^\s*#\s*@package\s+(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE):
        if package != ("_global_" if group == "experiment" else "_group_"):
            raise Refused(
                f"{file} has @package {package}: a file sets what is of its group, and an experiment what a study has."
            )


def _check_interpolations(file: Path, key: str, value: str, trust: Sequence[str]) -> list[str]:
    """The environment variables that a string reads and that nobody said it may. Raises Refused for another reference."""
    unread = []
    for name, behind, argument in INTERPOLATION.findall(value):
        if behind != ":":
            if NODE.fullmatch(name):
                continue
        elif name == "oc.env" and re.fullmatch(r"\w+", argument):
            unread += [] if argument in VARIABLES or f"env:{argument}" in trust else [argument]
            continue
        elif (
            name in RESOLVERS or name == "oc.decode" and DECODED.fullmatch(value)
        ):  # of which the variable is looked at
            continue
        raise Refused(
            f"{file} has {key}={value:.80}: a config that is read may use {', '.join(RESOLVERS)} and its own keys."
        )
    return unread


# -- environment variables -------------------------------------------------------------------------------------------

_by_name: contextvars.ContextVar[bool] = contextvars.ContextVar("by_name", default=False)


def _env(name: str, *default: Any) -> str | None:
    """The resolver oc.env, and within `unresolved` the words by which it was called."""
    if not _by_name.get():
        return env(name, *default)
    said = "".join("," + ("null" if one is None else _quoted(str(one))) for one in default)
    return f"${{oc.env:{name}{said}}}"


def _quoted(word: str) -> str:
    if re.fullmatch(r"[\w./-]+", word):
        return word
    return "'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _decode(expression: str | None, _parent_: Any, _node_: Any) -> Any:
    """The resolver oc.decode, which within `unresolved` leaves what stands in an environment variable as it is."""
    if _by_name.get() and expression is not None and VARIABLE.match(expression):
        return f"${{oc.decode:{expression}}}"
    return decode(expression, _parent_, _node_)


OmegaConf.register_new_resolver("oc.env", _env, replace=True)
OmegaConf.register_new_resolver("oc.decode", _decode, replace=True)


def with_references(node: Any) -> Any:
    """A config node as plain lists and dictionaries with its references as they stand there."""
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def variables_of(cfg: Any) -> list[str]:
    """The environment variables that a config reads, as `trust` names them: env:NAME."""
    return sorted({f"env:{name}" for _, value in strings_in(with_references(cfg)) for name in VARIABLE.findall(value)})


def trust_of(cfg: Any) -> list[str]:
    """Whom a config that was typed trusts, and the environment variables that it reads: what the processes that train it
    are told."""
    return [*(cfg.get("trust") or ()), *variables_of(cfg)]


def unresolved(node: Any) -> Any:
    """A config node as plain lists and dictionaries, in which all is resolved but what stands in environment variables: what
    is written down of a run has their names, and never what they hold."""
    token = _by_name.set(True)
    try:
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    finally:
        _by_name.reset(token)
