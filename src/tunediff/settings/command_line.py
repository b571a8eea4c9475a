"""The command line -> what Hydra composes, refused in one sentence where it cannot be.

Hydra refuses unknown keys and options but does not name the nearest legal one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import hydra.errors
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tunediff.settings.checked import LEARNING, NESTED, SEVERAL, nearest, not_set, refuse_one_value, unset
from tunediff.settings.identity import digest_of_line
from tunediff.settings.typed import (
    READ,
    flags_first,
    flags_of,
    is_sweep,
    overrides_in,
    parsed,
    refuse_launcher,
    refuse_malformed,
    refuse_nothing_there,
    typed_keys,
)
from tunediff.shapes import Refused, Stopped
from tunediff.terminal import guard, printable, shown
from tunediff.trusted import (
    check_file,
    check_trust,
    read_yaml,
)

# of a dry run: Hydra's folder is one that is there, and neither logs nor configs are laid in it
UNWRITTEN = (
    "hydra.output_subdir=null",
    "hydra.job_logging.root.handlers=[console]",
    "~hydra.job_logging.handlers.file",
)
UNWRITTEN_SWEEPER = "hydra_plugins.tunediff_launchers.DrySweeper"
ONE_OF_A_LIST = re.compile(r"""\s*("[^"]*"|'[^']*'|[^,]+)\s*(?:,|$)""")  # a comma in quotes parts nothing
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
    except OSError as error:  # before what needs torch to be imported can say it
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        print(
            f"error: {error.strerror}: raise the limit (ulimit -n 4096) and type the same line again.", file=sys.stderr
        )
        sys.exit(1)


@contextlib.contextmanager
def composed_plainly() -> Iterator[None]:
    """Context in which a config that cannot be composed ends the program with one sentence."""
    try:
        yield
    except (OmegaConfBaseException, hydra.errors.HydraException) as error:
        print(f"error: {_of_hydra(error)}", file=sys.stderr)
        sys.exit(1 if _began else 2)


def _of_hydra(error: Exception) -> str:
    """One sentence for what Hydra or OmegaConf could not do."""
    if (refusal := unset(error)) is not None:
        return str(refusal)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    lines = [str(one).partition("Config search path")[0] for one in (error, cause) if one is not None]
    said = printable(" ".join(" ".join(lines).split()))
    if isinstance(error, hydra.errors.HydraException) and _began:  # what became of a sweep, in words of ours
        return said
    return f"{getattr(error, 'full_key', None) or 'the config'}: {said:.400}"


@contextlib.contextmanager
def errors_from_hydra() -> Iterator[None]:
    """Context in which Hydra raises what went wrong, instead of printing it in its own words."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


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
                sys.argv[1:] = with_files(flags_first(sys.argv[1:]), folder)
                sys.argv[1:] += of_its_own(sys.argv[1:], folder)
                check_command_line(sys.argv[1:], folder, name)
                sys.argv[1:] += nothing_written(sys.argv[1:], name)
                sys.argv[1:] += named(sys.argv[1:], name)
            try:
                with composed_plainly(), errors_from_hydra():
                    wrapped()
            except KeyboardInterrupt:
                print("stopped before anything was begun", file=sys.stderr)
                sys.exit(130)

        return main

    return decorate


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
    flags = flags_of(arguments)  # --config-pat is --config-path to it
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
    if not is_sweep(arguments):
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
    if name != "finetune" or not is_sweep(arguments) or "sweep" in typed_keys(arguments):
        return []
    return [f"sweep={digest_of_line(overrides_in(arguments))}"]


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
    """Raises Refused, naming the nearest legal words, for what is no setting, for a key or an option that does not exist, for
    a launcher of what is no sweep, and for a key of conf/<name>.yaml that was left open (???) and is not given."""
    refuse_malformed(arguments, folder, name)
    refuse_launcher(arguments, folder, name)
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
                    raise Refused(f"{override.key_or_group}={option}: {nearest(option, options, 'options')}")
    taken = [part for part in LEARNING if any(o.is_delete() and o.key_or_group == part for o in chosen)]
    if 0 < len(taken) < len(LEARNING):
        raise Refused(
            f"~{taken[0]}: a dictionary is trained with all of {', '.join(LEARNING)}. To measure the pair alone take all of "
            f"them away: {' '.join(f'~{part}' for part in LEARNING)} evaluation=[layer_divergence,tokenizers]."
        )
    plain = [str(o.input_line) for o in chosen if not o.is_sweep_override() and not o.is_delete()]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        composed = hydra.compose(name, [*plain, *(str(o.input_line) for o in searched)], return_hydra_config=True)
    legal = set(_keys(composed))
    named = "evaluation" in composed or any(o.key_or_group == "evaluation" for o in chosen)
    for override in overrides:
        key = override.key_or_group.split("@")[0]
        if key.partition(".")[0] in ("task", "evaluation") and not named and not override.is_add():
            name_it = f"evaluation={key.split('.')[1]}" if key.startswith("evaluation.") else "evaluation=[...]"
            raise Refused(
                f"{override.input_line}: no evaluation is named, so that the study's own are asked, as they were. Name the "
                f"one that is meant, {name_it}."
            )
        if key in NESTED and key not in groups and not override.is_sweep_override():
            if override.is_delete():
                raise Refused(f"~{key} takes away settings that are read: leave it out.")
            refuse_one_value(key, override.value())
        if override.is_delete() and not key.startswith("hydra") and not any(o.is_sweep_override() for o in chosen):
            refuse_nothing_there(override.key_or_group, override.value(), composed, legal | groups)
        if override in chosen or key in legal or key in groups or key.startswith("hydra") or override.is_delete():
            continue
        if any(sweep.is_sweep_override() for sweep in chosen):
            continue  # the key may exist under another option of the sweep; each member is checked whole
        if override.is_add() and (
            key.startswith("evaluation.")
            or OmegaConf.select(composed, key.rpartition(".")[0] or "model_pair") is not None
        ):
            continue  # judged by the signature it is added to
        raise Refused(f"{key} is not a setting here. {nearest(key, legal, 'settings')}")
    if any(a.startswith("-") and a not in ("-m", "--multirun") for a in arguments):
        return  # who asks Hydra to show a config need not fill it
    given = {override.key_or_group for override in overrides if not override.is_delete()}
    for key in map(str, composed):
        if OmegaConf.is_missing(composed, key) and key not in given:
            raise Refused(not_set(key, f"python {name}.py {key}=<{_comment(folder / f'{name}.yaml', key)}>"))


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
