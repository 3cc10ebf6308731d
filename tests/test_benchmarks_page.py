"""The tables of tests/benchmarks/RESULTS.md, from made-up numbers: what they say follows from the numbers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import (
    accuracy_page,
    latency_accuracy,
    latency_budgets,
    oracle,
    oracle_tables,
    paper_rows,
    paper_tables,
    planning,
    rounds,
    runtimes,
)
from benchmarks.page import RESULTS, SCRIPTS, SECTION, Lines, put, stamped

from ranp_cli.api.comparison.over_seeds import summary

PAGE = Path(__file__).parent / "benchmarks" / "RESULTS.md"


def row(values, removed=0.5, cut=0.5):
    reduction = {"macs": cut, "paper": {"param_mb": cut, "gflops": cut, "memory_mb": cut}}
    return {
        "accuracy": {"metric": "miou", **summary(values)},
        "sparsity": {"achieved": removed},
        "reduction": reduction,
    }


DENSE = row([0.8, 0.82], 0.0, 0.0)


def lines_of(text):
    """The lines of the one table of a text; all have as many cells."""
    found = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in found}) == 1
    return found[2:]


# -- accuracy


def trained(method, values, macs=0.5):
    """A row of the accuracy benchmark: networks of some accuracies, with a probe that falls as far as they are good."""
    seeds = [
        {"metrics": {"dice": v, "probe_first": 2.0, "probe_last": 1 - v, "at_50": v / 2, "at_100": v}} for v in values
    ]
    return {
        "method": method,
        "accuracy": {"metric": "dice", **summary(values)},
        "reduction": {"macs": macs},
        "seeds": seeds,
    }


def test_a_task_that_is_measured_anew_replaces_its_own_section(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Results\n\n<!-- accuracy -->\n\n<!-- end of accuracy -->\n")
    dense, ours, flat = trained("full", [0.8, 0.82], 0), trained("ranp-flops", [0.72, 0.9]), trained("flat", [0.6, 0.7])
    accuracy_page.write(page, {"one": [dense, ours, flat], "two": [dense, ours, flat]})
    assert (
        "It is ahead of all of them on one, two. Against the dense network it is between +0.000 and +0.000."
        in page.read_text()
    )
    before = page.read_text()
    accuracy_page.write(page, {"two": [dense, ours, trained("flat", [0.8, 0.9])]})
    after = page.read_text()
    assert (
        "RANP with the default floor is **not** ahead of every rival on two (flat). It is ahead of all of them on one."
        in after
    )
    assert list(accuracy_page.sections_in(after)) == ["one", "two"]
    one = before[before.index("### one") : before.index("### two")]
    assert one in after
    assert "| RANP-f | -50.0% | 0.810 ± 0.127 | 0.720 | 100 |" in one
    assert "| flat | -50.0% | 0.650 ± 0.071 | 0.600 | never |" in one
    assert "2 seeds; rank correlation of the probe with the accuracy: 1.00." in one


def test_the_sentences_above_the_tables_are_counted_from_them():
    text = accuracy_page.section_of(PAGE.read_text(), accuracy_page.MARKS)
    sections = accuracy_page.sections_in(text)
    assert "clips" in sections
    assert accuracy_page.page(sections).strip() == text.strip()
    means = accuracy_page.means_of(sections["clips"])
    assert set(means) == {"full", *accuracy_page.OURS, *accuracy_page.RIVALS, "shuffle:ranp-flops"} - {"width"}


# -- Table 2


def cells(name, factor=1.0, seeds=3):
    """Cells that have the paper's numbers times `factor`, and a little more with each seed."""
    known = paper_rows.NETWORKS[name].paper
    return [
        {"rows": {method: {"removed": 0.7, "floored": seed, "ours": [x * (factor if method != "full" else 1) * (1 + seed / 100) for x in theirs]}
                  for method, theirs in known.items()}}
        for seed in range(seeds)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("factor", "said"), [(1.0, "14 lie in the range"), (1.05, "and 14 there or within"), (2.0, "0 lie")]
)
def test_paper_rows_says_how_near_the_paper_is(factor, said):
    text = paper_rows.markdown({"3D-UNet, BraTS": cells("3D-UNet, BraTS", factor)})
    assert said in text.splitlines()[0]
    assert ("differ by more" in text) is (factor == 2.0)
    assert len(lines_of(text)) == 8


