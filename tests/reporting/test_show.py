"""show.py: what a person sees, held against golden files (`pytest --overwrite` writes them anew)."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from shown_reports import COMPARE, LAYERS, PRUNE, REPORTS, Row, page, signature

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def sums(text: str) -> list[tuple[Decimal, Decimal]]:
    """Of each column of pairs in the table of layers: the printed numbers added up, and the printed total."""
    rows = text.split("layer ")[-1].split("\n\n")[0].splitlines()[1:]
    pairs = [re.findall(r"(\S+) (?:/|->) +(\S+)", row) for row in rows if not row.startswith("---")]
    numbers = [[Decimal("0" if n == "-" else n.replace(",", "")) for pair in row for n in pair] for row in pairs]
    *layers, total = numbers
    return [(sum(column, Decimal()), last) for column, last in zip(zip(*layers, strict=True), total, strict=True)]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", REPORTS)
def test_page_is_as_recorded(name: str, width: int, request: pytest.FixtureRequest) -> None:
    golden = GOLDEN / f"show_{name}_{width}.txt"
    text = page(REPORTS[name], width)
    if request.config.getoption("--overwrite"):
        golden.write_text(text, encoding="ascii")
    assert text == golden.read_text(encoding="ascii")


@pytest.mark.parametrize("depth", [None, 1, 2])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("name", REPORTS)
def test_no_line_is_longer_than_the_page_or_ends_in_blanks(name: str, width: int, depth: int | None) -> None:
    for line in page(REPORTS[name], width, depth).splitlines():
        assert len(line) <= width
        assert line == line.rstrip()


def test_a_wide_page_has_every_column_and_a_narrow_one_the_important_ones() -> None:
    assert all(title in page(PRUNE, 120) for title in ("op", "output elements", "importance", "tau"))
    assert "tau" not in page(PRUNE, 80)
    assert "kept / all" in page(PRUNE, 60)
    assert "encoders.0.basic_module.conv1" in page(PRUNE, 200)


@pytest.mark.parametrize("width", [80, 90, 100, 110, 120])
def test_names_that_are_cut_stay_distinct(width: int) -> None:
    rows = page(PRUNE, width).split("\nlayer ")[1].splitlines()[2 : 2 + len(LAYERS)]
    assert len({row.split()[0] for row in rows}) == len(LAYERS)


@pytest.mark.parametrize("depth", [None, 1])
@pytest.mark.parametrize("report", [PRUNE, COMPARE], ids=["prune", "compare"])
def test_printed_columns_add_up_to_the_printed_total(report: Row, depth: int | None) -> None:
    columns = sums(page(report, 120, depth))
    assert len(columns) >= 4
    assert all(added == printed > 0 for added, printed in columns)


@pytest.mark.parametrize("seed", range(20))
def test_columns_add_up_whatever_the_numbers_and_unchanged_layers_read_the_same(seed: int) -> None:
    draw = random.Random(seed)
    layers: list[Row] = []
    for i in range(draw.randint(1, 60)):
        size = int(10 ** draw.uniform(0, 11))
        neurons = draw.randint(1, 2000)
        kept = draw.choice([neurons, draw.randint(1, neurons)])
        layers.append({"name": f"layer{i}", "op": "conv3d", "neurons": neurons, "kept": kept, "macs": size * neurons})
        layers[-1]["macs_after"] = size * kept
    text = page({"layers": layers}, 120)
    assert all(added == printed for added, printed in sums(text))
    changed = [row for row in layers if row["kept"] < row["neurons"]]
    if len(changed) > len(layers) / 2:
        for row in layers:
            line = next(line for line in text.splitlines() if line.startswith(row["name"] + " "))
            before, after = re.findall(r"(\S+) -> +(\S+)", line)[0]
            assert before == after or row in changed


def test_one_side_that_is_not_there_is_a_dash() -> None:
    rows = {line.split()[0]: line for line in page(COMPARE).splitlines() if line}
    assert re.search(r"- / 16 .* 300 -> +-$", rows["gone"])
    assert re.search(r"4 / +- .* - -> +12$", rows["new"])


def test_depth_adds_layers_up_under_their_module() -> None:
    text = page(PRUNE, 120, depth=1)
    assert re.search(r"^encoders +4 layers +150 / 288 ", text, re.MULTILINE)
    assert "8 layers" in text
    assert "kept / all" not in page(PRUNE, 120, depth=0)


def test_a_bar_is_full_only_when_all_stay_and_empty_only_when_none() -> None:
    layers = [
        {"name": name, "neurons": 1000, "kept": kept}
        for name, kept in {"all": 1000, "most": 999, "half": 500, "one": 1, "none": 0}.items()
    ]
    rows = {line.split()[0]: line.split()[-1] for line in page({"layers": layers}).splitlines() if line}
    assert rows["all"] == "########"
    assert rows["most"] == "#######."
    assert rows["half"] == "####...."
    assert rows["one"] == "#......."
    assert rows["none"] == "........"


@pytest.mark.parametrize(
    ("about", "shown"),
    [({"spec": None}, ""), ({}, ""), ({"spec": None, "file": "slim.safetensors"}, "  slim.safetensors")],
)
def test_a_model_that_was_made_in_memory_has_no_name(about: Row, shown: str) -> None:
    for report in (PRUNE, {**PRUNE, "modules": [{"module": "", "params": 3}]}):
        head = page({**report, "model": about}).splitlines()[0]
        assert re.match(rf"ranp prune{shown} +->", head), head


def test_an_empty_report_prints_little() -> None:
    assert page({}) == "ranp\n"


def test_numbers_for_people() -> None:
    report = {"before": {"params": 999_960, "params_bytes": 1023, "macs": 0}, "after": {"params": 1, "macs": 0}}
    text = page(report)
    assert re.search(r"parameters +1\.0 M +1 +-100\.0 %", text)
    assert re.search(r"parameter bytes +1023 B$", text, re.MULTILINE)
    assert re.search(r"multiply-adds +0 +0 +0\.0 %", text)


@pytest.mark.parametrize(
    ("about", "memory", "told"),
    [
        ({}, {}, []),
        ({"input": signature(1, 1, 8, 8)}, {}, ["input: 1x1x8x8", "counted: all of one sample"]),
        (
            {"input": signature(4, 1, 8, 8), "profiled_input": signature(2, 1, 64, 64), "input_guessed": True},
            {"after": {"samples": 3}},
            [
                "input: 2x1x64x64, guessed: give --input for another",
                "counted: multiply-adds and activations of one sample, peaks of a batch of 3",
            ],
        ),
        (
            {
                "input": {
                    "args": [{"tuple": [signature(1, 2)["args"][0]] * 2}],
                    "kwargs": {"dict": {"m": {"shape": [3]}}},
                }
            },
            {},
            ["input: 1x2, 1x2, 3", "counted: all of one sample"],
        ),
    ],
)
def test_the_input_that_is_counted_on(about: Row, memory: Row, told: list[str]) -> None:
    report = {"model": about, "memory": memory, "before": {"macs": 1}}
    assert [line for line in page(report).splitlines() if re.match("input:|counted:", line)] == told


def test_verdicts() -> None:
    assert "verified against the masked network: max error 3.1e-07 (fp32), 2.2e-16 (fp64)" in page(PRUNE)
    assert "verified against the masked network: max error 0 (absolute)" in page({"verified": {"max_abs_error": 0.0}})
    assert "verified against" not in page({"verified": {"not_comparable": ["norm (group norm)"]}})


def test_show_needs_neither_torch_nor_the_rest_of_the_package() -> None:
    loaded = "import sys, ranp_cli.reporting.show; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" not in names
