"""How the time of `prune` divides, on the full 3D-UNet: what the gradient passes take, and what is left.

    python tests/benchmarks/prune_share.py [--size 64] [--json FILE]

The floor (one plain forward and backward per mini-batch, as a user would write it) is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F

import ranp_cli as ranp
from ranp_cli.models.unet3d import unet3d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = unet3d(15, 64)
    s = args.size
    batches = [(torch.rand(1, 1, s, s, s), torch.randint(50, (1, s, s, s))) for _ in range(2)]
    ranp.profile(unet3d(15, 8), (1, 1, 16, 16, 16))  # torch's own start-up of meta tensors
    start = time.perf_counter()
    for x, y in batches:
        F.cross_entropy(model.train()(x), y).backward()
    floor = time.perf_counter() - start
    seconds = ranp.prune(model, batches, sparsity=0.78, resource="mem").report.to_dict()["seconds"]
    rest = seconds["total"] - seconds["score"]
    for step, value in [*seconds.items(), ("floor: forward + backward", floor)]:
        print(f"{step:28} {value:8.2f} s")
    print(f"{'scoring / floor':28} {seconds['score'] / floor:8.2f}")
    print(f"{'beyond the gradient passes':28} {rest / seconds['total']:8.1%}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {
                    "seconds": seconds,
                    "floor": floor,
                    "share_beyond": rest / seconds["total"],
                    "threads": torch.get_num_threads(),
                },
                file,
            )


if __name__ == "__main__":
    main()
