"""The floors and fences of the house."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from conftest import ROOT
from tunediff.report.page import RUN_SCRIPTS
from tunediff.shapes import VERSION

SOURCE = ROOT / "src" / "tunediff"
FLOORS = {
    "terminal": -1, "files": -1, "shapes": 0, "hub": 0, "schedules": 0, "processes": 0, "randomness": 0, "folders": 0, "text": 1, "dictionary": 1, "hookpoints": 1,
    "edits": 2, "benchmarks": 2, "models": 3, "activations": 4, "generation": 4, "attribution": 4, "measures": 4, "directions": 4.5, "claims": 1,
    "objectives": 5, "evaluations": 5.5, "toy": 5, "training": 6, "loggers": 6, "report": 6, "trusted": 6, "settings": 7,
    "study": 8, "sweep": 9,
}  # fmt: skip
FENCES = {
    "hydra": {"settings", "sweep"},
    "omegaconf": {"settings", "study", "sweep", "trusted"},
    "submitit": {"study", "sweep"},
    "transformers": {"models", "text", "toy", "training", "attribution"},
    "peft": {"models", "training"},
    "lightning": {"training", "activations", "loggers"},
    "wandb": {"loggers"},
    "matplotlib": {"report"},
}


def place(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_file_imports_only_from_lower_floors_or_its_own_folder():
    for path in SOURCE.rglob("*.py"):
        if path.parent == SOURCE and path.stem == "__init__":
            continue
        here = place(path)
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "tunediff" and len(parts) > 1 and parts[1] in FLOORS and parts[1] != here:
                assert FLOORS[parts[1]] < FLOORS[here] or parts[1] == "shapes", f"{path.name} imports {name}"


# what is still asked for upwards; one leaves when its circle is opened
NOT_YET_OPENED = {("tunediff.evaluations.latents.statistics", "tunediff.evaluations.given")}


def test_no_files_import_each_other_in_a_circle():
    """Inside functions and for types alone as well: of two such files neither can be understood first."""
    files = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    below: dict[str, set[str]] = {}
    for name, path in files.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        of = [(node.module, alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
        # `from package import file` asks for the file, any other name for what the package gives
        below[name] = {f"{m}.{n}" if f"{m}.{n}" in files else m for m, n in of if m} | plain
    for above, asked in NOT_YET_OPENED:
        below[above].discard(asked)
    while free := [name for name, found in below.items() if not found & below.keys()]:
        below = {name: found for name, found in below.items() if name not in free}
    imported = set().union(*below.values())
    assert not below, f"circles among {sorted(below.keys() & imported)}"


def test_the_version_is_one():
    for name in ("pyproject.toml", "CITATION.cff"):
        assert re.search(rf'version[:=" ]+{re.escape(VERSION)}"?$', (ROOT / name).read_text(), re.MULTILINE), name


def test_frameworks_stay_behind_their_fences():
    for path in SOURCE.rglob("*.py"):
        for name in imports(path):
            allowed = FENCES.get(name.split(".")[0])
            assert allowed is None or place(path) in allowed, f"{path.name} imports {name}"


def test_every_file_has_a_floor_opens_with_its_purpose_and_none_is_a_utils():
    for path in SOURCE.rglob("*.py"):
        assert path == SOURCE / "__init__.py" or place(path) in FLOORS, path
        assert ast.get_docstring(ast.parse(path.read_text())), path
        assert "utils" not in path.stem


# words with which a docstring begins that needs the name above it to be understood
FRAGMENTS = set(
    "Of Who Whose What Where Whether Which How Inside In For From By With Without Until As Between On At".split()
)


def fragments(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = (ast.get_docstring(node) or "-").split()[0].rstrip(",:")
            if first in FRAGMENTS:
                yield f"{path.relative_to(SOURCE)}: {getattr(node, 'name', 'its head')} begins with '{first}'"


def test_a_docstring_is_a_sentence_with_its_noun():
    assert not [found for path in SOURCE.rglob("*.py") for found in fragments(path)]


def test_a_file_that_a_docstring_names_exists():
    files = [str(path) for path in (*ROOT.glob("*.py"), *SOURCE.rglob("*.py"), *(ROOT / "bench").glob("*.py"))]
    for path in SOURCE.rglob("*.py"):
        for name in re.findall(r"(?<![\w/.])(?:\w+/)*\w+\.py\b", ast.get_docstring(ast.parse(path.read_text()))):
            here = path.stem == "__init__" and "/" not in name  # the contents of a package are its own files
            there = (path.parent / name).exists() if here else any(file.endswith(f"/{name}") for file in files)
            assert there, f"{path.relative_to(SOURCE)} names {name}"


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]


def test_no_secret_and_no_machine_path_is_kept():
    pattern = re.compile(r"hf_[A-Za-z0-9]{30}|sk-[A-Za-z0-9]{30}|AKIA[0-9A-Z]{16}|(?<![\w.])/(?:work|home|root|opt)/\w")
    for path in tracked():
        if (
            path.suffix in {".py", ".yaml", ".md", ".toml", ".js", ".html", ".css", ".sh", ".cff", ""}
            and path.name != "LICENSE"
        ):
            found = pattern.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found}"


def test_each_package_has_a_lowest_version_one_that_is_too_new_and_one_between_in_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    header, *lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert header.startswith("#") and lines == sorted(set(lines))
    locked = dict(re.fullmatch(r"([a-z0-9.-]+)==([a-z0-9.]+)", line).groups() for line in lines)  # no build, no marker
    assert not [name for name in locked if name.startswith(("nvidia", "cuda", "triton"))]  # torch asks for its own
    given = {*project["dependencies"], *extras["test"], *extras["notebooks"], *extras["optuna"]}
    given |= {*extras["tokenizers"]}
    for named in map(Requirement, given - {"tunediff[notebooks,optuna,tokenizers]"}):
        assert {one.operator for one in named.specifier} in ({"=="}, {">=", "<"}), named
        assert named.specifier.contains(locked[named.name]), named


def test_the_command_line_needs_no_torch():
    code = "import sys, tunediff.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_wheel_carries_conf_verbs_and_weights(tmp_path):
    import zipfile

    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        ROOT,
    ]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        content.extractall(tmp_path / "installed")
    for name in (
        "conf/train.yaml",
        "conf/model_pair/toy.yaml",
        "train.py",
        "report/web/page.js",
        "toy/weights/tuned/model.safetensors",
    ):
        assert f"tunediff/{name}" in names, name
    command = [sys.executable, "-m", "tunediff.train", "--cfg", "job", "scale=smoke"]
    shown = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert "latents: 64" in shown.stdout, shown.stderr
    assert "hydra_plugins/tunediff_launchers/__init__.py" in names and "hydra_plugins/__init__.py" not in names


# -- the page's scripts ------------------------------------------------------------------------------------------------

WEB = SOURCE / "report" / "web"


def eslint():
    """The linter that package.json names, installed once into a folder that git ignores; skips where there is none."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not at hand: the page's scripts are not linted on this machine")
    place = ROOT / "build" / "eslint"
    wanted = json.loads((WEB / "package.json").read_text())["devDependencies"]["eslint"]
    installed = place / "node_modules" / "eslint" / "package.json"
    if not installed.exists() or json.loads(installed.read_text())["version"] != wanted:
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(WEB / "package.json", place)
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", str(place)]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"npm could not install eslint {wanted}: {done.stderr.strip()[-200:]}")
    return place / "node_modules" / ".bin" / "eslint"


def test_the_linter_has_nothing_to_say_of_the_pages_scripts_and_finds_what_is_planted(tmp_path):
    program = eslint()

    def lint(folder):
        command = [str(program), "--max-warnings", "0", "."]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)

    said = lint(WEB)
    assert said.returncode == 0, said.stdout + said.stderr
    shutil.copytree(WEB, tmp_path / "web")
    with open(tmp_path / "web" / "figures.js", "a") as script:
        script.write("\nfunction planted(node) { node.innerHTML = unheardOf; }\n")
    said = lint(tmp_path / "web").stdout
    assert "innerHTML" in said and "'unheardOf' is not defined" in said


def test_every_script_belongs_to_a_page_and_everything_at_its_top_is_used():
    texts = {path.name: path.read_text() for path in WEB.glob("*.js")}
    assert set(texts) == {*RUN_SCRIPTS, "compare.js"}
    whole = "\n".join(texts.values())
    for name in re.findall(r"^(?:async )?(?:function|const|let) (\w+)", whole, flags=re.M):
        assert len(re.findall(rf"\b{name}\b", whole)) > 1, f"{name} is defined and never used"
