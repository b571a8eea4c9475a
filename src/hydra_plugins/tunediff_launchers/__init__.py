"""Hydra's side of a sweep: it hands the members over, and is handed back what became of each.

Imported at every start of Hydra, so nothing heavy is imported here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher

FILES = 12  # that Hydra and a run lay down before anything is trained


class DrySweeper(BasicSweeper):
    """Hydra's own sweeper for a dry run: the same members, and no folder in which its config is laid."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None and self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        parts = self.split_arguments(overrides, self.max_batch_size)
        return [self.launcher.launch(part, initial_job_idx=0) for part in parts]


class FolderFirst(Callback):
    """Makes the folder of a run or a sweep before Hydra does, and tries to write there, so that a disk that is full or read
    only is refused in a sentence, and what is refused leaves no folder."""

    def on_run_start(self, config: Any, **_: Any) -> None:
        self._make(config, lambda: config.hydra.run.dir)

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        from pathlib import Path

        from tunediff.settings import said_plainly
        from tunediff.shapes import path_in

        if "sweep" in config:
            with said_plainly():
                path_in(Path("multirun"), str(config.sweep), "sweep=")
        self._make(config, lambda: config.hydra.sweep.dir)

    def _make(self, config: Any, place: Callable[[], str]) -> None:
        from pathlib import Path

        from omegaconf.errors import OmegaConfBaseException

        from tunediff.folders import make_folder, remove_made
        from tunediff.settings import said_plainly
        from tunediff.shapes import Refused

        if config.get("dry_run"):
            return
        try:
            name = place()
        except OmegaConfBaseException:  # of a config from which no name can be made: Hydra comes upon it as well
            return
        folder = Path(name or "")
        with said_plainly():
            if not name:  # it would be the folder one stands in
                raise Refused("hydra.run.dir and hydra.sweep.dir are the name of a folder, and nothing stands there.")
            make_folder(folder)
            tried = [folder / "written.partial", *(folder / f"written-{n}.partial" for n in range(FILES))]
            try:
                for n, file in enumerate(tried):  # a file system may have room and no place for another name
                    file.write_bytes(b"" if n else bytes(2**16))
            except OSError as error:
                for file in tried:
                    file.unlink(missing_ok=True)
                remove_made(folder)
                said = f"Cannot write in {folder}: {error.strerror}. Choose another place, or mend this one."
                raise Refused(said) from error
            for file in tried:
                file.unlink()


class PackingLauncher(Launcher):
    """Abstract: hands the members of a sweep to `tunediff.sweep.launch`, which groups them and runs the groups at a place."""

    def __init__(self, **settings: Any):
        self.settings = settings

    def place(self, **settings: Any) -> Any:
        """The place where the groups of a sweep run."""
        raise NotImplementedError

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.config = hydra_context, config
        # a sweeper composes every member to see whether it can be, before it hands them over to be composed again
        loader, composed = hydra_context.config_loader, {}
        compose = loader.load_sweep_config

        def compose_once(master_config: Any, sweep_overrides: Sequence[str]) -> Any:
            words = tuple(sweep_overrides)
            if words not in composed:
                composed[words] = compose(master_config, list(words))
            return copy.deepcopy(composed[words])  # whoever has it may change it

        loader.load_sweep_config = compose_once

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from tunediff.settings import plain
        from tunediff.sweep.launch import launch

        place = self.place(**{key: plain(value) for key, value in self.settings.items()})
        return launch(self.config, self.hydra_context.config_loader.load_sweep_config, job_overrides, place)


class LocalLauncher(PackingLauncher):
    """Launcher that runs groups as processes of this machine."""

    def place(self, **settings: Any) -> Any:
        from tunediff.sweep.local import Local

        return Local(**settings)


class SlurmLauncher(PackingLauncher):
    """Launcher that runs groups as the tasks of one Slurm job array."""

    def place(self, **settings: Any) -> Any:
        from tunediff.sweep.slurm import Slurm

        return Slurm(**settings)
