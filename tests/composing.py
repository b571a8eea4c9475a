"""Hydra puts the files of a config together once for each choice of options; what else a line says is laid over a copy.

Most of what a short command takes is this, and most lines of the tests choose what another one chose. These are two steps of
the pinned Hydra in place of its own.
"""

import hashlib
import os
import pickle
from types import SimpleNamespace

from hydra._internal import config_loader_impl as loading
from hydra._internal.hydra import Hydra

PLAIN = loading.create_defaults_list, loading.ConfigLoaderImpl._compose_config_from_defaults_list, Hydra.get_mode
made: dict[tuple, tuple] = {}  # what was chosen -> the files as they were, their order with all choices, the config
shelf: list[str] = []  # a folder where other processes of the same tests find it


class Ordered(list):
    """The files of a config in their order, which know what was chosen and which choices followed."""

    chosen: tuple
    choices: dict


def once(folder: str | None = None) -> None:
    """From here on in this process, and in all that are given the folder. Nor does Hydra compose a config once more to learn
    whether it says hydra.mode, where no word does and no config of ours has it."""
    shelf[:] = [folder] if folder else []
    loading.create_defaults_list = ordered
    loading.ConfigLoaderImpl._compose_config_from_defaults_list = merged
    Hydra.get_mode = get_mode


def anew() -> None:
    """Undoes `once`."""
    loading.create_defaults_list, loading.ConfigLoaderImpl._compose_config_from_defaults_list, Hydra.get_mode = PLAIN


def get_mode(hydra, config_name, overrides):
    return PLAIN[2](hydra, config_name, overrides) if "hydra.mode" in str(overrides) else None


def ordered(repo, config_name, overrides_list, prepend_hydra, skip_missing):
    given = [one for one in overrides_list if not one.is_sweep_override()]
    options = [one for one in given if repo.group_exists(one.key_or_group) and not isinstance(one.value(), dict)]
    places = tuple((source.provider, source.path) for source in repo.get_sources())
    chosen = places, config_name, tuple(one.input_line for one in options), prepend_hydra, skip_missing
    if known(chosen):
        defaults, choices = pickle.loads(made[chosen][1])
    else:
        found = PLAIN[0](repo, config_name, overrides_list, prepend_hydra, skip_missing)
        defaults, choices = found.defaults, found.overrides.known_choices
    defaults = Ordered(defaults)
    defaults.chosen, defaults.choices = chosen, choices
    others = [one for one in given if one not in options]
    return SimpleNamespace(
        defaults=defaults, config_overrides=others, overrides=SimpleNamespace(known_choices=dict(choices))
    )


def merged(loader, defaults, repo):
    if defaults.chosen in made:
        return pickle.loads(made[defaults.chosen][2])
    config = PLAIN[1](loader, defaults, repo)
    read = [one for one in repo.cache.items() if one[1] is not None and one[1].path.startswith("file://")]
    names = (name.removeprefix("config_path=").removesuffix(".yaml") for name, _ in read)
    files = [f"{one.path.removeprefix('file://')}/{name}.yaml" for name, (_, one) in zip(names, read, strict=True)]
    order = pickle.dumps((list(defaults), defaults.choices))
    made[defaults.chosen] = stamps(files), order, pickle.dumps(config)
    for place in map(placed, shelf, [defaults.chosen]):
        with open(f"{place}.{os.getpid()}", "wb") as file:
            pickle.dump(made[defaults.chosen], file)
        os.replace(file.name, place)
    return config


def known(chosen: tuple) -> bool:
    """True where it was made from files that are as they were."""
    if chosen not in made and shelf and os.path.exists(place := placed(shelf[0], chosen)):
        with open(place, "rb") as file:
            made[chosen] = pickle.load(file)
    if chosen in made and made[chosen][0] != stamps(path for path, *_ in made[chosen][0]):
        del made[chosen]
    return chosen in made


def placed(folder: str, chosen: tuple) -> str:
    return os.path.join(folder, hashlib.sha256(repr(chosen).encode()).hexdigest())


def stamps(paths) -> tuple:
    """Each file with its size and time; None for one that is gone."""

    def stamp(path):
        found = os.stat(path)
        return path, found.st_size, found.st_mtime_ns

    return tuple(stamp(path) if os.path.exists(path) else (path, None) for path in paths)
