"""Options in a YAML file: which keys, whose paths, who beats whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ranp_cli.cli.config import INPUTS, merge, read_config
from ranp_cli.core.errors import BadInput

KNOWN = ["model", "model-arg", "batch", "loss", "round_to", "lambda_", "budget", "mask", "scores", "output", "quiet"]

# the file, what is read from it; {folder} is the folder of the file
FILES: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("# nothing yet\n", {}),
    ("quiet: true", {"quiet": True}),
    ("quiet:", {}),
    ("round-to: 8", {"round_to": 8}),
    ("round_to: 8", {"round_to": 8}),
    ("lambda: 11", {"lambda_": 11}),
    ("model-arg: [classes=4]", {"model-arg": ["classes=4"]}),
    ("model_arg: {classes: 4, name: unet, flag: true}", {"model-arg": ["classes=4", "name=unet", "flag=true"]}),
    ("model_arg: {widths: [8, 16], text: '1', none: null}", {"model-arg": ["widths=[8, 16]", 'text="1"', "none=null"]}),
    ("budget: {flops: 50%, params: 1.5M}", {"budget": ["flops=50%", "params=1.5M"]}),
    ("model: net.py:UNet", {"model": "{folder}/net.py:UNet"}),
    ("model: sub/net.py", {"model": "{folder}/sub/net.py"}),
    ("model: net.ts", {"model": "{folder}/net.ts"}),
    ("model: /abs/net.py:UNet", {"model": "/abs/net.py:UNet"}),
    ("model: package.net:UNet", {"model": "package.net:UNet"}),
    ("model: {_target_: package.net.UNet}", {"model": "package.net:UNet", "model-arg": []}),
    ("model: {_target_: 'net.py:UNet', width: 4}", {"model": "{folder}/net.py:UNet", "model-arg": ["width=4"]}),
    ("model: {_target_: a.b, _desc_: x, c: 1, d: 2}\nmodel_arg: {c: 3}", {"model": "a:b", "model-arg": ["c=3", "d=2"]}),
    ("model: {_target_: a.b, act: {_target_: c.d}}", {"model": "a:b", "model-arg": ['act={"_target_": "c.d"}']}),
    ("model: [a.py, b.py:B]", {"model": ["{folder}/a.py", "{folder}/b.py:B"]}),
    ("batch: data/calib.pt", {"batch": "{folder}/data/calib.pt"}),
    ("loss: dice_ce", {"loss": "dice_ce"}),
    ("loss: loss.py:dice_ce", {"loss": "{folder}/loss.py:dice_ce"}),
    ("mask: mask.json", {"mask": "{folder}/mask.json"}),
    ("output: slim.safetensors", {"output": "slim.safetensors"}),
    ("{'quiet': true, 'round-to': 8}", {"quiet": True, "round_to": 8}),
]

# the file, the message after "config FILE: "
BAD_FILES = [
    ("qiet: true", "no option 'qiet'; did you mean 'quiet'? (known: batch, budget, lambda, loss, mask, model, "),
    ("round to: 8", "no option 'round to'; did you mean 'round-to'? (known: "),
    ("1: 2", "no option '1' (known: "),
    ("round-to: 8\nround_to: 9", "'round_to' is given twice; leave one out"),
    ("sparsity: 0.5\nround-to: 8\nsparsity: 0.2", "'sparsity' is given twice; leave one out"),
    ("sparsity: 0.5\nmodel-arg: {width: 8, depth: 2, width: 4}", "'width' is given twice; leave one out"),
    ("batch: 3", "batch: is a int; wants a path or a name"),
    ("model: {width: 4}", "model: has no _target_; give a spec such as package.module:Name, or a mapping of _target_"),
    ("model: {_target_: [a.b]}", "model: has no _target_; give a spec"),
    ("model: {_target_: a.b, _partial_: true}", "model: ranp does not know _partial_ there; give a spec"),
    ("model: {_target_: a.b}\nmodel-arg: [c=1]", "model-arg: is a list; beside a model with a _target_ give a mapping"),
    ("- quiet", "holds a list; wants `option: value` lines"),
    ("quiet", "holds a str; wants `option: value` lines"),
    ("quiet: true\nbatch: [1", "is not YAML; line 2: "),
    (
        "quiet: true\n\tbatch: 3",
        "is not YAML; line 2: found character '\\t' that cannot start any token; mend that line",
    ),
    ("quiet: !!python/object:os.system {}", "is not YAML; line 1: could not determine a constructor for the tag"),
    ("quiet: 2020-99-99", "is not YAML text; give a file of `option: value` lines"),
    (b"\xff\x00\x01", "is not YAML text; give a file of `option: value` lines"),
]

# options, file, defaults, what holds
MERGES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"seed": None}, {}, {"seed": 0}, {"seed": 0}),
    ({"seed": None}, {"seed": 1}, {"seed": 0}, {"seed": 1}),
    ({"seed": 2}, {"seed": 1}, {"seed": 0}, {"seed": 2}),
    ({"seed": 0}, {"seed": 1}, {"seed": 3}, {"seed": 0}),
    ({"quiet": False}, {"quiet": True}, {"quiet": False}, {"quiet": False}),
    ({"quiet": None}, {"quiet": True}, {"quiet": False}, {"quiet": True}),
    ({"keep": []}, {"keep": ["a"]}, {"keep": []}, {"keep": ["a"]}),
    ({"keep": ["b"]}, {"keep": ["a"]}, {"keep": []}, {"keep": ["b"]}),
    ({"keep": ()}, {"keep": "a"}, {"keep": []}, {"keep": ["a"]}),
    ({"model": None}, {}, {}, {"model": None}),
]


def message(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_config(path, KNOWN)
    text = str(caught.value)
    assert text.splitlines() == [text]
    assert text.startswith(f"config {path}: ")
    return text.removeprefix(f"config {path}: ")


@pytest.mark.parametrize(("text", "config"), FILES)
def test_config(tmp_path: Path, text: str, config: dict[str, Any]) -> None:
    def here(value: Any) -> Any:
        if isinstance(value, list):
            return [here(one) for one in value]
        return value.replace("{folder}", str(tmp_path)) if isinstance(value, str) else value

    (tmp_path / "c.yaml").write_text(text)
    assert read_config(tmp_path / "c.yaml", KNOWN) == {key: here(value) for key, value in config.items()}


@pytest.mark.parametrize(("text", "says"), BAD_FILES)
def test_bad_config(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message(path).startswith(says)


def test_no_file(tmp_path: Path) -> None:
    assert message(tmp_path / "c.yaml") == f"no such file (looked in {tmp_path}); check the path"
    assert message(tmp_path).startswith("cannot be read (Is a directory)")


def test_paths_stay_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mask.json records the model as it was named: a config in the current directory changes nothing."""
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    for path, model in {"c.yaml": "net.py:UNet", "sub/c.yaml": "sub/net.py:UNet"}.items():
        Path(path).write_text("model: net.py:UNet")
        assert read_config(path, KNOWN) == {"model": model}


def test_the_mask_of_prune_is_an_output(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("mask: mask.json")
    assert read_config(tmp_path / "c.yaml", KNOWN, inputs=INPUTS - {"mask"}) == {"mask": "mask.json"}


@pytest.mark.parametrize(("options", "config", "defaults", "result"), MERGES)
def test_merge(
    options: dict[str, Any], config: dict[str, Any], defaults: dict[str, Any], result: dict[str, Any]
) -> None:
    assert merge(options, config, defaults) == result