def test_paper_rows_have_median_range_and_the_papers_number():
    text = paper_rows.markdown({"3D-UNet, ShapeNet": cells("3D-UNet, ShapeNet")})
    assert lines_of(text)[-1].endswith(
        "| 7.62 (7.54 to 7.69), -96.8% | 7.54, -96.8% | 265.29 (262.66 to 267.91), -73.4% | 262.66, -73.7% |"
    )
    assert "as the paper says" in text
    assert "**not**" not in text


def test_every_row_of_the_papers_table_2_is_there():
    for name, network in paper_rows.NETWORKS.items():
        assert name.startswith("PSMNet") or set(network.paper) == set(paper_rows.NAMES)


# -- the tables with accuracy


def table_1(ranp=0.9, vanilla=0.6, same=0.81):
    rows = {"full": DENSE, **{name: row([0.79, 0.8], 0.5, 0.4) for name in paper_tables.VARIANTS}}
    rows |= {name: row([0.6, 0.7], ranp, 0.9) for name in ("weighted", "ranp-mem", "ranp-flops")}
    rows[paper_tables.VANILLA] = row([0.8, 0.81], vanilla, 0.5)
    return paper_tables.table_1(rows, {"ranp-flops": row([same, same], vanilla, 0.8)})


def test_table_1_agrees_or_not_by_the_numbers():
    assert "**not**" not in table_1()
    assert len(lines_of(table_1())) == 11
    assert "does **not** agree that RANP-f removes more" in table_1(ranp=0.55)
    assert "does **not** agree that at the sparsity of vanilla" in table_1(same=0.7)
    assert "does **not** agree that of the criteria" in table_1(vanilla=0.4)


@pytest.mark.parametrize(("value", "agrees"), [(0.80, True), (0.70, False)])
def test_table_4(value, agrees):
    rows = {"full": DENSE, "ranp-flops": row([0.8, 0.8]), "transferred": row([value, value])}
    text = paper_tables.table_4({"shapes": rows, "brains": rows})
    assert ("**not**" not in text) is agrees
    assert len(lines_of(text)) == 6


@pytest.mark.parametrize(("peak", "agrees"), [(5, True), (50, False)])
def test_table_5(peak, agrees):
    rows = {"shallow": DENSE, "deep": DENSE, "slim": row([0.85, 0.85])}
    text = paper_tables.table_5(rows, [{"shallow": 10, "deep": 20, "slim": peak, "large": 9}] * 2, (15, 19))
    assert ("**not**" not in text) is agrees
    assert len(lines_of(text)) == 3


def test_figure_5_compares_at_the_same_time():
    full = [[[7.5, 10, 1.0, 0.2], [15.0, 20, 0.8, 0.3]]] * 2
    slim = [[[7.5, 40, 0.9, 0.4], [15.0, 80, 0.7, 0.5]]] * 2
    peaks = [{"deep": 20, "large": 9}]
    text = paper_tables.figure_5({"full": full, "slim": slim}, peaks)
    assert "**not**" not in text
    assert lines_of(text)[0] == "| 7.5 | 10 | 40 | 1.000 | 0.900 | 0.200 | 0.400 |"
    assert "does **not** agree that after the same time the loss" in paper_tables.figure_5(
        {"full": slim, "slim": full}, peaks
    )


@pytest.mark.parametrize(("orthogonal", "agrees"), [(0.4, True), (0.499, False)])
def test_appendix(orthogonal, agrees):
    most = {
        "glorot": [{"vanilla": 0.5, "ranp-flops": 0.9}],
        "orthogonal": [{"vanilla": orthogonal, "ranp-flops": 0.9}],
    }
    text = paper_tables.appendix(most, {"glorot": DENSE, "orthogonal": DENSE}, DENSE)
    assert ("**not**" not in text) is agrees
    assert len(lines_of(text)) == 2


def test_differences_are_of_the_same_seed():
    assert paper_tables.points(row([0.7, 0.73]), DENSE) == "-9.5 ± 0.7"


# -- the talk


def ranked(taylor, weight=0.2, activation=0.5):
    """A cell of the oracle: correlations by criterion."""
    means = {"l2": weight, "activation-mean": activation, "taylor": taylor, "snip-like": 0.0}
    rows = {name: {"mean": mean, "all": mean - 0.1, "worst": mean - 0.3} for name, mean in means.items()}
    return {"rows": rows, "units": 20, "layers": 3}


