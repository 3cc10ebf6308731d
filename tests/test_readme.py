"""Every command and every piece of Python of the READMEs runs, as it stands there, in a copy of sample_configs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import packages
import pytest
import torch
import zoo

from ranp_cli.cli import run
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
RECIPES = ROOT / "sample_configs" / "README.md"
RESULTS = (ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT + RECIPES.read_text(), re.S)
MOST_LINES = 260


def commands(text: str) -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]


COMMANDS = commands(TEXT)


SIZES = ["small", pytest.param("as it is", marks=pytest.mark.slow)]
MIDDLE = 8  # voxels a side of the samples that all commands run on by default; they have 24


def copy_of_the_samples(folder: Path) -> Path:
    path = folder / "sample_configs"
    shutil.copytree(ROOT / "sample_configs", path, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copy_of_the_samples(tmp_path_factory.mktemp("readme"))


@pytest.fixture(scope="module", params=SIZES)
def sized(request, tmp_path_factory):
    """The samples, by default with the middle of each: the same commands and the same network, much quicker."""
    path = copy_of_the_samples(tmp_path_factory.mktemp("sized"))
    if request.param == "small":
        batches = torch.load(path / "calib.pt", weights_only=True)
        middle = slice(start := (batches[0][1].shape[-1] - MIDDLE) // 2, start + MIDDLE)
        small = [tuple(t[..., middle, middle, middle].clone() for t in batch) for batch in batches]
        torch.save(small, path / "calib.pt")
    return path


def place_of(line: str, folder: Path) -> Path:
    """Where a command is typed: the first ones beside sample_configs, the others in it."""
    return folder.parent if COMMANDS.index(line) < COMMANDS.index("cd sample_configs") else folder


def test_commands(sized, monkeypatch, capfd):
    """All of them in one test and in their order: later ones read what earlier ones wrote."""
    for line in COMMANDS:
        monkeypatch.chdir(place_of(line, sized))
        type_in(line, capfd)
    assert new_to_git(sized.parent) == []


def type_in(line, capfd):
    for part in line.split(" && "):
        words = shlex.split(part)
        if words[0] == "ranp":  # installing and testing is what .ci/run does
            assert run(words[1:]) == 0, f"{line}\n{capfd.readouterr().err}"


@pytest.mark.slow
def test_recipes(tmp_path, monkeypatch, capfd):
    """Those of sample_configs/README.md, in its folder."""
    monkeypatch.chdir(copy_of_the_samples(tmp_path))
    for line in commands(RECIPES.read_text()):
        type_in(line, capfd)
    assert new_to_git(tmp_path) == []


def new_to_git(root: Path) -> list[str]:
    """What lies there, is not of the repository, and is not named in .gitignore (whose patterns are files or folders)."""
    ignored = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line and line[0] != "#"]
    names = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return [
        str(name)
        for name in names
        if not (ROOT / name).exists()
        and not any(
            fnmatch(str(name), line[1:])
            if line[0] == "/"
            else any(fnmatch(part, line.removesuffix("/")) for part in name.parts)
            for line in ignored
        )
    ]


def test_a_file_that_git_would_show_is_found(tmp_path):
    for name in ("slim.mask.json", "deep/__pycache__/a.pyc", "sample_configs/sweep.csv", "sweep.csv", "LICENSE"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert new_to_git(tmp_path) == ["sweep.csv"]


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= MOST_LINES


@pytest.mark.parametrize(
    "page", ["README.md", "sample_configs/README.md", "ranp_cli/README.md", "tests/benchmarks/RESULTS.md"]
)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        if "://" in file:
            continue
        other = path.parent / file if file else path
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("code", PYTHON)
def test_python(code, sized):
    done = subprocess.run([sys.executable, "-c", code], cwd=sized, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("two_threads")
def test_the_report_shown_is_of_this_version(folder, monkeypatch, capfd, request):
    """Words and layers are as printed (numbers may differ in the last neuron between processors); --overwrite pastes it."""
    monkeypatch.chdir(folder.parent)
    assert run(shlex.split(COMMANDS[0].split(" && ")[-1])[1:]) == 0
    printed = capfd.readouterr().out.rstrip() + "\n"
    page = RECIPES.read_text()
    shown = re.search(r"```text\n(ranp prune +sample.*?)```", page, re.S)
    assert shown is not None
    if request.config.getoption("--overwrite"):
        RECIPES.write_text(page.replace(shown[1], printed))
        return

    def words(text: str) -> list[str]:
        lines = [line for line in text.splitlines() if not re.search("time:|total|floor|wrote", line)]
        return re.findall(r"[A-Za-z_]{2,}[\w.]*", "\n".join(lines))

    assert words(shown[1]) == words(printed)


def test_the_tree_names_every_room():
    tree = TEXT[TEXT.index("## Files") :]
    for path in (ROOT / "ranp_cli").iterdir():
        assert not (path / "__init__.py").exists() or f"{path.name}/" in tree, path.name


def rows_of_the_zoo() -> dict[str, list[str]]:
    table = RESULTS.partition("<!-- zoo table -->")[2].partition("<!-- end of zoo table -->")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells[2:]}


def test_the_zoo_table_names_every_network():
    assert list(rows_of_the_zoo()) == [case.name for case in packages.CASES]


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.fast else pytest.mark.slow) for c in packages.CASES]
)
def test_the_zoo_table_is_true(case):
    """Neurons and units as they are now; the rest of the row depends on the machine."""
    graph = analyse(zoo.build(case), Example((torch.zeros(case.shape),)))
    assert rows_of_the_zoo()[case.name][:2] == [str(graph.n), str(len(graph.unit_roots))]


@pytest.mark.slow
def test_the_first_table_has_its_script():
    """The table's rows are those that tests/benchmarks/first_table.py writes; a run of two steps makes one of that form."""
    from benchmarks.first_table import END, START, measure, table

    shown = TEXT.partition(START)[2].partition(END)[0].strip().splitlines()
    made = table(measure(seeds=1, steps=2, progress=lambda _: None)).splitlines()
    labels = [[line.split("|")[1].partition(",")[0] for line in lines] for lines in (shown, made)]
    assert labels[0] == labels[1]


def test_the_accuracy_table_is_that_of_the_results():
    """A number of the README's table stands in the results' row of that task and method."""
    table = TEXT.partition("| task | multiply-adds |")[2].partition("\n\n")[0].splitlines()[2:]
    shown = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table]
    tasks = ("tissue-16", "nnunet-16", "shapes-16", "shapes-32", "brains-16", "clips")
    assert len(shown) == len(tasks)
    for task, (_, cost, *numbers) in zip(tasks, shown, strict=True):
        section = RESULTS.partition(f"### {task}\n")[2].partition("\n#")[0]
        rows = {line.split("|")[1].strip(): line for line in section.splitlines() if line.startswith("|")}
        assert round(float(rows["RANP-f"].split("|")[2].strip(" -%"))) == float(cost.strip(" -%"))
        for method, number in zip(("full", "RANP-f", "flat", "random", "layerwise"), numbers, strict=True):
            mean, _, worst = number.replace("**", "").partition(" (")
            assert f"| {mean} ± " in rows[method]
            assert worst.strip(")") in rows[method]
