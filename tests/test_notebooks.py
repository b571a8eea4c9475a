"""The notebooks run from their first cell to the last, on runs that are smaller than those they would train."""

import sys

import nbclient
import nbformat
import pytest

import warm
from conftest import ROOT
from test_study import SMALL, TWO_STEPS, call

TRAINED = {
    "01_meet_the_pair": None,
    "02_read_a_latent": ["dictionary=l1_crosscoder", "hydra.run.dir=runs/l1", "budget.evaluation_tokens=8000"],
    "03_compare_a_sweep": [
        "-m",
        "dictionary=batchtopk_crosscoder,l1_crosscoder",
        "seed=0,1",
        "hydra.sweep.dir=runs/sweep",
        "evaluation=[fidelity,geometry,latent_scaling]",
        *TWO_STEPS,
    ],
}


@pytest.mark.filterwarnings("ignore")  # Jupyter's own
@pytest.mark.parametrize("name", TRAINED)
def test_a_notebook_runs_and_shows_what_it_says(tmp_path, monkeypatch, name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    if TRAINED[name] is not None:
        words = [word for word in TRAINED[name] if "=" in word and not word.startswith(("evaluation", "budget"))]
        assert all(f'"{word}"' in str(notebook) or word.startswith("hydra.") for word in words)
        call(ROOT / "train.py", *TRAINED[name], *SMALL, cwd=tmp_path)
    monkeypatch.setattr(sys, "executable", warm.python())  # the kernel's
    inline = ["--matplotlib=inline"]  # said by MPLBACKEND too, but matplotlib reads that where it is first imported
    place = {"metadata": {"path": str(tmp_path)}}
    shown = nbclient.NotebookClient(notebook, timeout=120, resources=place, extra_arguments=inline).execute()
    outputs = [cell.outputs for cell in shown.cells if cell.cell_type == "code"]
    assert any("image/png" in output.get("data", {}) for cell in outputs for output in cell)
    said = "".join(output.get("text", "") for cell in outputs for output in cell)
    for words in {
        "01_meet_the_pair": ["tuned:", "<think>"],
        "02_read_a_latent": ["explained variance", "document"],
    }.get(name, []):
        assert words in said
