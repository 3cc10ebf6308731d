"""Where version 0.1 had `load_batches`; it is in ranp_cli/io/batches.py."""

from .io.batches import load_batches as load_batches