@pytest.mark.parametrize(("taylor", "agrees"), [(0.7, True), (0.4, False), (0.5, False)])
def test_taylor_is_nearest_to_the_oracle_or_not(taylor, agrees):
    text = oracle_tables.correlation_table({"digits": [ranked(0.7), ranked(0.8)], "shapes": [ranked(taylor)] * 2})
    assert "agrees with the talk that Taylor ranks nearest to the oracle on digits (0.75; weight 0.20" in text
    assert ("does **not** agree that Taylor ranks nearest to the oracle on shapes" in text) is not agrees
    assert lines_of(text)[0].startswith("| taylor | 0.75 ± 0.07 (0.40) | 0.65 ± 0.07 |")
    assert "snip-like on" not in text


def trial(*, greedy=0.9, late=0.85, early=0.8, levels=oracle_tables.LEVELS):
    """A cell of the pruning: what each way came to at each level."""
    same = {"one-shot": 0.5, "one-shot, fine-tuned": late, "at initialization": early}
    costs = {"updates": 200, "dense_updates": 80.0}
    rows = [{"level": x, "share": x - 0.01, "greedy": greedy, **same, **costs} for x in levels]
    return {"dense": 0.95, "training": 400, "levels": rows}


def test_greedy_pruning_is_ahead_or_not_row_by_row():
    text = oracle_tables.pruning_table({"digits": [trial(), trial()], "shapes": [trial(early=0.95), trial(early=0.9)]})
    first = text.splitlines()[0]
    assert "ahead of one-shot, not fine-tuned (the talk's claim) in all 6 rows, by 40.0 points" in first
    assert "ahead of one-shot, same updates in all 6 rows, by 5.0 points" in first
    assert (
        "ahead of RANP-f at initialization in 3 of 6 rows, by +3.8 points on average over all; **not** on shapes -51% (-2.5)"
        in first
    )
    assert lines_of(text)[0] == (
        "| digits | -51% | 400 + 200 | 0.950 ± 0.000 | **0.900 ± 0.000** | 0.500 ± 0.000 | 0.850 ± 0.000 | 0.800 ± 0.000 | 480 | 294 |"
    )
    assert "**0.925 ± 0.035**" in lines_of(text)[3]


def test_a_level_that_a_seed_did_not_reach_is_said():
    text = oracle_tables.pruning_table({"digits": [trial(), trial(levels=oracle_tables.LEVELS[:2])]})
    assert len(lines_of(text)) == 2
    assert "Out of reach of greedy pruning in some seed: digits at 90%." in text


# -- the page and its cells


def test_results_are_kept_and_a_torn_line_is_computed_again(tmp_path):
    path = tmp_path / "new" / "lines.jsonl"
    lines = Lines(path, ("kind", "seed"))
    assert lines.get(lambda: {"value": 1}, kind="a", seed=0)["value"] == 1
    lines.get(lambda: {"value": 2}, kind="a", seed=1)
    path.write_text(path.read_text()[:-5])
    again = Lines(path, ("kind", "seed"))
    assert again.get(lambda: {"value": 3}, kind="a", seed=0)["value"] == 1
    assert again.get(lambda: {"value": 3}, kind="a", seed=1)["value"] == 3
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1, 3]


def test_a_table_stands_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- y -->\nb\n")
    put(page, "new", ("<!-- x -->", "<!-- y -->"))
    assert page.read_text() == "a\n<!-- x -->\n\nnew\n\n<!-- y -->\nb\n"
    with pytest.raises(SystemExit, match="has no"):
        put(page, "new", ("<!-- z -->", "<!-- y -->"))


def test_the_page_has_a_place_for_each_table():
    from benchmarks.paper_accuracy import TABLES, marks

    text = PAGE.read_text()
    for pair in (paper_rows.MARKS, *map(marks, TABLES), *map(oracle.marks, oracle.KINDS)):
        assert all(text.count(mark) == 1 for mark in pair)


# -- what is stale


def test_no_table_of_the_page_is_stale():
    """A script that was changed, or a table written by hand: run the script again (or see tests/benchmarks/page.py)."""
    text = RESULTS.read_text()
    stale = [m["name"] for m in SECTION.finditer(text) if m[0] not in stamped(m[0])]
    assert stale == []
    assert {m["name"] for m in SECTION.finditer(text)} == set(SCRIPTS)


def test_a_changed_table_and_a_changed_script_show(monkeypatch):
    text = RESULTS.read_text()
    section = next(m for m in SECTION.finditer(text) if m["name"] == "speed")[0]
    assert stamped(section) == section
    row = next(line for line in section.splitlines() if line.startswith("| ") and any(c.isdigit() for c in line))
    by_hand = section.replace(row, row.replace(next(c for c in row if c.isdigit()), "x", 1))
    assert stamped(by_hand) != by_hand
    monkeypatch.setitem(SCRIPTS, "speed", "memory")  # another code
    assert stamped(section) != section


