"""The tables of paper_accuracy.py: our rows beside those of Xu et al., "RANP", 3DV 2020, as reductions and differences.

Accuracies are means over the seeds, differences are in points (hundredths) of mIoU or Dice. `Rows`: method -> a row of
`ranp.compare`. Each table begins with what agrees with the paper and what does not, by the numbers below.
"""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

Rows = dict[str, dict[str, Any]]

VARIANTS = tuple(f"vanilla:{sign}-{over}" for sign in ("mpmg", "mnmg") for over in ("sum", "mean", "max"))
VANILLA = VARIANTS[0]  # the paper's choice
NEGLIGIBLE = 0.01  # a change of accuracy or sparsity of less than a point
LABELS = {"full": "full", "weighted": "weighted", "ranp-flops": "RANP-f", "ranp-mem": "RANP-m", "transferred": "T-RANP-f",
          **{name: f"vanilla, {name.partition(':')[2].replace('mpmg', 'MPMG').replace('mnmg', 'MNMG')}" for name in VARIANTS}}  # fmt: skip

# ShapeNet, 3D-UNet: neuron sparsity, MB of parameters, GFLOPs, MB of memory, mIoU. Tables 1 and 2, section 5.4 for the last.
FULL = (0.0, 62.26, 237.85, 997.00, 0.8379)
TABLE_1 = {
    VANILLA: (0.7824, 2.54, 55.69, 557.32, 0.8326),
    "vanilla:mnmg-sum": (0.6693, 4.29, 100.34, 783.14, 0.8365),
    "ranp-flops": (0.9857, None, None, None, 0.6142),
}
AT_VANILLA = {VANILLA: TABLE_1[VANILLA], "ranp-flops": (0.7824, 2.94, 7.54, 262.66, 0.8307)}
# Table 4: mIoU on ShapeNet; on BraTS the mean of ET, TC and WT
TABLE_4 = {
    "shapes": {"full": 0.8427, "ranp-flops": 0.8386, "transferred": 0.8325},
    "brains": {"full": fmean((0.7404, 0.7511, 0.8449)), "ranp-flops": fmean((0.7113, 0.7240, 0.8332)),
               "transferred": fmean((0.7274, 0.7325, 0.8522))},
}  # fmt: skip
TABLE_5 = {"shallow": 0.8379, "deep": 0.8427, "slim": 0.8434}


def verdict(claims: list[tuple[bool, str]]) -> str:
    """What agrees with the paper, and what does not."""
    parts = []
    for wanted, lead in (
        (True, "Our result agrees with the paper that"),
        (False, "Our result does **not** agree that"),
    ):
        said = [text for holds, text in claims if holds is wanted]
        parts += [f"{lead} {'; and that '.join(said)}."] * bool(said)
    return " ".join(parts)


def mean(row: dict[str, Any]) -> float:
    return float(row["accuracy"]["mean"])


def points(row: dict[str, Any], dense: dict[str, Any]) -> str:
    """The difference to the dense network of the same seed: mean and deviation over the seeds, in points."""
    pairs = zip(row["accuracy"]["values"], dense["accuracy"]["values"], strict=True)
    changes = [100 * (a - b) for a, b in pairs]
    return f"{fmean(changes):+.1f}" + (f" ± {stdev(changes):.1f}" if len(changes) > 1 else "")


def accuracy(row: dict[str, Any]) -> str:
    deviation = row["accuracy"]["std"]
    return f"{mean(row):.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")


def theirs(value: float | None, full: float) -> str:
    return "" if value is None else f"-{1 - value / full:.1%}"


