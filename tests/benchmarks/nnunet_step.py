"""One training step of nnU-Net's own trainer, dense beside slim: its time, and the memory that it adds. Needs the extra nnunet.

    python -m tests.benchmarks.nnunet_step

makes a data set of 64^3 voxels, lets nnU-Net plan it, prunes the plans with one command each, and times `train_step` of
nnUNetTrainer, turn by turn; memory is measured in a process for each network. Prints a Markdown table.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import nnunet_data as data  # found by tests/benchmarks/__init__.py

SIZE, STEPS = (64, 64, 64), 5
NETWORKS = {"dense": (), "slim": ("--sparsity", 0.6), "slim, `--round-to 8`": ("--sparsity", 0.6, "--round-to", 8)}

STEP = f'''
import json, os, resource, statistics, sys, time, torch
os.dup2(2, 1)
from package_imports import declare_torchvision_ops
declare_torchvision_ops()
from nnunetv2.run.run_training import get_trainer_from_args

torch.manual_seed(0)
torch.set_num_threads(1)
names = sys.argv[2:]
trainers = []
for name in names:
    trainers.append(get_trainer_from_args("{data.DATASET}", "3d_fullres", 0, "nnUNetTrainer", name, device=torch.device("cpu")))
    trainers[-1].initialize()
batch = next(trainers[0].get_dataloaders()[0])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, seconds = peak(), [[] for _ in names]
for _ in range({STEPS} + 1):
    for trainer, taken in zip(trainers, seconds):
        start = time.perf_counter()
        trainer.train_step(batch)
        taken.append(time.perf_counter() - start)
with open(sys.argv[1], "w") as file:
    json.dump([[statistics.median(taken[1:]) for taken in seconds], peak() - before, list(batch["data"].shape)], file)
'''


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data.SIZE = SIZE
        data.make(root)
        (root / "step.py").write_text(f"def main():\n    exec({STEP!r}, {{}})\n")
        plans = ["nnUNetPlans", *(f"Slim{k}" for k in range(1, len(NETWORKS)))]
        for name, options in zip(plans, NETWORKS.values(), strict=True):
            if options:
                words = ("--resource", "mem", *options, "-o", data.plans_of(root, name), "-q")
                data.ranp(root, "prune", data.plans_of(root), *words)

        def steps(*names: str) -> list:
            data.run(root, "step", "main", root / "step.json", *names)
            return json.loads((root / "step.json").read_text())

        held = [steps(name)[1] for name in plans]  # a process for each
        seconds, _, shape = steps(*plans)  # turn by turn
    print(table(seconds, held, shape))


def table(seconds: list[float], held: list[float], shape: list[int]) -> str:
    """Markdown."""
    lines = ["| network | a training step | faster | memory that it adds |", "|---|---:|---:|---:|"]
    for name, taken, peak in zip(NETWORKS, seconds, held, strict=True):
        lines.append(f"| {name} | {taken:.2f} s | {seconds[0] / taken:.1f} x | {peak / 2**30:.2f} GiB |")
    return "\n".join(
        [
            *lines,
            "",
            f"Input {'x'.join(map(str, shape))}, median of {STEPS} steps, turn by turn, on one thread of a CPU.",
        ]
    )


if __name__ == "__main__":
    main()
