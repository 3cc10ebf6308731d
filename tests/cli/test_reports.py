"""The report of each command as one JSON document: its keys, and nothing else on the same stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_lines import NEURONS, PRUNE, ranp

COST = {"params", "params_bytes", "macs", "flops", "activation_bytes", "peak_forward_bytes", "paper"}
ALWAYS = {"format", "version", "command", "ranp", "torch", "model", "before", "layers"}
PROFILED = ALWAYS | {"memory"}
RAN = ALWAYS | {"seconds", "device", "neurons", "method"}
SLIMMED = RAN | {"sparsity", "after", "reduction", "verified", "not_pruned"}
PRUNED = SLIMMED | {"memory"}
MAYBE = {
    "floor",
    "held_back",
    "narrowest",
    "floored",
    "fixed",
    "not_pruned",
    "outputs",
    "uncounted_ops",
    "unruled_ops",
    "other",
    "seconds",
    "device",
    "neurons",
}
# command line -> the keys that its report has, and those of a layer
REPORTS = [
    ("score net.py:Net --batch calib.pt", RAN, {"importance_mean"}),
    (PRUNE, PRUNED | {"fixed"}, {"kept", "macs_after", "importance_mean", "tau"}),
    ("prune net.py:Net --scores scores.safetensors --sparsity 0.5", PRUNED, {"kept", "importance_mean"}),
    (f"{PRUNE} --resource none", PRUNED, {"kept", "importance_mean"}),
    ("refine net.py:Net --mask mask.json", SLIMMED, {"kept", "macs_after"}),
    ("profile net.py:Net", PROFILED, set()),
    ("profile traced.pt --input 1x1x8x8x8", PROFILED | {"notes"}, set()),
    ("profile scripted.pt", PROFILED | {"notes"}, set()),
    ("profile slim.safetensors", PROFILED | {"after", "reduction", "sparsity", "method", "verified"}, {"kept"}),
    ("profile net.py:Net slim.safetensors", PROFILED | {"other", "after", "reduction"}, {"kept", "macs_after"}),
]


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.jit as a whole


@pytest.mark.parametrize(("line", "keys", "of_layers"), REPORTS, ids=[line for line, *_ in REPORTS])
def test_report_is_one_json_document(
    line: str, keys: set[str], of_layers: set[str], here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ranp(f"{line} --json -") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err.startswith(f"ranp {line.split()[0]}")
    assert keys <= report.keys() <= keys | MAYBE
    assert all(value not in (None, [], {}) for value in report.values())
    assert (report["format"], report["version"], report["command"]) == ("ranp-report", 1, line.split()[0])
    for side in ("before", "after"):
        if side in report:
            paper = {"param_mb", "gflops", "memory_mb"} if "pt" not in line.split()[1].split(".") else set()
            wanted = COST | ({"train_macs", "train_flops"} if "memory" in report else set())
            assert report[side].keys() == (
                wanted if paper else wanted - {"paper"}
            )  # TorchScript hides its leaf modules
            assert report[side]["flops"] == 2 * report[side]["macs"]
            assert report[side].get("paper", {}).keys() == paper
    if "after" in report:
        reduction = 1 - report["after"]["macs"] / report["before"]["macs"]
        assert report["reduction"]["macs"] == pytest.approx(reduction, abs=1e-6)
    for layer in report["layers"]:
        assert of_layers | {"name", "op", "neurons", "params", "macs", "output_elements"} <= layer.keys()
    assert [layer["name"] for layer in report["layers"]] == [*NEURONS]

    assert ranp(f"{line} -q --json {tmp_path / 'r.json'}") == 0
    again = json.loads((tmp_path / "r.json").read_text())
    assert capsys.readouterr() == ("", "")
    assert {**again, "seconds": 0} == {**report, "seconds": 0}


def test_what_the_model_prints_is_no_part_of_the_document(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp("prune net.py:Prints --batch calib.pt --sparsity 0.5 --json -") == 0
    assert json.loads(capsys.readouterr().out)["command"] == "prune"


def test_two_networks_are_compared_on_one_input(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp("profile net.py:Net slim.safetensors --json -") == 0
    report = json.loads(capsys.readouterr().out)
    wanted = json.loads((here / "report.json").read_text())
    assert report["before"] == wanted["before"]
    assert report["reduction"] == wanted["reduction"]
