"""Command line and composed config -> checked settings and objects, before any model is loaded.

Hydra refuses unknown keys and options but does not name the nearest legal one, does not look into the arguments of a
`_target_`, and lets `+key=value` through. All three are mended here. Knows no torch.
"""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import functools
import hashlib
import inspect
import json
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import hydra
import hydra.errors
import pydantic
import pydantic_core
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from tunediff import files, hub
from tunediff.shapes import Refused, Stopped, flat, path_in
from tunediff.terminal import guard, printable, shown
from tunediff.trusted import (
    VARIABLES,
    check_file,
    check_target,
    check_trust,
    read_yaml,
    strings_in,
    targets_in,
    unresolved,
    variables_of,
    with_references,
)

# what cannot change what a study means; a task counts where an evaluation names it, as ${task}
IMMATERIAL = "logger trainer hydra trust sweep launcher dry_run checkpoint_every device memory_gb logits_mb optimized_metric task commits".split()

# of a dry run: Hydra's folder is one that is there, and neither logs nor configs are laid in it
UNWRITTEN = (
    "hydra.output_subdir=null",
    "hydra.job_logging.root.handlers=[console]",
    "~hydra.job_logging.handlers.file",
)
UNWRITTEN_SWEEPER = "hydra_plugins.tunediff_launchers.DrySweeper"

ONE_OF_A_LIST = re.compile(r"""\s*("[^"]*"|'[^']*'|[^,]+)\s*(?:,|$)""")  # a comma in quotes parts nothing

NESTED = "budget model_pair text dictionary l1_schedule optimizer activations trainer launcher evaluation task logger model recipe".split()
# of Lightning's, those that change neither what is learned nor for how long
TRAINER = "_target_ accelerator devices num_nodes strategy precision deterministic benchmark".split()
SEVERAL = ("evaluation", "task", "logger")  # groups of which a study may choose several options

COUNT = Annotated[int, pydantic.Field(gt=0, strict=True)]  # 12, and not 12.0: one number, one way to write it
# of held-out tokens, which are kept in memory: a text of that size is no sample any more, and a toy one never ends
HELD_OUT = Annotated[int, pydantic.Field(gt=0, le=10**9, strict=True)]
POSITIVE = pydantic.Field(gt=0, allow_inf_nan=False)
SHARE = Annotated[float, pydantic.Field(ge=0, lt=1)]
ABSENT = object()
# settings that no class of their own takes
NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("optimizer.batch", "activations.fit_tokens"), COUNT),
    "budget.evaluation_tokens": HELD_OUT,
    **dict.fromkeys(("budget.tokens", "activations.buffer"), Annotated[int, pydantic.Field(ge=0, strict=True)]),
    **dict.fromkeys(("optimizer.learning_rate", "logits_mb"), Annotated[float, POSITIVE]),
    "checkpoint_every": Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)],  # 0: at every step
    "optimizer.betas": tuple[SHARE, SHARE],
    "optimizer.clip_norm": Annotated[float | None, POSITIVE],
    **dict.fromkeys(
        ("seed", "text.seed", "dictionary.seed"), Annotated[int, pydantic.Field(ge=0, lt=2**63, strict=True)]
    ),
    **dict.fromkeys(("trainer.devices", "trainer.num_nodes"), COUNT),
    "tokens": typing.Optional[HELD_OUT],  # noqa: UP045
    **dict.fromkeys(("dry_run", "launcher.pack"), pydantic.StrictBool),
    "optimized_metric": pydantic.StrictStr,
    "commits": dict[str, Annotated[str, pydantic.Field(pattern=f"^{hub.COMMIT.pattern}$")]] | None,
    **dict.fromkeys(("launcher.device", "device"), typing.Literal["h200", "h100", "a100", "cpu"] | None),
    **dict.fromkeys(("launcher.memory_gb", "memory_gb"), Annotated[float | None, POSITIVE]),
}


# -- the command line ------------------------------------------------------------------------------------------------


_began = False


def begun() -> None:
    """Says that from here on a refusal is a failure of what was begun, and no longer a mistake in what was typed."""
    global _began
    _began = True


@contextlib.contextmanager
def said_plainly() -> Iterator[None]:
    """Context, and decorator, in which a refusal ends the program with one sentence: with status 2 where nothing was begun
    and what was typed has to be mended, with 1 where what was begun failed."""
    try:
        yield
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(1 if _began or isinstance(refusal, Stopped) else 2)


