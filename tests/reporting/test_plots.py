"""Pictures: made in every format, the same bytes each time, with what they should show; nothing made when it cannot be."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.models.unet3d import unet3d
from ranp_cli.reporting import plots

HEADS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet3d(layers=7, width=8, num_classes=3)


@pytest.fixture(scope="module")
def batch():
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, 8, 8, 8, generator=g), torch.randint(3, (2, 8, 8, 8), generator=g)


@pytest.fixture(scope="module")
def results(model, batch):
    return {
        "score": ranp.score(model, batch, sparsity=0.5),
        "prune": ranp.prune(model, batch, sparsity=0.5, resource="mem"),
        "compare": ranp.compare(model, batch, sparsity="0.2:0.8:0.3", methods=["full", "vanilla", "ranp-m"]),
        "bars": ranp.compare(model, batch, sparsity=0.8, methods=["vanilla", "ranp-m"]),
    }


@pytest.mark.parametrize(
    ("command", "suffix"),
    [
        *(("prune", suffix) for suffix in plots.SUFFIXES),
        *((command, ".svg") for command in ("score", "compare", "bars")),
    ],
)
def test_every_format_twice_the_same(results, command, suffix, tmp_path):
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    results[command].plot(first)
    results[command].plot(second)
    assert first.read_bytes().startswith(HEADS[suffix])
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.iterdir()) == [first, second]


@pytest.mark.parametrize("wanted", [[0.5, 1, 1.5, 99], [50.0] * 4, [99.0, 99.5, 99.9], list(range(100))])
def test_names_are_spread_until_none_lies_on_another(wanted):
    places = plots.spread(np.array(wanted), 5, 100)
    room = min(5, 100 / len(wanted))
    assert (np.diff(places) >= room - 1e-9).all()
    assert places.max() <= 100
    assert list(plots.spread(np.array([10.0, 50.0]), 5, 100)) == [10, 50]


def texts(path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_what_stands_in_them(results, tmp_path):
    path = tmp_path / "a.svg"
    results["prune"].plot(path)
    said = texts(path)
    first, second, last = (t for t in said if "mean of the layer" in t)
    assert (first, second) == ("vanilla (bars: mean of the layer)", "weighted (bars: mean of the layer)")
    threshold = float(re.fullmatch(r"ranp, by mem \(bars: mean of the layer; dashed: threshold (.*)\)", last)[1])
    scores = np.concatenate(results["prune"].rankings["ranp, by mem"])
    assert (scores >= threshold * 0.999).sum() == pytest.approx(len(scores) / 2, abs=2)
    assert {"share kept", *results["prune"].mask.layers} <= set(said), "every layer has its name"
    results["compare"].plot(path)
    said = texts(path)
    assert {"vanilla", "ranp-mem", "multiply-adds", "memory (activations)", "parameters", "neuron sparsity"} <= set(
        said
    )
    assert "full" not in said
    results["bars"].plot(path)
    said = set(texts(path))
    for row in results["bars"].rows:
        assert f"{100 * row['reduction']['macs']:.1f}" in said
    assert any("hatched: a layer was kept at its floor" in t for t in said)


def test_numbers_are_drawn_where_they_are(monkeypatch):
    """Dots at the scores, bars at the layers' means and shares: read back from the figure itself."""
    seen = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: seen.append(figure))
    scores = [np.array([1.0, 3.0]), np.array([10.0, 20.0, 60.0])]
    plots.importance("x.png", ["a", "b"], {"vanilla": scores}, [1, 3])
    dots, bars = seen[0].axes
    assert dots.collections[0].get_offsets()[:, 1].tolist() == [1, 3, 10, 20, 60]
    assert [s[0][1] for s in dots.collections[1].get_segments()] == [2, 30]
    assert [p.get_height() for p in bars.containers[0]] == [0.5, 1.0]
    assert [p.get_width() for p in bars.containers[0]] == [2, 3]


def test_bad_names_are_told_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["prune", "nothing.py:Net", "--batch", "b.pt", "--sparsity", "0.5", "--plot", "a.jpg"]) == 2
    assert "a.jpg: pictures are written as .png, .svg, .pdf" in capsys.readouterr().err


def test_without_matplotlib(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ranp.BadInput, match=r"pip install 'ranp-cli\[plot\]'"):
        results["prune"].plot(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["random", "snip"])
def test_methods_without_importance_say_so(model, batch, method, tmp_path):
    with pytest.raises(ranp.BadInput, match="ranks no neurons by importance"):
        ranp.prune(model, batch, sparsity=0.5, method=method, allow_less=True).plot(tmp_path / "a.png")
