"""Molchanov's talk in small: which criterion ranks units as the oracle does, and what pruning while fine-tuning brings.

    pip install -e '.[bench]'    # scikit-learn, whose wheel carries the digits
    python -m tests.benchmarks.oracle --cells FOLDER --write tests/benchmarks/RESULTS.md    # 14 minutes of two cores

Networks: `digits`, a VGG-like net without batch norm on scikit-learn's digits; `gestures`, the recurrent C3D on digits that
move in one of four directions (12 classes, the accuracy is that of the last clip); `shapes`, a 3D-UNet of three levels on
voxel shapes (mean IoU). Each is trained under three seeds. Then

* `correlations`: `compare --oracle` of the trained network, on two of its mini-batches;
* `pruning`: the same updates of the same optimiser in four orders, at the same multiply-adds. Greedy: the trained network is
  pruned by `Pruner` (taylor) while it is fine-tuned. One-shot: it is pruned by taylor at once, and measured without
  fine-tuning, and after as many updates as greedy had. At initialization: the network is pruned before it is trained, by
  RANP-f, and has both the updates of the training and those of the fine-tuning.

Batch norm has its statistics taken anew before every test. What was computed is kept in FOLDER; the same command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ranp_cli as ranp
from ranp_cli.models.c3d_rnn import c3d_rnn
from ranp_cli.models.unet3d import unet3d
from ranp_cli.samples import voxel_shapes

from .first_table import Batches, mean_iou, outputs_of, settle_batch_norm
from .oracle_tables import LEVELS, correlation_table, pruning_table
from .page import Lines, put

NETWORKS = ("digits", "gestures", "shapes")
EVERY, SHARE = 20, 0.02  # updates between removals, and the share of the neurons that goes each time
FINE = 1e-3  # learning rate of the fine-tuning; the training begins with three times as much
FLOOR = 2  # neurons that each layer keeps, however it is pruned
SETTLE = 10  # mini-batches that batch norm sees before a test
MEASURED = 2  # mini-batches of the oracle


# -- the networks and what they learn


@dataclass(frozen=True)
class Task:
    build: Callable[[], nn.Module]
    train: Batches
    test: Batches
    measure: Callable[[list[Tensor], list[Tensor]], float]
    updates: int  # of the training


def accuracy(outputs: list[Tensor], targets: list[Tensor]) -> float:
    """The share of samples told right; of a video, by its last clip."""
    right = [(o.argmax(1) == y).flatten(1)[:, -1] if y.ndim > 1 else o.argmax(1) == y for o, y in zip(outputs, targets, strict=True)]  # fmt: skip
    return float(torch.cat(right).float().mean())


def vgg(inputs: int = 1, widths: Sequence[int] = (16, 32, 64), hidden: int = 64, classes: int = 10) -> nn.Sequential:
    """Three blocks of two 3x3 convolutions and a pooling, as in VGG16, and two fully connected layers."""
    layers: list[nn.Module] = []
    for width in widths:
        for before in (inputs, width):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def scaled(net: nn.Module, x: Tensor) -> nn.Module:
    """Scale each layer so that its output on a mini-batch has deviation 1 (Mishkin & Matas, 2016).

    Without it the C3D hardly learns: it has no batch norm, and most of its kernels' taps lie in the padding.
    """

    def scale(module: Any, args: Any, output: Tensor) -> Tensor:
        deviation = output.std()
        module.weight /= deviation
        module.bias /= deviation
        return output / deviation

    hooks = [m.register_forward_hook(scale) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d, nn.Linear))]
    with torch.no_grad():
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    return net.train()


def gestures(x: Tensor) -> nn.Module:
    net = scaled(c3d_rnn(12, frames=4, image_size=16, width=8, features=64, hidden=32), x)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1  # of 64 features, not of the 4096 that 0.5 is meant for
    return net


@cache
def images() -> tuple[Tensor, Tensor]:
    """The digits, (1797, 8, 8) from 0 to 1, and what they are; the last third was written by other people."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise SystemExit("the digits are in the package scikit-learn: pip install -e '.[bench]'")
    rows = np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.float32)
    return torch.from_numpy(rows[:, :-1] / 16).reshape(-1, 8, 8), torch.from_numpy(rows[:, -1]).long()