@contextlib.contextmanager
def composed_plainly() -> Iterator[None]:
    """Context in which a config that cannot be composed ends the program with one sentence."""
    try:
        yield
    except (OmegaConfBaseException, hydra.errors.HydraException) as error:
        where = getattr(error, "full_key", None) or "the config"
        print(f"error: {where}: {printable(str(error).strip().splitlines()[0])}", file=sys.stderr)
        sys.exit(1 if _began else 2)


def verb(name: str) -> Callable:
    """Hydra's decorator with conf/<name>.yaml, which says in one sentence what was refused and why."""

    def decorate(story: Callable[[DictConfig], Any]) -> Callable[[], None]:
        folder = Path(inspect.getfile(story)).resolve().parent / "conf"
        wrapped = hydra.main(version_base="1.3", config_path=str(folder), config_name=name)(
            said_plainly()(shown()(story))
        )

        @functools.wraps(story)
        def main() -> None:
            global _began
            _began = False
            guard()
            with said_plainly(), composed_plainly():
                sys.argv[1:] = with_files(sys.argv[1:], folder)
                sys.argv[1:] += of_its_own(sys.argv[1:], folder)
                check_command_line(sys.argv[1:], folder, name)
                sys.argv[1:] += nothing_written(sys.argv[1:], name)
                sys.argv[1:] += named(sys.argv[1:], name)
            try:
                with composed_plainly():
                    wrapped()
            except KeyboardInterrupt:
                print("stopped before anything was begun", file=sys.stderr)
                sys.exit(130)
            except SystemExit as left:  # Hydra has said what does not compose
                said = isinstance(left.__context__, hydra.errors.HydraException | OmegaConfBaseException)
                if left.code != 1 or not said or _began:
                    raise
                sys.exit(2)

        return main

    return decorate


def overrides_in(arguments: Sequence[str]) -> list[str]:
    """The overrides of a command line, without Hydra's flags and what stands behind them, as Hydra takes it apart."""
    return (
        [] if READ.intersection(arguments) else list(get_args_parser().parse_known_args(list(arguments))[0].overrides)
    )


READ = frozenset({"--help", "-h", "--version"})  # of which argparse makes an end at once


def parsed(arguments: Sequence[str]) -> list[Override] | None:
    """The overrides of a command line; None where Hydra cannot read one, whose own message on the grammar is good."""
    try:
        return OverridesParser.create().parse_overrides(overrides_in(arguments))
    except hydra.errors.HydraException:
        return None


def typed_keys(arguments: Sequence[str]) -> dict[str, Any]:
    """Key -> value of the overrides of a command line; nothing where Hydra cannot read one."""
    found = parsed(arguments) or []
    return {o.key_or_group: None if o.is_sweep_override() or o.is_delete() else o.value() for o in found}


# of a run that is started from a config by its path, which says nothing of Hydra
OF_ITS_OWN = {
    "hydra.run.dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}-${identity:}",
    "hydra.job.chdir": "false",
    "hydra.job_logging.handlers.file.filename": "'${hydra.runtime.output_dir}/run.log'",
}


def written_out(folder: Path) -> set[str]:
    """The keys that options of conf/ refer to, as ${seed}: a config that a run has written holds their values in each place."""
    texts = (path.read_text(encoding="utf-8") for path in folder.rglob("*.yaml"))
    return {key for text in texts for key in re.findall(r"\$\{(?:oc\.select:)?([a-z_]+(?:\.[a-z_]+)*)[},]", text)}


def of_its_own(arguments: Sequence[str], folder: Path) -> list[str]:
    """Words for Hydra about where a run goes whose config is named by --config-path, which was looked at and carries none.
    Raises Refused for a config that may not be read."""
    if READ.intersection(arguments):
        return []
    flags = get_args_parser().parse_known_args(list(arguments))[0]  # --config-pat is --config-path to it
    if flags.config_path is None:
        return []
    typed = typed_keys(arguments)
    place, name = folder.parent / flags.config_path, flags.config_name
    if name is None:
        raise Refused(f"--config-path {flags.config_path} needs the name of a config there: --config-name config.")
    file = next((f for f in (place / name, place / f"{name}.yaml") if f.suffix == ".yaml" and f.is_file()), None)
    if file is None:
        raise Refused(f"--config-path {flags.config_path} --config-name {name}: there is no such file.")
    trust = check_trust(typed.get("trust"))
    content = check_file(file, trust=trust, typed=typed)
    elsewhere = written_out(folder) if typed else ()
    for key in typed:
        if key in elsewhere and OmegaConf.select(OmegaConf.create(content), key) is not None:
            raise Refused(
                f"{key}={typed[key]}: {file} has the value of {key} written out wherever it is used, so that another one there would not "
                "be followed. Type the line of the study with it instead, without --config-path."
            )
    words = {**OF_ITS_OWN, **({"trust": "[]"} if "trust" in read_yaml(file) else {})}
    return [f"{key}={value}" for key, value in words.items() if key not in typed]


