"""Exporters of torch without their own words: no progress lines, log lines and known warnings."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

from .contexts import ignoring

_CHATTER = (  # (category, start of the message): what torch says about itself while it exports
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (FutureWarning, r"_check_is_size will be removed"),
    (UserWarning, r"The tensor attributes? .* (was|were) assigned during export"),
    (UserWarning, r"# 'dynamic_axes' is not recommended"),
    (UserWarning, r"ONNX export mode is set to TrainingMode\.EVAL"),
    (UserWarning, r"Exporting a model to ONNX with a batch_size other than 1"),
    (UserWarning, r"no signature found for"),
    (UserWarning, r"Model has no forward function"),
    (UserWarning, r"Constant folding"),
    (DeprecationWarning, r"The feature will be removed"),
    (UserWarning, r"Provided key .* for dynamic axes is not a valid"),
    (UserWarning, r"Exporting aten::"),
    (UserWarning, r"The shape inference of"),
    (UserWarning, r"This overload of"),
    (DeprecationWarning, r"You are using the legacy TorchScript-based ONNX export"),
    (DeprecationWarning, r"`torch\.jit\."),
    (DeprecationWarning, r"'(asyncio|inspect)\."),
)


class _Muted:
    """A standard stream that loses what one thread writes to it; other threads write on."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_exporting = threading.RLock()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No progress lines, log lines and known warnings of the exporters; those that the user's code gives stay.

    One thread exports at a time: the levels of the exporters' loggers are those of the process.
    """
    import torch

    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")
    ]
    with (
        _exporting,
        ignoring(*_CHATTER, (torch.jit.TracerWarning, "")),  # what tracing bakes in shows in the comparison
        contextlib.redirect_stdout(_Muted(sys.stdout)),
        contextlib.redirect_stderr(_Muted(sys.stderr)),
    ):
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
