"""The paper's equations written plainly, and the cases they are compared on."""

from __future__ import annotations

import functools

import ranp_cli as ranp

prune = functools.partial(ranp.prune, min_neurons=1)  # the paper's rule


CLASSES, IGNORE, LAMBDA = 3, 255, 11
