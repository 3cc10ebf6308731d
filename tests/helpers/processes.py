"""The command line in processes of its own, alone or by torchrun, and in this one."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys

import pytest
import torch


def start(arguments, folder, processes=0, **variables):
    """`python -m ranp_cli`, alone or by torchrun, on one thread each, so that sums within an op are the same."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    known = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen([sys.executable, *many, "-m", "ranp_cli", *arguments], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**known, "OMP_NUM_THREADS": "1", **variables})  # fmt: skip


def done(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def in_this_process(arguments, folder, **variables):
    """The exit code and stderr of the same command without a new process, which takes seconds to import torch."""
    from ranp_cli.cli import run

    threads, err = torch.get_num_threads(), io.StringIO()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
            patch.chdir(folder)
            for name, value in variables.items():
                patch.setenv(name, value)
            with contextlib.redirect_stdout(io.StringIO()):
                return run(arguments), err.getvalue()
    finally:
        torch.set_num_threads(threads)
