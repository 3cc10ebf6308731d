"""show.py: what a person sees, held against golden files (`pytest --overwrite` writes them anew)."""

from __future__ import annotations

import io
import os
import pty
import random
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ranp_cli.cli.flags import FlagSpelling
from ranp_cli.core.spelling import spelling
from ranp_cli.reporting import show

GOLDEN = Path(__file__).parent / "golden"
Row = dict[str, Any]


# -- three reports ---------------------------------------------------------------------------------------------------


def layer(name: str, op: str, kernel: int, neurons: int, kept: int, fan_in: int, fan_left: int, volume: int) -> Row:
    weights, weights_after = neurons * fan_in * kernel**3, kept * fan_left * kernel**3
    return {
        "name": name,
        "op": op,
        "kernel": [kernel] * 3,
        "neurons": neurons,
        "kept": kept,
        "macs": weights * volume,
        "macs_after": weights_after * volume,
        "output_elements": neurons * volume,
        "output_elements_after": kept * volume,
        "importance_mean": weights / (7 * volume),
        "tau": volume / 64**3,
    }


LAYERS = [
    layer("encoders.0.basic_module.conv1", "conv3d", 3, 32, 7, 1, 1, 64**3),
    layer("encoders.0.basic_module.conv2", "conv3d", 3, 64, 9, 32, 7, 64**3),
    layer("encoders.1.basic_module.conv1", "conv3d", 3, 64, 33, 64, 9, 32**3),
    layer("encoders.1.basic_module.conv2", "conv3d", 3, 128, 101, 64, 33, 32**3),
    layer("decoders.0.upsample", "conv_transpose3d", 2, 128, 128, 128, 101, 32**3),
    layer("decoders.0.basic_module.conv1", "conv3d", 3, 64, 12, 192, 137, 64**3),
    layer("decoders.0.basic_module.conv2", "conv3d", 3, 64, 1, 64, 12, 64**3),
    layer("final_conv", "conv3d", 1, 50, 50, 64, 1, 64**3),
]

MACS, MACS_AFTER = sum(row["macs"] for row in LAYERS), sum(row["macs_after"] for row in LAYERS)


def signature(*shape: int) -> Row:
    return {"args": [{"shape": list(shape), "dtype": "float32"}], "kwargs": {"dict": {}}}


PRUNE: Row = {
    "format": "ranp-report",
    "version": 1,
    "command": "prune",
    "ranp": "0.1.0",
    "torch": "2.13.0",
    "device": "cpu",
    "seconds": {"load": 0.1, "trace": 0.2, "score": 3.04, "select": 0.01, "refine": 0.1, "verify": 0.4, "total": 3.9},
    "model": {"spec": "model.py:UNet3D", "args": {}, "fingerprint": "ab" * 32, "input": signature(2, 1, 64, 64, 64)},
    "memory": {"before": {"samples": 2}, "after": {"samples": 2}},
    "method": {"name": "ranp", "criterion": "mpmg-sum", "resource": "mem", "lambda": 11.0, "seed": 0, "batches": 2},
    "sparsity": {"requested": 0.42, "achieved": 0.4259},
    "neurons": {"total": 594, "kept": 341},
    "before": {
        "params": 16_319_562,
        "params_bytes": 65_278_248,
        "macs": MACS,
        "flops": 2 * MACS,
        "activation_bytes": 1_045_430_272,
        "peak_forward_bytes": 402_653_184,
        "paper": {"param_mb": 62.26, "gflops": 237.85, "memory_mb": 997.0},
    },
    "after": {
        "params": 962_999,
        "params_bytes": 3_851_996,
        "macs": MACS_AFTER,
        "flops": 2 * MACS_AFTER,
        "activation_bytes": 313_629_081,
        "peak_forward_bytes": 402_653_184,
        "paper": {"param_mb": 3.67, "gflops": 9.55, "memory_mb": 299.1},
    },
    "verified": {
        "max_abs_error": 1e-7,
        "max_rel_error_fp32": 3.1e-7,
        "max_rel_error_fp64": 2.2e-16,
        "against": "masked",
        "not_comparable": ["encoders.0.basic_module.norm1 (group norm)"],
    },
    "layers": LAYERS,
    "floored": ["decoders.0.basic_module.conv2"],
    "fixed": {"final_conv": "network output"},
    "not_pruned": [{"layer": "decoders.0.upsample", "reason": "its channels meet aten.foo.default, which has no rule"}],
    "uncounted_ops": [{"op": "aten.foo.default", "module": "decoders.0", "count": 2}],
    "outputs": {"slim.safetensors": {"bytes": 3_859_112, "sha256": "0123456789abcdef" * 4}},
}

SCORE: Row = {
    "command": "score",
    "device": "cpu",
    "model": {"spec": "model.py:UNet3D"},
    "method": {"name": "ranp", "criterion": "mpmg-sum", "resource": "flops", "lambda": 11.0, "seed": 0},
    "neurons": {"total": 594},
    "layers": [{key: row[key] for key in row if key != "kept" and not key.endswith("_after")} for row in LAYERS],
    "seconds": {"load": 0.1, "score": 3.0, "total": 3.1},
}

