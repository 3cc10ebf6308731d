"""`profile --tree`: every number of it adds up, to the totals of the report and to what is printed."""

from __future__ import annotations

import io
import json
import random
import re
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import packages
import pytest
import torch
import zoo
from rich.console import Console

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.models.unet3d import unet3d
from ranp_cli.reporting import show
from ranp_cli.reporting.terminal import Terminal
from ranp_cli.reporting.tree import tree_lines

GOLDEN = Path(__file__).parent / "golden"
KEYS = ("params", "macs", "output_elements", "saved_bytes")
Row = dict[str, Any]


def row(module: str, kind: str, params: int = 0, macs: int = 0, outputs: int = 0, saved: int | None = 0) -> Row:
    out = {"module": module, "type": kind, "params": params, "macs": macs, "output_elements": outputs}
    return out if saved is None else {**out, "saved_bytes": saved}


ROWS = [
    row("", "UNet3D", saved=201_326_592),
    row("encoders", "ModuleList"),
    row("encoders.0", "ConvBlock"),
    row("encoders.0.conv1", "Conv3d", 864, 226_492_416, 8_388_608, 33_554_432),
    row("encoders.0.norm1", "BatchNorm3d", 64, saved=33_554_688),
    row("encoders.0.relu", "ReLU"),
    row("encoders.0.conv2", "Conv3d", 55_296, 14_495_514_624, 16_777_216, 67_108_864),
    row("encoders.1", "ConvBlock"),
    row("encoders.1.conv", "Conv3d", 110_592, 3_623_878_656, 2_097_152, 8_388_608),
    row("position", "Position", 4_096, saved=1_024),
    row("pool", "MaxPool3d", saved=25_165_824),
    row("head", "Conv3d", 3_250, 838_860_800, 13_107_200, 52_428_800),
]
REPORT: Row = {"command": "profile", "model": {"spec": "model.py:UNet3D"}, "modules": ROWS}


def page(report: Row, width: int = 100, depth: int | None = None) -> str:
    out = io.StringIO()
    show.show_report(report, Console(file=out, width=width), depth)
    return out.getvalue()


