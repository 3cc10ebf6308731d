"""Scores of neurons from the post-activations of one mini-batch and their gradients: plain functions of tensors.

A post-activation `a` has the examples along axis 0 and the N neurons along `axis`; `gradient` is dL/da, of its shape. The
scorer has a mask in their place; where a training step runs anyway, hooks give both (`mask_gradients`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Backward passes of `obd` a mini-batch. Of a network with at most so many neurons the second derivatives are exact; of a
# larger one each is off by the square root of the sum of its squared couplings to 1 in DRAWS of the others.
DRAWS = 16


def mask_gradients(a: Tensor, gradient: Tensor, axis: int) -> Tensor:
    """dL/dc of a mask c of ones that multiplies `a`, one value an example and neuron: of shape (B, N), float64."""
    product = (gradient.conj() * a).real.double().movedim(axis, 1)
    return product.reshape(*product.shape[:2], -1).sum(2)


def neuron_scores(gradients: Sequence[Tensor]) -> Tensor:
    """`neuron`, of shape (N,): the absolute value of the sum over examples and positions of a * dL/da (RANP, eq. 4, 7).

    Args:
        gradients: those of the masks, of each call of the layer in a forward pass; of shape (B, N).
    """
    return torch.stack([g.sum(0) for g in gradients]).sum(0).abs()


def taylor_scores(gradients: Sequence[Tensor], positions: Sequence[int]) -> Tensor:
    """`taylor`, of shape (N,): the mean over examples of |mean over positions of a * dL/da| (Molchanov et al., eq. 8).

    Args:
        gradients: as for `neuron_scores`.
        positions: how many values of a neuron each call has for one example.
    """
    return torch.stack([(g / n).abs().mean(0) for g, n in zip(gradients, positions, strict=True)]).sum(0)


@dataclass(frozen=True)
class Moments:
    """What post-activations are like, by neuron, in float64 of shape (N,); the moments of several calls add up.

    `size`: the sum of |a|; `squares`: of (a - mean)^2; `others`: how many values are not zero. A complex value counts by
    its absolute value.
    """

    count: Tensor
    size: Tensor
    mean: Tensor
    squares: Tensor
    others: Tensor

    @classmethod
    def of(cls, a: Tensor, axis: int) -> Moments:
        a = a.abs() if a.is_complex() else a
        values = a.movedim(axis, 0).reshape(a.shape[axis], -1).double()
        mean = values.mean(1)
        count = torch.full_like(mean, values.shape[1])
        squares = (values - mean[:, None]).square_().sum(1)
        return cls(count, values.abs().sum(1), mean, squares, values.count_nonzero(1).double())

    def __add__(self, other: Moments) -> Moments:
        """Source of `squares`: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1."""
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart.square() * self.count * share
        return Moments(count, self.size + other.size, self.mean + apart * share, squares, self.others + other.others)

    def among(self, neurons: int, index: Tensor) -> Moments:
        """The same for all neurons of a layer, of which these are the ones at `index`."""

        def placed(values: Tensor) -> Tensor:
            return values.new_zeros(neurons).index_copy(0, index, values)

        return Moments(
            placed(self.count), placed(self.size), placed(self.mean), placed(self.squares), placed(self.others)
        )

    def score(self, reduce: str) -> Tensor:
        """The mean over examples and positions of |a|, the standard deviation of a, or the share of a != 0 (1 - APoZ)."""
        count = self.count.clamp(min=1)
        if reduce == "deviation":
            return (self.squares / count).sqrt()
        return (self.size if reduce == "mean size" else self.others) / count


def sign_draws(sizes: Sequence[int], seed: int) -> Iterator[list[Tensor]]:
    """DRAWS times a sign for each neuron, by layer: v with E[v * (H v)] = diag(H), so that no Hessian H is ever made.

    Each draw by itself is one of independent, equally likely signs (Rademacher; Hutchinson, "A stochastic estimator of the
    trace", 1990; Bekas et al., 2007, for the diagonal). Together they are rows of a Hadamard matrix times the same drawn
    signs: what couples two neurons whose numbers differ modulo DRAWS cancels, so neighbours in a layer do not disturb each
    other.
    """
    signs = torch.randint(2, (sum(sizes),), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    rows = torch.ones(1, 1, dtype=torch.float64)
    while len(rows) < DRAWS:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    column = torch.arange(sum(sizes)) % DRAWS
    for row in rows:
        yield list((row[column] * signs).split(list(sizes)))