def moving(samples: int, test: bool, seed: int) -> tuple[Tensor, Tensor]:
    """A 0, 1 or 2 that moves up, down, left or right over 8 frames of 16x16, under noise; its class, for both clips."""
    x, y = images()
    pool = [k for k in range(len(x)) if y[k] < 3 and (k >= 1200) is test]
    rng = np.random.default_rng(seed)
    videos, classes = np.zeros((samples, 1, 8, 16, 16), np.float32), np.zeros(samples, np.int64)
    for k in range(samples):
        digit, way, across = pool[rng.integers(len(pool))], rng.integers(4), rng.integers(9)
        for frame in range(8):
            along = frame if way % 2 else 7 - frame
            top, left = (along, across) if way < 2 else (across, along)
            videos[k, 0, frame, top : top + 8, left : left + 8] = x[digit]
        classes[k] = 4 * y[digit] + way
    videos += 0.1 * rng.standard_normal(videos.shape, dtype=np.float32)
    return torch.from_numpy(videos), torch.from_numpy(classes)[:, None].expand(-1, 2).contiguous()


def split(x: Tensor, y: Tensor, size: int) -> Batches:
    return list(zip(x.split(size), y.split(size), strict=True))


@cache
def task_of(name: str) -> Task:
    if name == "digits":
        x, y = images()
        large = x.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
        return Task(lambda: scaled(vgg(), large[:50]), split(large[:1200], y[:1200], 50), split(large[1200:], y[1200:], 200), accuracy, 400)  # fmt: skip
    if name == "gestures":
        data = split(*moving(960, False, 1), 24), split(*moving(480, True, 2), 120)
        return Task(partial(gestures, data[0][0][0]), *data, accuracy, 600)
    volumes = partial(voxel_shapes, size=16, classes=16, batch_size=4)
    things = (volumes(batches=60, seed=1234), volumes(batches=16, seed=99))
    data = [[(x, torch.where(y < 8, y, y - 4)) for x, y in each] for each in things]  # of 4 to 7 there are none
    build = partial(unet3d, layers=11, width=8, num_classes=12)
    return Task(build, *data, partial(mean_iou, classes=12, ignored=-100), 300)


def learn(net: nn.Module, task: Task, updates: int, seed: int, rate: float, decay: bool = False) -> None:
    """Adam at `rate`, with cosine decay where wanted; mini-batches in random order, the same for the same seed."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    draw = torch.Generator().manual_seed(seed)
    net.train()
    for _ in range(updates):
        update(net, task, optimizer, draw)
        if decay:
            schedule.step()


def update(net: nn.Module, task: Task, optimizer: torch.optim.Optimizer, draw: torch.Generator) -> Tensor:
    x, y = task.train[int(torch.randint(len(task.train), (), generator=draw))]
    optimizer.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    return loss


def pretrain(net: nn.Module, task: Task, seed: int) -> None:
    learn(net, task, task.updates, seed, 3 * FINE, decay=True)


def tested(net: nn.Module, task: Task) -> float:
    net = copy.deepcopy(net)
    settle_batch_norm(net, task.train[:SETTLE])
    return task.measure(outputs_of(net, task.test), [y for _, y in task.test])


def start(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return task_of(name).build()


def trained(name: str, seed: int, folder: Path) -> nn.Module:
    """The network after its training, from FOLDER where it is there."""
    path, net = folder / f"{name}-{seed}.pt", start(name, seed)
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
    else:
        pretrain(net, task_of(name), seed)
        torch.save(net.state_dict(), path)
    return net


# -- what is measured


def correlations(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Of each criterion by name: the mean over layers, over all units with layers of equal l2 norm, and the worst layer."""
    net, data = trained(name, seed, folder), task_of(name).train[:MEASURED]
    about = ranp.compare(net, data, sparsity=0.5, methods=["vanilla"], oracle=True).report.parts["oracle"]
    rows = {}
    for row in about["criteria"]:
        known = [value for value in row["layers"] if value is not None]
        rows[row["criterion"]] = {"mean": row["mean"], "all": row["all_equal_l2"], "worst": min(known)}
    return {"rows": rows, "units": about["units"], "layers": len(known)}