PROFILE: Row = {
    "command": "profile",
    "model": {"spec": "slim.safetensors", "input": signature(1, 1, 64, 64, 64), "input_guessed": True},
    "before": PRUNE["before"],
    "layers": [
        {key: row[key] for key in ("name", "op", "kernel", "neurons", "macs", "output_elements")} for row in LAYERS
    ],
}

# two models whose layers differ: each row may lack one side
COMPARE: Row = {
    "command": "profile",
    "before": PRUNE["before"],
    "after": PRUNE["before"] | {"params": 17_000_000, "macs": 1},
    "layers": [
        {"name": "both", "op": "conv3d", "neurons": 8, "kept": 8, "macs": 8000, "macs_after": 7000},
        {"name": "gone", "op": "conv3d", "neurons": 16, "macs": 300},
        {"name": "new", "op": "linear", "kept": 4, "macs_after": 12},
    ],
}

REPORTS = {"prune": PRUNE, "score": SCORE, "profile": PROFILE, "compare": COMPARE}


# -- looking at a page -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def page(report: Row, width: int = 100, depth: int | None = None) -> str:
    """The page as a pipe gets it."""
    out = io.StringIO()
    with spelling(FlagSpelling()):
        show.show_report(report, Console(file=out, width=width), depth)
    return out.getvalue()


def in_terminal(monkeypatch: pytest.MonkeyPatch, print_it: Callable[[Console], None], encoding: str = "utf-8") -> str:
    """What `print_it(console)` writes to a (pseudo) terminal."""
    reader, writer = pty.openpty()
    with open(writer, "w", encoding=encoding) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        print_it(show.console(width=100))
    written = b""
    with suppress(OSError):  # the end of a terminal that was closed
        while chunk := os.read(reader, 1 << 16):
            written += chunk
    os.close(reader)
    return written.decode(encoding)


def sums(text: str) -> list[tuple[Decimal, Decimal]]:
    """Of each column of pairs in the table of layers: the printed numbers added up, and the printed total."""
    rows = text.split("layer ")[-1].split("\n\n")[0].splitlines()[1:]
    pairs = [re.findall(r"(\S+) (?:/|->) +(\S+)", row) for row in rows if not row.startswith("---")]
    numbers = [[Decimal("0" if n == "-" else n.replace(",", "")) for pair in row for n in pair] for row in pairs]
    *layers, total = numbers
    return [(sum(column, Decimal()), last) for column, last in zip(zip(*layers, strict=True), total, strict=True)]


# -- tests -----------------------------------------------------------------------------------------------------------


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


def test_a_terminal_gets_colour_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = in_terminal(monkeypatch, lambda console: show.show_report(PRUNE, console))
    assert "\x1b[32m" in text  # green
    assert "█" in text
    assert "→" in text


def test_no_color_means_no_escape_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = in_terminal(monkeypatch, lambda console: show.show_report(PRUNE, console))
    assert "\x1b" not in text
    assert "█" in text


def test_a_terminal_that_has_no_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"layers": [{"name": "größe", "neurons": 2, "kept": 1}]}
    text = in_terminal(monkeypatch, lambda console: show.show_report(report, console), encoding="ascii")
    assert "gr\\xf6\\xdfe" in text
    assert "####...." in text


@pytest.mark.parametrize("stderr", [False, True])
def test_a_pipe_gets_plain_ascii_at_100_columns(stderr: bool, capsys: pytest.CaptureFixture[str]) -> None:
    console = show.console(stderr=stderr)
    assert console.width == show.PIPE_WIDTH
    show.show_report(PRUNE, console)
    text = capsys.readouterr()[stderr]
    assert text == page(PRUNE, 100)
    assert text.isascii()
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ["[red]a[/red]", "[/]", ":smile:", "\\[bold]", "a b", "[link=x]y"])
def test_names_are_not_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = {
        "model": {"spec": name},
        "layers": [{"name": name, "op": "conv3d", "neurons": 4, "kept": 1}],
        "floored": [name],
        "not_pruned": [{"layer": name, "reason": name}],
        "uncounted_ops": [{"op": name, "module": name}],
        "outputs": {name: {"bytes": 1, "sha256": "ab" * 32}},
    }
    loose = Console(file=io.StringIO(), width=100, markup=True, emoji=True, highlight=True)
    show.show_report(report, loose)
    assert loose.file.getvalue().count(name) == 9
    show.show_error(name, show.console())
    assert capsys.readouterr().out == f"ranp: error: {name}\n"


def test_control_characters_are_written_out() -> None:
    text = page({"layers": [{"name": "a\x1b[2Jb", "neurons": 1}], "floored": ["c\x1b[31m\nd"]})
    assert "\x1b" not in text
    assert "a\\x1b[2Jb" in text


def test_an_error_is_one_line_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    show.show_error("no such file\n" + "x" * 500, show.console(stderr=True))
    assert capsys.readouterr().err == f"ranp: error: no such file {'x' * 500}\n"


def test_an_error_is_red_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = in_terminal(monkeypatch, lambda console: show.show_error("no", console))
    assert text == "\x1b[1;31mranp: error: \x1b[0mno\r\n"


def test_progress_is_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with show.progress(show.console(), "scoring", 3) as advance:
        advance()
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(console: Console) -> None:
        with show.progress(console, "scoring [red]", 3) as advance:
            advance()
            advance(2)

    text = in_terminal(monkeypatch, run)
    assert "scoring [red]" in text
    assert "3/3" in text


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