def nothing_written(arguments: Sequence[str], name: str) -> list[str]:
    """Words for Hydra by which a dry run leaves no folder, no log and no copy of its config; none for another run. Raises
    Refused for a sweeper that chooses its members by what became of the first."""
    overrides = parsed(arguments) or []
    given = {override.key_or_group: override.value() for override in overrides if not override.is_sweep_override()}
    if not given.get("dry_run"):
        return []
    if not {"-m", "--multirun"} & {*arguments}:
        return ["hydra.run.dir=.", *UNWRITTEN]
    if (sweeper := given.get("hydra/sweeper", "basic")) != "basic":
        raise Refused(
            f"dry_run=true with hydra/sweeper={sweeper}: which members it has is known once the first have ended. "
            "Leave -m and the sweeper out to see what one of them takes."
        )
    words = [f"hydra.sweeper._target_={UNWRITTEN_SWEEPER}"]
    # the members of a sweep of studies are looked for in its folder; those of others are run by Hydra, one after another
    return words if name == "train" else [*words, "hydra.sweep.dir=.", "hydra.sweep.subdir=.", *UNWRITTEN]


def named(arguments: Sequence[str], name: str) -> list[str]:
    """The name of a sweep of fine-tunes that was given none, for Hydra: it composes each member anew, whose line is another."""
    if name != "finetune" or not {"-m", "--multirun"} & {*arguments} or "sweep" in typed_keys(arguments):
        return []
    return [f"sweep={_digest_of_line(overrides_in(arguments))}"]


def with_files(arguments: Sequence[str], folder: Path) -> list[str]:
    """Turns model_pair=<a folder>/pair.yaml into an option of the group, wherever the file lies: Hydra finds it by its path
    relative to the group. Raises Refused for a file that is not there."""

    def placed(group: str, value: str) -> str:
        value = value.strip().strip("'\"")
        if not value.endswith(".yaml"):
            return value
        file = Path(value).expanduser().resolve()
        if not file.is_file():
            raise Refused(f"{group}={value}: there is no such file.")
        check_file(file, group=group, trust=check_trust(typed.get("trust")), typed=typed)
        return "'" + os.path.relpath(file.with_suffix(""), (folder / group).resolve()).replace("'", "\\'") + "'"

    arguments = list(arguments)
    typed = typed_keys(arguments)
    for n, argument in enumerate(arguments):
        group, given, value = argument.partition("=")
        if given and ".yaml" in value and (folder / group).is_dir():
            inside = value.removeprefix("[").removesuffix("]")
            whole = Path(inside.strip().strip("'\"")).expanduser().is_file()  # a name with a comma is no list
            words = ",".join(placed(group, one) for one in ([inside] if whole else ONE_OF_A_LIST.findall(inside)))
            arguments[n] = f"{group}=[{words}]" if inside != value else f"{group}={words}"
    return arguments


