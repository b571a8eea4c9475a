"""Hydra's side of a sweep: it hands the members over, and is handed back what became of each.

Imported at every start of Hydra, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class PackingLauncher(Launcher):
    """Abstract: members of a sweep to `tunediff.sweep.launch`, which groups them and runs the groups somewhere."""

    where = ""

    def __init__(self, **settings: Any):
        self.settings = settings

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from tunediff.sweep.launch import prepare

        self.hydra_context, self.config = hydra_context, config
        prepare(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from tunediff.sweep.launch import launch

        compose = self.hydra_context.config_loader.load_sweep_config
        return launch(self.config, compose, job_overrides, where=self.where, settings=self.settings)


class LocalLauncher(PackingLauncher):
    """Groups as processes of this machine."""

    where = "local"


class SlurmLauncher(PackingLauncher):
    """Groups as the tasks of one job array."""

    where = "slurm"