def lines(rows: list[Row], width: int = 200, depth: int | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    return [line.plain for line in tree_lines(rows, Terminal(console), depth)]


@pytest.mark.parametrize("width", [80, 120])
def test_the_tree_is_as_recorded(width: int, request: pytest.FixtureRequest) -> None:
    golden = GOLDEN / f"tree_{width}.txt"
    text = page(REPORT, width) + "\n" + page(REPORT, width, depth=1)
    if request.config.getoption("--overwrite"):
        golden.write_text(text, encoding="ascii")
    assert text == golden.read_text(encoding="ascii")


def printed(rows: list[Row], depth: int | None = None) -> list[tuple[int, list[Decimal]]]:
    """Level and numbers of each line."""
    body = lines(rows, depth=depth)
    body = body[[line.startswith("---") for line in body].index(True) + 1 :]
    out = []
    for line in body:
        level = (len(line) - len(line.lstrip())) // 2
        numbers = re.findall(r"(?<=\s)(-|[\d,]+(?:\.\d+)?)(?=\s|$)", line.lstrip().partition("  ")[2])
        out.append((level, [Decimal("0" if n == "-" else n.replace(",", "")) for n in numbers]))
    return out


def parents_are_sums(found: list[tuple[int, list[Decimal]]]) -> int:
    """Each line with lines below it is their sum; how many such lines there are."""
    checked = 0
    for k, (level, numbers) in enumerate(found):
        below = []
        for other, values in found[k + 1 :]:
            if other <= level:
                break
            if other == level + 1:
                below.append(values)
        if below:
            checked += 1
            assert [sum(column, Decimal()) for column in zip(*below, strict=True)] == numbers
    return checked


@pytest.mark.parametrize("depth", [None, 1, 2])
def test_printed_lines_add_up_to_the_line_above_them(depth: int | None) -> None:
    assert parents_are_sums(printed(ROWS, depth)) == {None: 4, 1: 1, 2: 2}[depth]


@pytest.mark.parametrize("seed", range(10))
def test_they_add_up_whatever_the_numbers(seed: int) -> None:
    draw = random.Random(seed)
    rows = [row("", "Net")]
    for _ in range(draw.randint(2, 60)):
        above = draw.choice(rows)["module"]
        size = [draw.choice([0, int(10 ** draw.uniform(0, 12))]) for _ in KEYS]
        rows.append(row(f"{above}.m{len(rows)}".lstrip("."), "Block", *size))
    found = printed(rows)
    assert parents_are_sums(found) >= 1
    assert len({len(numbers) for _, numbers in found}) == 1


def test_depth_leaves_levels_out_and_sums_stay() -> None:
    names = [line.split()[0] for line in lines(ROWS, depth=1)[4:]]
    assert names == ["model", "(itself)", "encoders", "position", "pool", "head"]
    assert printed(ROWS, depth=1)[0] == printed(ROWS)[0]
    assert lines(ROWS, depth=0) == []


def test_modules_that_need_nothing_are_left_out_and_a_dash_is_nothing() -> None:
    text = "\n".join(lines(ROWS))
    assert "relu" not in text
    assert re.search(r"norm1 +BatchNorm3d +0\.1 +- +- +32\.0", text)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_longer_than_the_page(width: int) -> None:
    assert all(len(line) <= width for line in page(REPORT, width).splitlines())


def test_names_are_printable_and_no_markup() -> None:
    text = "\n".join(lines([row("", "Net"), row("[red]a\x1b", "[b]", 5)]))
    assert "[red]a\\x1b" in text
    assert "[b]" in text


# -- of networks


def totals(report: Row) -> Row:
    return {key: sum(entry[key] for entry in report["modules"]) for key in KEYS if key in report["modules"][0]}


@pytest.mark.parametrize("case", [c for c in packages.CASES if c.fast], ids=lambda c: c.name)
def test_the_rows_add_up_to_the_report(case) -> None:
    report = ranp.profile(zoo.build(case), case.shape, tree=True).to_dict()
    found = totals(report)
    assert found["params"] == report["before"]["params"]
    assert found["macs"] == report["before"]["macs"]
    assert found["output_elements"] == sum(entry["output_elements"] for entry in report["layers"])
    assert found["saved_bytes"] == report["memory"]["before"]["train_parts"]["saved"]
    layers = {entry["name"]: entry["macs"] for entry in report["layers"]}
    told = {entry["module"]: entry["macs"] for entry in report["modules"] if entry["macs"]}
    assert {name: told.get(name) for name in layers} == layers


def test_a_script_has_its_tree_by_layer() -> None:
    """Its calls cannot be watched: multiply-adds are those of the layers, what is saved is the model's own."""
    net, x = unet3d(layers=7, width=4, num_classes=3), torch.randn(1, 1, 8, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(net.eval(), x)
    rows = {kind: ranp.profile(model, tuple(x.shape), tree=True).to_dict()["modules"]
            for kind, model in (("eager", net), ("script", script))}  # fmt: skip
    for key in ("module", "type", "params", "macs", "output_elements"):
        assert [r[key] for r in rows["script"]] == [r[key] for r in rows["eager"]]
    assert [r["module"] for r in rows["script"] if r["saved_bytes"]] == [""]


def test_without_the_memory_there_is_a_tree_of_the_rest() -> None:
    class Numbers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(10, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) * float(self.a.weight.sum())

    report = ranp.profile(Numbers(), (8, 10), tree=True).to_dict()
    assert totals(report) == {"params": 110, "macs": 100, "output_elements": 10}


def test_on_the_command_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = "profile ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=4 --input 1x1x16x16x16 --tree"
    assert run([*words.split(), "--depth", "1"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  encoders +ModuleList ", text, re.MULTILINE)
    assert "conv1" not in text.partition("training step")[0]
    assert run([*words.split(), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["modules"][0]["type"] == "UNet3D"
    Path("net.onnx").write_bytes(b"")
    for more, says in (("ranp_cli.models.unet3d:unet3d", "--tree shows one model"), ("", "has no modules")):
        assert run(["profile", "net.onnx", *more.split(), "--tree"]) == 2
        assert says in capsys.readouterr().err