def check_command_line(arguments: Sequence[str], folder: Path, name: str) -> None:
    """Raises Refused, naming the nearest legal words, for a key or an option that does not exist, and for a key of
    conf/<name>.yaml that was left open (???) and is not given."""
    if any(a.startswith(("--config", "-cn", "-cp", "-cd", "--hydra-help", "--help", "-h")) for a in arguments):
        return
    overrides = parsed(arguments)
    if overrides is None:
        return
    groups = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir() and path.name != "__pycache__"
    }
    chosen = [o for o in overrides if o.key_or_group in groups]
    searched = [o for o in overrides if o.key_or_group == "hydra.searchpath"]
    if not searched:
        for override in chosen:
            options = {path.stem for path in (folder / override.key_or_group).glob("*.yaml")}
            value = [] if override.is_sweep_override() else override.value()
            if isinstance(value, list) and value and override.key_or_group not in SEVERAL:
                raise Refused(
                    f"{override.key_or_group}={','.join(map(str, value))}: choose one. A sweep over several is -m "
                    f"{override.key_or_group}={','.join(map(str, value))}, without brackets."
                )
            for option in value if isinstance(value, list) else [value]:
                if not isinstance(option, str) or option in options:
                    continue
                if not (folder / override.key_or_group / f"{option}.yaml").is_file():
                    raise Refused(f"{override.key_or_group}={option}: {_nearest(option, options, 'options')}")
    plain = [str(o.input_line) for o in chosen if not o.is_sweep_override()]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        composed = hydra.compose(name, [*plain, *(str(o.input_line) for o in searched)], return_hydra_config=True)
    legal = set(_keys(composed))
    for override in overrides:
        key = override.key_or_group.split("@")[0]
        if key in NESTED and key not in groups and not override.is_sweep_override():
            if override.is_delete():
                raise Refused(f"~{key} takes away settings that are read: leave it out.")
            refuse_one_value(key, override.value())
        if override in chosen or key in legal or key in groups or key.startswith("hydra") or override.is_delete():
            continue
        if any(sweep.is_sweep_override() for sweep in chosen):
            continue  # the key may exist under another option of the sweep; each member is checked whole
        if override.is_add() and OmegaConf.select(composed, key.rpartition(".")[0] or "model_pair") is not None:
            continue  # judged by the signature it is added to
        raise Refused(f"{key} is not a setting here. {_nearest(key, legal, 'settings')}")
    if any(a.startswith("-") and a not in ("-m", "--multirun") for a in arguments):
        return  # who asks Hydra to show a config need not fill it
    given = {override.key_or_group for override in overrides if not override.is_delete()}
    for key in map(str, composed):
        if OmegaConf.is_missing(composed, key) and key not in given:
            raise Refused(_not_set(key, f"python {name}.py {key}=<{_comment(folder / f'{name}.yaml', key)}>"))


def _not_set(key: str, words: str) -> str:
    return f"{key} is not set: give it on the command line, {words}."


