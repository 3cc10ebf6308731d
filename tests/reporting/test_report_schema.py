"""The JSON report holds to its schema: each command's here, and (tests/conftest.py) every report that any test makes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch

from ranp_cli.cli import run
from ranp_cli.reporting import report_parts, report_schema, report_types, speed_parts

UNET = "ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=4 --model-arg num_classes=3"
COMMANDS = {
    "score": f"score {UNET} --batch calib.pt --sparsity 0.5 --low-memory -o scores.safetensors",
    "prune": f"prune {UNET} --batch calib.pt --budget macs=50% --probe 2 --time --mask mask.json -o slim.safetensors",
    "refine": f"refine {UNET} --mask mask.json -o again.safetensors",
    "profile": f"profile {UNET} slim.safetensors --input 1x1x8x8x8",
    "profile-tree": f"profile {UNET} --input 1x1x8x8x8 --tree --amp",
    "compare": f"compare {UNET} --batch calib.pt --sparsity 0.5 --methods full,ranp-f,random --match macs",
    "compare-oracle": f"compare {UNET} --batch calib.pt --sparsity 0.5 --methods ranp-f --oracle",
    "compare-fit": f"compare {UNET} --batch calib.pt --sparsity 0.5 --methods ranp-f --fit fit.py:fit --seeds 2",
}
VALIDATOR = jsonschema.Draft202012Validator(report_schema.schema())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A calibration batch, a fit, and what prune writes for the commands that read it."""
    path = tmp_path_factory.mktemp("reports")
    torch.save((torch.randn(2, 1, 8, 8, 8), torch.randint(3, (2, 8, 8, 8))), path / "calib.pt")
    (path / "fit.py").write_text("def fit(model, seed):\n    return {'dice': 0.5, 'loss': float('nan')}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert run(f"{COMMANDS['prune']} --json prune.json -q".split()) == 0
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_report_of_each_command_holds_to_the_schema(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if name != "prune":
        assert run(f"{COMMANDS[name]} --json {name}.json -q".split()) == 0
    document = json.loads(Path(f"{name}.json").read_text())
    VALIDATOR.validate(document)
    assert document["command"] == name.partition("-")[0]


def test_what_is_no_report_does_not_hold_to_it(folder):
    sound = json.loads((folder / "prune.json").read_text())
    for path, value in (("neurons", {"total": "many"}), ("seconds", 3), ("not_a_part", 1), ("format", "ranp-mask"),
                        ("layers", [{**sound["layers"][0], "no_such_key": 0}]), ("command", "train")):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate({**sound, path: value})
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate({key: value for key, value in sound.items() if key != "version"})


def test_the_schema_in_the_package_is_that_of_the_types():
    """`python -m ranp_cli.reporting.report_schema` writes it."""
    assert report_schema.SCHEMA.read_text() == report_schema.as_text()
    jsonschema.Draft202012Validator.check_schema(report_schema.schema())


def test_every_type_has_a_use():
    used = {*report_schema.schema()["$defs"], "ReportDocument", "Summary", "CutRow"}
    found = {**vars(report_parts), **vars(speed_parts), **vars(report_types)}
    types = {name for name, kind in found.items() if report_schema.is_typeddict(kind)}
    assert types == used