def table_1(rows: Rows, same: Rows) -> str:
    """`rows`: every method at its own largest sparsity; `same`: RANP-f at that of the paper's vanilla pruning."""
    dense, vanilla = rows["full"], rows[VANILLA]
    most = {name: rows[name]["sparsity"]["achieved"] for name in (*VARIANTS, "ranp-flops")}
    widest = max(VARIANTS, key=lambda name: most[name])
    level = same["ranp-flops"]
    claims = [
        (most["ranp-flops"] > most[VANILLA],
         f"RANP-f removes more neurons than vanilla pruning before a layer is emptied ({most['ranp-flops']:.1%} and {most[VANILLA]:.1%}; "
         f"the paper's are {TABLE_1['ranp-flops'][0]:.1%} and {TABLE_1[VANILLA][0]:.1%})"),
        (all(level["reduction"]["paper"][key] > vanilla["reduction"]["paper"][key] for key in ("gflops", "memory_mb"))
         and mean(level) >= mean(vanilla) - NEGLIGIBLE,
         f"at the sparsity of vanilla pruning RANP-f takes less of both resources and loses less than a point beside it "
         f"({100 * (mean(level) - mean(vanilla)):+.1f} points; the paper has {100 * (AT_VANILLA['ranp-flops'][4] - TABLE_1[VANILLA][4]):+.1f})"),
        (mean(vanilla) >= mean(dense) - NEGLIGIBLE,
         f"vanilla MPMG-sum at its largest sparsity loses less than a point ({100 * (mean(vanilla) - mean(dense)):+.1f}; "
         f"the paper has {100 * (TABLE_1[VANILLA][4] - FULL[4]):+.1f})"),
        (widest == VANILLA,
         f"of the criteria MPMG-sum allows the largest sparsity ({most[VANILLA]:.1%}; here {LABELS[widest]} has the largest, {most[widest]:.1%})"),
    ]  # fmt: skip
    lines = [verdict(claims), "",
             "| method | neurons removed | paper | parameters | paper | GFLOPs | paper | memory | paper | mIoU | to full, points | paper |",
             "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
             f"| full | 0 | 0 | 1 | 1 | 1 | 1 | 1 | 1 | {accuracy(dense)} | | |"]  # fmt: skip
    plan = [(rows[name], LABELS[name], TABLE_1.get(name)) for name in (*VARIANTS, "weighted", "ranp-mem", "ranp-flops")]
    plan.append((level, "RANP-f, at vanilla MPMG-sum's", AT_VANILLA["ranp-flops"]))
    for row, label, paper in plan:
        cells = [label, f"{row['sparsity']['achieved']:.1%}", f"{paper[0]:.1%}" if paper else ""]
        for at, key in enumerate(("param_mb", "gflops", "memory_mb"), 1):
            cells += [f"-{row['reduction']['paper'][key]:.1%}", theirs(paper[at], FULL[at]) if paper else ""]
        cells += [accuracy(row), points(row, dense), f"{100 * (paper[4] - FULL[4]):+.1f}" if paper else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_4(tasks: dict[str, Rows]) -> str:
    """`tasks`: the rows of `full`, `ranp-flops` and `transferred` of both tasks, trained on that task."""
    claims = []
    for name, rows in tasks.items():
        change = mean(rows["transferred"]) - mean(rows["ranp-flops"])
        paper = TABLE_4[name]["transferred"] - TABLE_4[name]["ranp-flops"]
        claims.append((change >= -NEGLIGIBLE, f"on {name} a mask of the other task loses less than a point beside a mask of its own "
                       f"({100 * change:+.1f} points; the paper has {100 * paper:+.1f})"))  # fmt: skip
    lines = [verdict(claims), "",
             "| trained on | network | multiply-adds | mIoU or Dice | worst seed | to full, points | paper |", "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, rows in tasks.items():
        for method in ("full", "ranp-flops", "transferred"):
            row, paper = rows[method], TABLE_4[name]
            cost = f"-{row['reduction']['macs']:.1%}"
            change = [points(row, rows["full"]), f"{100 * (paper[method] - paper['full']):+.1f}"]
            if method == "full":
                cost, change = "1", ["", ""]
            cells = [
                name if method == "full" else "",
                LABELS[method],
                cost,
                accuracy(row),
                f"{row['accuracy']['worst']:.3f}",
                *change,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_5(rows: Rows, peaks: list[dict[str, float]], layers: tuple[int, int]) -> str:
    """`rows`: `shallow` and `deep`, dense, and `slim`, the deep one pruned; `peaks`: bytes of a training step, by seed."""
    shallow, deep, slim = (rows[name] for name in ("shallow", "deep", "slim"))
    peak = {name: fmean(each[name] for each in peaks) for name in ("shallow", "deep", "slim")}
    claims = [
        (peak["slim"] <= peak["shallow"],
         f"a slim network of {layers[1]} layers trains in the memory of the dense one of {layers[0]} ({peak['slim'] / 2**20:.1f} and {peak['shallow'] / 2**20:.1f} MiB)"),
        (mean(slim) >= mean(shallow), f"it is at least as accurate as the dense one of {layers[0]} layers ({mean(slim):.3f} and {mean(shallow):.3f})"),
        (mean(slim) >= mean(deep), f"it is at least as accurate as the dense one of {layers[1]} layers ({mean(slim):.3f} and {mean(deep):.3f})"),
    ]  # fmt: skip
    lines = [verdict(claims), "",
             "| network | peak of a training step, MiB | neurons removed | mIoU | to the shallow one, points | paper |",
             "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    labels = {
        "shallow": f"full, {layers[0]} layers",
        "deep": f"full, {layers[1]} layers",
        "slim": f"RANP-f, {layers[1]} layers",
    }
    for name, label in labels.items():
        row = rows[name]
        change = "" if name == "shallow" else points(row, shallow)
        paper = "" if name == "shallow" else f"{100 * (TABLE_5[name] - TABLE_5['shallow']):+.1f}"
        lines.append(f"| {label} | {peak[name] / 2**20:.1f} | {row['sparsity']['achieved']:.1%} | {accuracy(row)} | {change} | {paper} |")  # fmt: skip
    return "\n".join(lines)


def figure_5(races: dict[str, list[list[list[float]]]], peaks: list[dict[str, float]]) -> str:
    """`races`: `full` and `slim` -> by seed, by mark: seconds, samples seen, loss of training, mIoU of the test."""
    last = {name: [fmean(seed[-1][at] for seed in seeds) for at in range(4)] for name, seeds in races.items()}
    peak = {name: fmean(each[name] for each in peaks) / 2**20 for name in ("deep", "large")}
    claims = [
        (peak["large"] <= peak["deep"], f"a batch four times as large trains in the memory of the dense network ({peak['large']:.1f} and {peak['deep']:.1f} MiB)"),
        (last["slim"][2] < last["full"][2], f"after the same time the loss is lower ({last['slim'][2]:.3f} and {last['full'][2]:.3f})"),
        (last["slim"][3] > last["full"][3], f"after the same time the accuracy is higher (mIoU {last['slim'][3]:.3f} and {last['full'][3]:.3f})"),
    ]  # fmt: skip
    lines = [verdict(claims), "", "| seconds | samples, full | samples, slim | loss, full | loss, slim | mIoU, full | mIoU, slim |",
             "|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for k, mark in enumerate(races["full"][0]):
        at = {name: [fmean(seed[k][j] for seed in seeds) for j in range(4)] for name, seeds in races.items()}
        cells = [f"{mark[0]:g}"]
        for j, form in ((1, ".0f"), (2, ".3f"), (3, ".3f")):
            cells += [f"{at[name][j]:{form}}" for name in ("full", "slim")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def appendix(most: dict[str, list[dict[str, float]]], rows: dict[str, dict[str, Any]], dense: dict[str, Any]) -> str:
    """`most`: init -> by seed, the largest sparsity of `vanilla` and `ranp-flops`; `rows`: init -> RANP-f, trained."""
    largest = {
        init: {name: fmean(seed[name] for seed in seeds) for name in ("vanilla", "ranp-flops")}
        for init, seeds in most.items()
    }
    claims = [
        (largest["orthogonal"]["vanilla"] < largest["glorot"]["vanilla"] - NEGLIGIBLE,
         f"orthogonal weights lower the largest sparsity of vanilla pruning by a point or more ({largest['orthogonal']['vanilla']:.1%}, and {largest['glorot']['vanilla']:.1%} with Glorot's)"),
        (all(each["ranp-flops"] > each["vanilla"] for each in largest.values()),
         "with either initialisation RANP-f removes more neurons than vanilla pruning before a layer is emptied"),
    ]  # fmt: skip
    lines = [verdict(claims), "",
             "| weights | vanilla, largest sparsity | RANP-f, largest sparsity | RANP-f, neurons removed | its mIoU | to full (Glorot), points |",
             "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for init, each in largest.items():
        row = rows[init]
        cells = [init, *(f"{each[name]:.1%}" for name in ("vanilla", "ranp-flops")), f"{row['sparsity']['achieved']:.1%}",
                 accuracy(row), points(row, dense)]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