def _comment(path: Path, key: str) -> str:
    """The comment behind a key that was left open; three dots where there is none."""
    found = re.search(rf"^{re.escape(key)}: *\?\?\? *# *(.+?) *$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "..."


def _keys(node: Any, path: str = "") -> Iterator[str]:
    for key in node if isinstance(node, DictConfig) else ():
        name = f"{path}.{key}" if path else str(key)
        if name != "hydra":
            yield name
            yield from _keys(node._get_node(key), name)


def _nearest(word: str, legal: typing.Iterable[str], kind: str) -> str:
    legal = sorted((key for key in legal if not key.endswith("_")), key=lambda key: (key.count("."), key))
    last, ends = word.rpartition(".")[2], {key: key.rpartition(".")[2] for key in legal}
    close = [key for key in legal if ends[key] == last] or difflib.get_close_matches(word, legal, n=1)
    if not close:
        near = difflib.get_close_matches(last, ends.values(), n=1)
        close = [key for key in legal if ends[key] in near]
    if close:
        return f"Did you mean {close[0]}?"
    return f"The {kind} are {', '.join(key for key in legal if '.' not in key)}."


# -- the composed config ---------------------------------------------------------------------------------------------


def check(cfg: DictConfig, legal: Sequence[str]) -> None:
    """Raises Refused for an unknown top-level key, a _target_ that may not be built, an argument it does not take, a value of
    the wrong type or out of range, or a value that was left open (???); what stands in an environment variable is named by
    it."""
    try:
        _check(cfg, legal)
    except Refused as refusal:
        said = str(refusal)
        for word in variables_of(cfg):
            held = os.environ.get(word.removeprefix("env:"), "")
            said = said.replace(held, f"<{word}>") if len(held) > 3 else said
        raise Refused(said) from None


def _check(cfg: DictConfig, legal: Sequence[str]) -> None:
    for key in cfg:
        if key not in legal and key != "hydra":
            raise Refused(f"{key} is not a setting here. {_nearest(str(key), legal, 'settings')}")
    trust = check_trust(plain(cfg.get("trust")))
    given = cfg.get("dictionary") or {}
    if given and not OmegaConf.is_dict(given):
        raise Refused(f"dictionary={given!s:.60} is one value, where settings by name belong: choose an option of it.")
    for key in READ_BY_STUDY["dictionary"] if cfg.get("optimizer") else ():  # it is to be trained
        if key not in given and not key.startswith("start"):
            raise Refused(
                f"dictionary.{key} is not set. The study reads it beside the settings of {given.get('_target_')}: "
                "see conf/dictionary/defaults/crosscoder.yaml."
            )
    try:
        settings: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise Refused(_not_set(str(error.full_key), f"{error.full_key}=<...>")) from error
    except OmegaConfBaseException as error:
        raise Refused(f"{error.full_key or 'The config'}: {str(error).splitlines()[0]}") from error
    for key in settings.get("trainer") or ():
        if key not in TRAINER:
            near = difflib.get_close_matches(key, TRAINER, n=1)
            way = (
                f"Did you mean trainer.{near[0]}?"
                if near
                else f"A study's has {', '.join(TRAINER[1:])}; budget says how long it is."
            )
            raise Refused(f"trainer.{key} is not a setting of lightning.Trainer. {way}")
    if not isinstance((settings.get("dictionary") or {}).get("hookpoint", {}), dict):
        raise Refused("dictionary.hookpoint is one value, where settings by name belong: choose an option of it.")
    for key in NESTED:
        if (value := settings.get(key, {})) is not None or key not in SEVERAL:
            refuse_one_value(key, value)
    values = flat(settings)
    for key, kind in NUMBERS.items():
        value = OmegaConf.select(cfg, key, default=ABSENT)  # settings by name stand where one belongs, or not
        if value is not ABSENT:
            try:
                pydantic.TypeAdapter(kind).validate_python(plain(value))
            except pydantic.ValidationError as error:
                raise Refused(f"{key}={value}: {error.errors()[0]['msg'].lower()}.") from error
    for key, value in values.items():
        if isinstance(value, float) and math.isnan(value):
            raise Refused(f"{key}=nan is no number.")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise Refused(f"{key}={value} is larger than any number that is counted with.")
        if isinstance(value, str) and "${" in value:  # an object is described once more before it is built
            raise Refused(
                f"{key}={value:.80} holds a reference within what another one stands for: name the value itself."
            )
    if "sweep" in cfg:
        path_in(Path("multirun"), str(cfg.sweep), "sweep=")
    for node, path in targets_in(settings):
        _check_settings(node, path, check_target(node, path, trust))


def refuse_one_value(key: str, value: Any) -> None:
    if not isinstance(value, dict):
        ways = {"budget": "give one of them, budget.tokens=...", "launcher": "where a sweep runs is hydra/launcher=..."}
        way = ways.get(key, f"choose an option of {key}")
        said = "null" if value is None else f"{value!s:.60}"
        raise Refused(f"{key}={said} is one value, where settings by name belong: {way}.")


# keys of a dictionary option that are read by the study rather than by the dictionary's class
READ_BY_STUDY = {"dictionary": ("hookpoint", "objective", "reads", "l1_schedule", "start", "start_revision")}


def _check_settings(node: Mapping[str, Any], path: str, target: Any) -> None:
    name = node["_target_"]
    parameters = inspect.signature(target).parameters
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # a foreign class whose annotations name what only its type checker imports
        hints = {}
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        if key.startswith("_") or key in READ_BY_STUDY.get(path, ()):
            continue
        if key not in parameters and not free:
            where = f"{path}." if path else ""
            raise Refused(
                f"{where}{key} is not a setting of {name}. "
                + _nearest(f"{where}{key}", [f"{where}{p}" for p in parameters if p != "self"], "settings")
            )
        _check_value(f"{path}.{key}", value, hints.get(key, Any))
    asked = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    called_later = node.get("_partial_") and path.rpartition(".")[2] != "rows"  # which are called as they are
    missing = [] if called_later else [key for key in asked if key not in node]
    if missing:
        raise Refused(
            f"{path}.{missing[0]} is not set, and {name} asks for it: add {missing[0]}: <...> to its settings."
        )


def _check_value(path: str, value: Any, hint: Any) -> None:
    if _describes_objects(value):  # checked as what they are
        return
    if isinstance(value, Mapping) and not _takes_mappings(hint):
        raise Refused(f"{path} names no class: {path}._target_=<a class>, and its settings beside it.")
    parts = typing.get_args(hint) or (hint,)
    if isinstance(value, float) and value.is_integer() and int in parts and float not in parts:
        raise Refused(f"{path}={value} is not of type {_spelled(hint)}: write {int(value)}.")
    if isinstance(value, str) and all(part in (int, float, bool, type(None)) for part in parts):
        raise Refused(f"{path}={value!r} is not of type {_spelled(hint)}.")
    try:
        pydantic.TypeAdapter(hint, config={"arbitrary_types_allowed": True}).validate_python(value)
    except pydantic.ValidationError as error:
        if typing.get_origin(hint) is typing.Literal:
            raise Refused(f"{path}={value!r}: choose {', '.join(map(str, typing.get_args(hint)))}.") from error
        raise Refused(
            f"{path}={value!r} is not of type {_spelled(hint)}: {error.errors()[0]['msg'].lower()}."
        ) from error
    except pydantic.PydanticUserError:  # a type that cannot be checked by value, such as a module
        if isinstance(hint, type) and isinstance(value, int | float | str | None):
            said = "null" if value is None else repr(value)
            raise Refused(
                f"{path}={said}: a {_spelled(hint)} belongs there, and no single value. Leave {path} to its option, or "
                f"change one of its settings, {path}.<setting>=..."
            ) from None
    except pydantic_core.SchemaError as error:  # a protocol: only an object of some class can have it
        if value is None and type(None) in typing.get_args(hint):
            return
        raise Refused(
            f"{path}={value!r} is no {_spelled(hint)}: name its class, {path}._target_=..., and its settings with +{path}.<setting>=..."
        ) from error


def unset(error: BaseException) -> Refused | None:
    """The refusal for a setting that is read and was not there, as behind ~optimizer.batch or an option that has none; None
    for another error."""
    if not isinstance(error, ConfigAttributeError | ConfigKeyError) or "is not in struct" not in str(error):
        return None
    key = str(error.full_key)
    option = key.partition(".")[0]
    way = f"choose an option of {option} that has it, or add +{key}=<...>" if "." in key else f"give {key}=<...>"
    return Refused(f"{key} is not set, and this study reads it: {way}.")


def _describes_objects(value: Any) -> bool:
    """True for a value that describes an object, or a list or mapping of objects."""
    if isinstance(value, Mapping):
        return "_target_" in value or (bool(value) and all(map(_describes_objects, value.values())))
    return isinstance(value, list) and bool(value) and all(map(_describes_objects, value))


def _takes_mappings(hint: Any) -> bool:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(map(_takes_mappings, typing.get_args(hint)))
    kind = typing.get_origin(hint) or hint
    return not isinstance(kind, type) or issubclass(kind, Mapping) or kind is object


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("NoneType", "null")


def build(node: Any, **extra: Any) -> Any:
    """The object that a checked node describes. A refusal inside comes out as it was written. Raises Refused for one value
    where an object belongs."""
    if node is not None and not isinstance(node, Mapping) and not OmegaConf.is_dict(node):
        raise Refused(
            f"{node!s:.60} stands where an object is described, by its class and its settings: {{_target_: ...}}."
        )
    if node is not None and "_target_" not in node:
        raise Refused(f"The settings {', '.join(map(str, node))} name no class: _target_=<a class> beside them.")
    try:
        return hydra.utils.instantiate(node, _convert_="all", **extra)
    except hydra.errors.InstantiationException as error:
        if isinstance(error.__cause__, Refused):
            raise error.__cause__ from None
        raise


# -- identity --------------------------------------------------------------------------------------------------------


def material(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without what cannot change a number: logger, launcher, device. Paths stay as they were typed, and what
    is on the Hub has its commit for the branch that was typed. The precision of the trainer is kept, and `read` has the digests of
    the files that are read, as files.py takes them."""
    kept = {str(key): unresolved(cfg[key]) for key in cfg if key not in IMMATERIAL}
    read: dict[str, str] = {}
    with contextlib.suppress(OmegaConfBaseException):  # what is not set is said where the config is checked
        meant = {key: plain(cfg[key]) for key in kept}
        read = files.of_settings(meant)
        hub.pin(kept, meant, {}, ask="commits" not in cfg)
    kept.get("activations", {}).pop("folder", None)
    for part in ("dictionary", "recipe"):  # which pass it on to their objective
        (kept.get(part, {}).get("objective") or {}).pop("logits_mb", None)
    return {**kept, "precision": str(OmegaConf.select(cfg, "trainer.precision")), "read": read}


def pinned(cfg: DictConfig, known: Mapping[str, Any] | None = None, *, ask: bool = True) -> DictConfig:
    """The config with the commits of what is on the Hub for the branches that were typed, and `commits`, which says what stood
    there: nothing is asked for it any more. Its identity is the same as before. `known` as in hub.pin."""
    made, found = cfg.copy(), dict(plain(cfg.get("commits")) or {})
    settings = {str(key): unresolved(cfg[key]) for key in cfg if key not in IMMATERIAL}
    for key, written in settings.items():
        if commits := hub.pin(written, plain(cfg[key]), known or {}, ask=ask):
            OmegaConf.update(made, key, written, merge=False, force_add=True)
            found |= commits
    read = {
        value for _, value in strings_in(settings)
    }  # a config that was written names what was typed in its place since
    found = {name: commit for name, commit in found.items() if commit in read}
    OmegaConf.update(made, "commits", found, merge=False, force_add=True)
    return made


def identity(cfg: DictConfig) -> str:
    """A digest of twelve digits of every setting that matters, of the files that are read, and of what environment variables
    hold; any change changes it."""
    return digest([material(cfg), environment(cfg)])


def environment(cfg: DictConfig) -> dict[str, str | None]:
    """Digests of what the environment variables hold that material settings read, but for those that name a place alone. They
    stand in no file: a digest of a short secret can be guessed."""
    kept = {key: node for key, node in with_references(cfg).items() if key not in IMMATERIAL}
    names = [word.removeprefix("env:") for word in variables_of(kept)]
    return {name: _slow_digest(os.environ.get(name)) for name in sorted({*names} - {*VARIABLES})}


@functools.cache
def _slow_digest(held: str | None) -> str | None:
    return None if held is None else hashlib.pbkdf2_hmac("sha256", held.encode(), b"tunediff", 100_000).hex()


def stream_key(cfg: DictConfig) -> str:
    """A digest of all that decides which rows the dictionaries of a group are given, and how they are trained together:
    models, text, tokens, batch, buffer, and the trainer with its precision. What is read out of the models is free.
    Studies of a pair alone have neither batch nor buffer, so they share its models among themselves."""
    settings = material(cfg)
    parts = {key: settings.get(key) for key in ("model_pair", "text", "activations")}
    parts["read"] = read_by(settings, parts)
    size = {"tokens": settings["budget"]["tokens"], "batch": OmegaConf.select(cfg, "optimizer.batch")}
    size["environment"] = environment(cfg)
    return digest({**parts, **size, "trainer": unresolved(cfg.trainer)})


def read_by(settings: Mapping[str, Any], parts: Iterable[str]) -> dict[str, str]:
    """The digests, of material settings, of what some parts of a config read."""
    return {name: digest for name, digest in settings["read"].items() if name.partition(".")[0] in {*parts}}


def plain(node: Any) -> Any:
    """A config node as Python's own lists and dictionaries, resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


# -- the run folder of a config ---------------------------------------------------------------------------------------

_folder: contextvars.ContextVar[Path | None] = contextvars.ContextVar("folder", default=None)


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    """Context in which `${run_folder:}` is this folder: one process may hold several runs."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def run_folder() -> Path:
    return _folder.get() or Path(HydraConfig.get().runtime.output_dir)


def line(_root_: DictConfig) -> str:
    """A digest of the command line without what cannot change a number, whatever the order: the name of a sweep that was
    given none, so that the same line finds the same folder."""
    overrides = OmegaConf.select(_root_, "hydra.overrides.task")
    if overrides is None:
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return _digest_of_line(with_references(overrides))


def _digest_of_line(overrides: Sequence[str]) -> str:
    dropped = {*IMMATERIAL} - {"task"}
    words = [word for word in overrides if word.partition("=")[0].lstrip("+").partition(".")[0] not in dropped]
    return digest(sorted(words))[:8]


OmegaConf.register_new_resolver("identity", lambda *, _root_: identity(_root_), replace=True)
OmegaConf.register_new_resolver("run_folder", lambda: str(run_folder()), replace=True)
OmegaConf.register_new_resolver("line", lambda *, _root_: line(_root_), replace=True)