# -- speed by runtime


def test_runtimes_shows_what_auto_takes_and_how_much_of_the_promise_it_keeps():
    row = {"network": "3D-UNet", "runtime": "torch", "seconds": [1.0, 0.5, 0.4, 0.2, 0.25], "repeats": 5, "auto": 8, "error": 2e-6,
           "macs": [100, 10, 12, 20, 40]}  # fmt: skip
    text = runtimes.markdown([row, {**row, "runtime": "openvino", "auto": 1, "error": None}], 2, "a machine")
    first, second = lines_of(text)
    assert first.split(" | ")[2:] == [
        "1000",
        "500 x2.0",
        "400 x2.5",
        "**200 x5.0**",
        "250 x4.0",
        "8",
        "100%",
        "2e-06 |",
    ]
    assert second.split(" | ")[3] == "**500 x2.0**"
    assert second.split(" | ")[-3:] == ["none", "20%", " |"]
    assert "3D-UNet (sparsity 0.78) 10.0, 8.3, 5.0, 2.5" in text
    assert "a forward pass of 2 samples" in text


def test_own_time_adds_up():
    found = {"import torch": 2.0, "floor": 4.0, "wall": 6.0, "steps": {"import": 2.0, "score": 3.0}}
    assert [line.split(" | ")[-1] for line in lines_of(runtimes.own_markdown(found, "a machine"))] == [
        "1.00 |", "1.50 |", "0.50 |", "3.00 |", "2.00 |",
    ]  # fmt: skip


def test_planning_is_set_against_the_scoring_that_it_plans():
    text = planning.markdown({"a network": {"plain": 0.3, "low": 0.9, "plan": 0.1, "left": 0.5}}, "a machine")
    assert lines_of(text) == ["| a network | 0.30 s | 0.80 s | 50% | 0.10 s | 12% | 3% |"]


# -- limits of latency, and rounds


def test_latency_budgets_shows_what_exchanged_units_keep():
    rows = [{"by": "sparsity", "importance": 0.4, "seconds": 0.2, "kept": 10, "macs": 100}, {"by": "exchange", "importance": 0.6, "seconds": 0.25, "kept": 14, "macs": 150}]  # fmt: skip
    found = {"network": "3D-UNet", "runtime": "torch", "share": 25, "dense": 1.0, "dense_macs": 1000, "rows": rows}
    missed = {"network": "MobileNetV2-3D", "runtime": "torch", "share": 10, "infeasible": "", "rows": []}
    text = latency_budgets.markdown([found, missed], "a machine")
    assert [line.split(" | ")[3:] for line in lines_of(text)] == [
        ["best sparsity", "200 of 1000", "40.0%", "10", "-90%", "50% |"],
        ["exchanged", "250 of 1000", "**60.0%**", "14", "-85%", "60% |"],
    ]
    assert "1.50 to 1.5 times" in text
    assert "No network is so fast: MobileNetV2-3D in torch, 10 %." in text


def test_networks_of_one_latency_stand_best_first():
    def cut(value, taken=False):
        return {"metrics": {"dice": value}, "latency": 0.24, "macs": 0.1, "kept": 50, "exchanged": taken}

    names = list(latency_accuracy.ROWS)
    task = {latency_accuracy.FULL: [{"metrics": {"dice": 0.8}}] * 2} | {name: [cut(0.5), cut(0.6)] for name in names}
    task[names[0]] = [cut(0.7, True), cut(0.9)]
    text = latency_accuracy.markdown({"tissue-16": task}, "a machine")
    assert lines_of(text)[:2] == [
        "| full | 1 | 1 |  | 0.800 ± 0.000 | 0.800 |",
        "| exchanged, from RANP-f on | 24 % | 10 % | 50 | 0.800 ± 0.141 | 0.700 |",
    ]
    assert "in 1 of 2 networks" in text


def test_rounds_are_set_against_the_dense_network():
    cell = dict.fromkeys(rounds.ROWS, 0.9) | {"share": 0.1}
    good = rounds.markdown([cell, cell | {"rounds, last": 0.89}])
    assert good.startswith("At 90% fewer multiply-adds rounds with 100 updates more are -0.005 from the dense network, within 0.02; as good or better than they: pruned")  # fmt: skip
    assert rounds.markdown([cell | {"rounds, last": 0.8}]).count("**not** within 0.02") == 1
    assert "none." in rounds.markdown([cell | {"rounds, last": 0.95}])
