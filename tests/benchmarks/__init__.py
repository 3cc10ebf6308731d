"""The benchmarks: `python -m tests.benchmarks.NAME`, from the folder of the repository."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("laws", "helpers")]
