"""One training step of nnU-Net's own trainer, dense beside slim: its time, and the memory that it adds. Needs the extra nnunet.

    python -m tests.benchmarks.nnunet_step

makes a data set of 64^3 voxels, lets nnU-Net plan it, prunes the plans with one command each, and times `train_step` of
nnUNetTrainer in a process for each network.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("helpers", "laws")]

import nnunet_data as data  # noqa: E402

SIZE, STEPS = (64, 64, 64), 5
NETWORKS = {"dense": (), "slim": ("--sparsity", 0.6), "slim, --round-to 8": ("--sparsity", 0.6, "--round-to", 8)}

STEP = f'''
import json, os, resource, statistics, sys, time, torch
os.dup2(2, 1)
from package_imports import declare_torchvision_ops
declare_torchvision_ops()
from nnunetv2.run.run_training import get_trainer_from_args

torch.manual_seed(0)
torch.set_num_threads(2)
trainer = get_trainer_from_args("{data.DATASET}", "3d_fullres", 0, "nnUNetTrainer", sys.argv[1], device=torch.device("cpu"))
trainer.initialize()
loader, _ = trainer.get_dataloaders()
batch = next(loader)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, seconds = peak(), []
for _ in range({STEPS} + 1):
    start = time.perf_counter()
    trainer.train_step(batch)
    seconds.append(time.perf_counter() - start)
with open(sys.argv[2], "w") as file:
    json.dump([statistics.median(seconds[1:]), peak() - before, list(batch["data"].shape)], file)
'''


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data.SIZE = SIZE
        data.make(root)
        (root / "step.py").write_text(f"def main():\n    exec({STEP!r}, {{}})\n")
        rows = {}
        for name, options in NETWORKS.items():
            plans = "nnUNetPlans" if not options else "nnUNetPlansSlim"
            if options:
                words = ("--resource", "mem", *options, "-o", data.plans_of(root, plans), "-q")
                data.ranp(root, "prune", data.plans_of(root), *words)
            data.run(root, "step", "main", plans, root / "step.json")
            rows[name] = json.loads((root / "step.json").read_text())
            print(name, rows[name], file=sys.stderr, flush=True)
    print(table(rows))


def table(rows: dict[str, list]) -> str:
    """Markdown."""
    (dense, held, shape), lines = (
        rows["dense"],
        ["| network | a training step | faster | memory that it adds |", "|---|---:|---:|---:|"],
    )
    for name, (seconds, peak, _) in rows.items():
        lines.append(f"| {name} | {seconds:.2f} s | {dense / seconds:.1f} x | {peak / 2**30:.2f} GiB |")
    return "\n".join(
        [
            f"Input {'x'.join(map(str, shape))}, median of {STEPS} steps; dense memory {held / 2**30:.2f} GiB.",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