def pruning(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The test of the dense network, and by level the multiply-adds that greedy pruning came to and the test of each way."""
    task, dense = task_of(name), trained(name, seed, folder)
    macs = ranp.profile(dense, task.train[0][0]).to_dict()["before"]["macs"]
    levels = greedy(dense, task, seed, macs)
    fine = partial(learn, task=task, seed=seed + 1000, rate=FINE)
    for row in levels:
        one_shot = pruned(dense, task, row["macs"], "taylor")
        row["one-shot"] = tested(one_shot, task)
        fine(one_shot, updates=row["updates"])
        row["one-shot, fine-tuned"] = tested(one_shot, task)
        early = pruned(start(name, seed), task, row["macs"], "ranp")
        pretrain(early, task, seed)
        fine(early, updates=row["updates"])
        row["at initialization"] = tested(early, task)
        row["share"] = row["macs"] / macs
    return {"dense": tested(dense, task), "training": task.updates, "levels": levels}


def pruned(net: nn.Module, task: Task, macs: int, method: str) -> nn.Module:
    """Pruned at once to at most so many multiply-adds, by as many mini-batches as greedy pruning has between removals."""
    resource = "flops" if method == "ranp" else "none"
    return ranp.prune(net, task.train[:EVERY], budget={"macs": macs}, method=method, resource=resource, min_neurons=FLOOR).model  # fmt: skip


def greedy(dense: nn.Module, task: Task, seed: int, macs: int) -> list[dict[str, Any]]:
    """The test at each level, EVERY updates after the removal that came to it; levels that are out of reach are left out.

    `dense_updates`: what the updates so far cost, as if each were one of the dense network.
    """
    net = copy.deepcopy(dense)
    optimizer, draw = torch.optim.Adam(net.parameters(), FINE), torch.Generator().manual_seed(seed + 1000)
    pruner = ranp.Pruner(net, optimizer, example=task.train[0][0], every=EVERY, units=SHARE, until={"macs": int(LEVELS[-1] * macs)},
                         min_neurons=FLOOR, seed=seed)  # fmt: skip
    rows: list[dict[str, Any]] = []
    updates, now, cost, last = 0, macs, 0.0, 0
    net.train()
    while len(rows) < len(LEVELS):
        loss = update(net, task, optimizer, draw)
        updates, cost = updates + 1, cost + now / macs
        if updates - last == EVERY and now <= LEVELS[len(rows)] * macs:
            rows.append({"level": LEVELS[len(rows)], "macs": now, "updates": updates, "dense_updates": cost, "greedy": tested(net, task)})  # fmt: skip
        removal = pruner.step(loss)
        if removal is not None:
            now, last = removal.macs, updates
        elif pruner.finished and updates - last > EVERY:
            break
    return rows


KINDS = {"correlations": (correlations, correlation_table), "pruning": (pruning, pruning_table)}


def marks(kind: str) -> tuple[str, str]:
    return f"<!-- oracle {kind} -->", f"<!-- end of oracle {kind} -->"


def work(kind: str, network: str, seed: int, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    return KINDS[kind][0](network, seed, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"which tables, of {', '.join(KINDS)}; both by default")
    parser.add_argument("--cells", type=Path, required=True, help="a folder for what was computed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--write", type=Path, help="put the tables between their marks of this page")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    lines = Lines(options.cells / "lines.jsonl", ("kind", "network", "seed"))
    for kind in options.kinds or KINDS:
        wanted = [(kind, network, seed) for network in options.networks for seed in range(options.seeds)]
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            running = {pool.submit(work, *key, options.cells): key for key in wanted if key not in lines.held}
            for done in as_completed(running):
                _, network, seed = running[done]
                lines.get(done.result, kind=kind, network=network, seed=seed)
                print(f"{kind}, {network}, seed {seed}: done", flush=True)
        cells = {n: [lines.held[kind, n, seed] for seed in range(options.seeds)] for n in options.networks}
        text = f"{KINDS[kind][1](cells)} Seeds: {options.seeds}."
        print(f"{text}\n", flush=True)
        if options.write:
            put(options.write, text, marks(kind))


if __name__ == "__main__":
    main()
