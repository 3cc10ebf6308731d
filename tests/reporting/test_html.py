"""The page of a report: whole, by itself, and with the numbers of the report."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch
from html_reader import Reader
from rich.console import Console

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.models.unet3d import unet3d
from ranp_cli.reporting.html import bytes_, human, page
from ranp_cli.reporting.show import show_report


@pytest.fixture(scope="module")
def pruned():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        g = torch.Generator().manual_seed(1)
        batch = torch.randn(2, 1, 8, 8, 8, generator=g), torch.randint(3, (2, 8, 8, 8), generator=g)
        return ranp.prune(unet3d(layers=7, width=8, num_classes=3), batch, sparsity=0.5)


def whole(report) -> dict:
    return {**report.to_dict(), "memory": report.parts["memory"]}


def test_the_page_is_whole_and_by_itself(pruned):
    found = Reader(page(whole(pruned.report)))
    assert not found.open
    assert "script" not in found.tags
    assert found.links == ["data:,"]
    assert not re.search(r"https?://|@import|url\(", page(whole(pruned.report)))


def test_the_numbers_are_those_of_the_report(pruned):
    report = whole(pruned.report)
    text = " ".join(Reader(page(report)).words)
    for row in report["layers"]:
        assert f"{row['name']}: {human(row['neurons'])} → {human(row['kept'])}" in text  # on hovering
        assert f"{human(row['macs'])} → {human(row['macs_after'])}" in text
        assert row["output_bytes"] == 4 * row["output_elements"]
        assert f"{bytes_(row['output_bytes'])} → {bytes_(row['output_bytes_after'])}" in text
    assert "memory of the output" in text
    for side in ("before", "after"):
        assert human(report[side]["params"]) in text
        memory = report["memory"][side]
        assert f"peak {bytes_(memory['train_peak_bytes'])}" in text
        assert max(memory["timeline"]) == memory["train_peak_bytes"]
        assert 0 < memory["timeline_backward"] < len(memory["timeline"]) <= 240


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_memory_of_a_layer_is_in_the_bytes_of_its_type(dtype):
    model = unet3d(layers=7, width=4).to(dtype)
    rows = ranp.profile(model, torch.empty(2, 1, 16, 16, 16, dtype=dtype)).to_dict()["layers"]
    assert all(row["output_bytes"] == dtype.itemsize * row["output_elements"] > 0 for row in rows)


def test_a_step_that_cannot_be_estimated_is_said_once(pruned):
    report = whole(pruned.report)
    report["memory"] = {side: {"samples": 1, "train_error": "no <step>"} for side in ("before", "after")}
    assert page(report).count("no &lt;step&gt;") == 1


def test_what_a_file_does_not_record_is_left_out(pruned):
    report = whole(pruned.report)
    report["layers"] = [{k: v for k, v in row.items() if not k.startswith("output")} for row in report["layers"]]
    assert "memory of the output" not in page(report)


def test_names_are_escaped(pruned):
    report = whole(pruned.report)
    report["model"] = {"spec": "<script>alert(1)</script>.py:Net"}
    report["layers"] = [{**report["layers"][0], "name": 'a"<b>'}]
    found = Reader(page(report))
    assert not {"script", "b"} & set(found.tags)
    assert "<script>alert(1)</script>.py:Net" in " ".join(found.words)


SPEED = {
    "device": "cpu", "threads": 1, "samples": 2, "repeats": 30, "before_s": 0.0503, "after_s": 0.0203, "speedup": 2.478,
    "theoretical_speedup": 7.126, "train_repeats": 12, "train_before_s": 1.5, "train_after_s": 0.75, "train_speedup": 2.0,
}  # fmt: skip


def words_of(report) -> str:
    found = Reader(page(report))
    assert not found.open
    return " | ".join(found.words)


def test_the_measured_speed_stands_beside_the_promised_one(pruned):
    report = whole(pruned.report)
    assert "Measured speed" not in page(report)
    text = words_of({**report, "speed": SPEED})
    assert "speed-up | by multiply-adds" in text
    forward, step = "50.3 ms → 20.3 ms", "1.50 s → 750 ms"
    assert f"forward pass: {forward} | {forward} | 2.48 x | 7.13 x" in text
    assert f"training step: {step} | {step} | 2.00 x | 7.13 x" in text
    assert "Measured on cpu, 1 thread, batch of 2, medians of 30 and 12 runs." in text


def test_a_bar_that_grew_hides_nothing(pruned):
    slower = {**SPEED, "train_before_s": 0.5, "train_after_s": 2.0, "train_speedup": 0.25}
    found = re.search(r"training step: .*?</svg>", page({**whole(pruned.report), "speed": slower}))
    assert found is not None
    assert re.findall(r'width="([\d.]+)" .*?var\(--(\w+)\)', found[0]) == [("100.00", "now"), ("25.00", "was")]


def test_the_time_of_one_network_and_a_step_that_failed(pruned):
    report = whole(pruned.report)
    place = {k: SPEED[k] for k in ("device", "threads", "samples", "repeats")}
    for side in ("before", "after"):
        text = words_of({**report, "speed": {**place, f"{side}_s": 0.25}})
        assert f"Measured speed | {side} | forward pass | 250 ms" in text.replace(" | \n", "")
        assert not {"training step", "speed-up", "by multiply-adds"} & set(text.split(" | "))
    alone = {k: v for k, v in report.items() if k != "after"}
    text = words_of({**alone, "speed": {**place, "before_s": 0.25}})
    assert "Measured speed | forward pass | 250 ms" in text.replace(" | \n", "")
    failed = {k: v for k, v in SPEED.items() if not k.startswith("train_")} | {"train_error": "no gradient for <x>"}
    text = words_of({**whole(pruned.report), "speed": failed})
    assert "Training step: no gradient for <x>" in text
    assert "medians of 30 runs" in text


def test_a_model_that_was_made_in_memory_has_no_name(pruned, tmp_path):
    """Its spec is None: whatever the library returns of it is shown on a terminal and as a page."""
    model, shape = pruned.model, (1, 1, 8, 8, 8)
    batch = torch.linspace(-1, 1, 512).view(shape), torch.arange(512).view(1, 8, 8, 8) % 3
    pruned.save(tmp_path / "slim.safetensors")
    reports = [
        pruned.report,
        ranp.score(model, batch).report,
        ranp.refine(model, ranp.prune(model, batch, sparsity=0.1).mask, full=True).report,
        ranp.compare(model, batch, sparsity=0.2, methods=["random"]).report,
        ranp.profile(model, shape),
        ranp.profile(model, shape, tree=True),
        ranp.profile(model, shape, other=model),
        ranp.profile(tmp_path / "slim.safetensors"),
    ]
    for report in reports:
        document = report.to_dict()
        assert document.get("model", {}).get("spec") is None
        name = document.get("model", {}).get("file", "")
        out = io.StringIO()
        show_report(document, Console(file=out, width=100))
        head = f"ranp {report.command}  {name}".strip()
        assert " ".join(out.getvalue().split()).startswith(" ".join(head.split()))
        assert f"<title>ranp {report.command}: {name or 'model'}</title>" in page(document)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "profile ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=4 --input 1x1x16x16x16"
    assert run([*words.split(), "--html", "r.html", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "timeline" not in document["memory"]["before"]
    found = Reader((tmp_path / "r.html").read_text())
    assert not found.open
    assert any("backward" in word for word in found.words)
    assert run([*words.split(), "--html", "no/such/folder/r.html"]) == 2
