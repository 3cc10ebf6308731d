"""Every command and every piece of Python of the README runs, as it stands there, in a copy of sample_configs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ranp_cli.cli import run

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("readme") / "sample_configs"
    shutil.copytree(ROOT / "sample_configs", path, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    return path


@pytest.mark.parametrize("line", COMMANDS)
def test_command(line, folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    for part in line.split(" && "):
        words = shlex.split(part)
        if words[0] == "ranp":  # installing and testing is what .ci/run does
            assert run(words[1:]) == 0, capfd.readouterr().err


@pytest.mark.parametrize("code", PYTHON)
def test_python(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_report_shown_is_of_this_version(folder, monkeypatch, capfd, request):
    """Words and layers are as printed (numbers may differ in the last neuron between processors); --overwrite pastes it."""
    monkeypatch.chdir(folder)
    assert run(shlex.split(COMMANDS[0].split(" && ")[-1])[1:]) == 0
    printed = capfd.readouterr().out.rstrip() + "\n"
    shown = re.search(r"```text\n(ranp prune.*?)```", TEXT, re.S)
    assert shown is not None
    if request.config.getoption("--overwrite"):
        (ROOT / "README.md").write_text(TEXT.replace(shown[1], printed))
        return

    def words(text: str) -> list[str]:
        lines = [line for line in text.splitlines() if not re.search("time:|total|floor|wrote", line)]
        return re.findall(r"[A-Za-z_]{2,}[\w.]*", "\n".join(lines))

    assert words(shown[1]) == words(printed)


def test_the_file_tree_is_complete():
    tree = TEXT[TEXT.index("## Files") :]
    for path in (ROOT / "ranp_cli").glob("*.py"):
        assert path.name in tree or path.name == "__main__.py", path.name
