"""Constraints for the lowest versions that pyproject.toml allows of each package it names; see make test-lowest."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in (
    *project["dependencies"],
    *extras["test"],
    *extras["notebooks"],
    *extras["tokenizers"],
    *extras["optuna"],
):
    name, lowest = re.fullmatch(r"([\w-]+)(?:\[.*\])?(?:[>=]=([\d.]+).*)?", requirement).groups()
    if name not in (project["name"], "torch"):  # most of torch's versions have no CPU build among the package index
        print(f"{name}=={lowest}")
