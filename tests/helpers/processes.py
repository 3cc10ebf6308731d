"""The command line in processes of its own, alone or by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys


def start(arguments, folder, processes=0, **variables):
    """`python -m ranp_cli`, alone or by torchrun, on one thread each, so that sums within an op are the same."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    known = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen([sys.executable, *many, "-m", "ranp_cli", *arguments], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**known, "OMP_NUM_THREADS": "1", **variables})  # fmt: skip


def done(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
