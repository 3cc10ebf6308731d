"""The ground: labels and ties (labels.py), and where a view lies in its tensor (trace.py)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranp_cli import rules
from ranp_cli.core.tensors import rebatch
from ranp_cli.graph.storage import coordinates, geometry, reshaped
from ranp_cli.graph.trace import Tracer, locate
from ranp_cli.rules.labels import FIXED, Labels, Ties, axes_of, decided_axis, factor

few = settings(max_examples=60, deadline=None, derandomize=True)


def labelled(ties: Ties, *shape: int, axes: tuple[int, ...] = (1,)) -> Labels:
    """A tensor with fresh labels along some axes."""
    planes = tuple(ties.new(shape[a]).view([-1 if k == a else 1 for k in range(len(shape))]) for a in axes)
    return Labels(shape, planes, None)


def same(ties: Ties, a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    root = ties.roots()
    return root[a.numpy()] == root[b.numpy()]


# -- factor


@pytest.mark.parametrize(
    ("old", "new", "groups"),
    [
        ((2, 8, 4), (2, 8, 4), [([0], [0]), ([1], [1]), ([2], [2])]),
        ((2, 8, 4, 4), (2, 8, 16), [([0], [0]), ([1], [1]), ([2, 3], [2])]),
        ((2, 8), (2, 2, 4), [([0], [0]), ([1], [1, 2])]),
        ((6, 4), (4, 6), [([0, 1], [0, 1])]),
        ((2, 3, 4), (24,), [([0, 1, 2], [0])]),
        ((24,), (2, 3, 4), [([0], [0, 1, 2])]),
    ],
)
def test_factor(old, new, groups):
    assert factor(old, new) == groups


@few
@given(st.lists(st.sampled_from((1, 2, 3, 4)), min_size=1, max_size=4), st.randoms())
def test_factor_groups_have_equal_products(old, random):
    new = list(old)
    for _ in range(3):  # split and merge at random
        k = random.randrange(len(new))
        if k + 1 < len(new) and random.random() < 0.5:
            new[k : k + 2] = [new[k] * new[k + 1]]
        elif new[k] % 2 == 0:
            new[k : k + 1] = [2, new[k] // 2]
        else:
            new.insert(k, 1)
    groups = factor(old, new)
    assert [a for ins, _ in groups for a in ins] == list(range(len(old)))
    assert [a for _, outs in groups for a in outs] == list(range(len(new)))
    assert all(math.prod(old[a] for a in ins) == math.prod(new[a] for a in outs) for ins, outs in groups)


# -- reshape


def test_reshape_passes_untouched_axes():
    ties = Ties()
    t = labelled(ties, 2, 6, 4, 4)
    (p,) = ties.reshape(t, (2, 6, 16))
    assert p.shape == (1, 6, 1)
    assert torch.equal(p.flatten(), t.planes[0].flatten())


def test_merging_repeats_labels():
    ties = Ties()
    t = labelled(ties, 2, 3, 2, 2)
    (p,) = ties.reshape(t, (2, 12))
    assert torch.equal(p[0], t.planes[0].flatten().repeat_interleave(4))


def test_merge_and_split_is_the_identity():
    ties = Ties()
    t = labelled(ties, 2, 3, 2, 2)
    (p,) = ties.reshape(Labels((2, 12), ties.reshape(t, (2, 12))), (2, 3, 2, 2))
    assert torch.equal(p, t.planes[0])


def test_an_undecided_split_ties_the_lanes_of_the_longest_part():
    ties = Ties()
    t = labelled(ties, 2, 8)
    (p,) = ties.reshape(t, (2, 2, 4))
    assert axes_of(p) == [1, 2]
    assert same(ties, p[0, 0], p[0, 1]).all()
    assert len(set(ties.roots()[p.flatten().numpy()])) == 4


def test_a_split_is_decided_by_what_is_tied_to_it():
    ties = Ties()
    (p,) = ties.reshape(labelled(ties, 2, 8), (2, 2, 4))
    ties.tie(p, p[:, :, :1])  # the groups may shrink, not the channels in them
    assert decided_axis(ties.roots()[p.numpy()]) == 1
    assert len(set(ties.roots()[p.flatten().numpy()])) == 2


def test_two_labelled_axes_in_one_cannot_both_shrink():
    ties = Ties()
    t = labelled(ties, 2, 3, 4, axes=(1, 2))
    assert len(ties.reshape(t, (2, 12))) == 1
    fixed = ties.fixed(ties.roots())
    ids = [set(p.flatten().tolist()) for p in t.planes]
    assert sum(bool(i & fixed.keys()) for i in ids) == 1


def test_reshape_without_elements_or_labels():
    ties = Ties()
    assert ties.reshape(labelled(ties, 2, 3), (0, 3)) == ()
    assert ties.reshape(Labels((2, 3)), (6,)) == ()


# -- vector, merge, collapse, along


def test_vector_decides_a_split():
    ties = Ties()
    (p,) = ties.reshape(labelled(ties, 2, 8), (2, 4, 2))
    v = ties.vector(Labels((2, 4, 2), (p,)), 1)
    assert v.shape == (4,)
    assert same(ties, p[0, :, 0], p[0, :, 1]).all()
    assert ties.vector(Labels((2, 4, 2), (p,)), 0) is None


def test_merge_ties_where_operands_broadcast():
    ties = Ties()
    a, b = labelled(ties, 2, 4, 3), labelled(ties, 4, 1, axes=(0,))
    (p,) = ties.merge((2, 4, 3), [a, b])
    assert p.shape == (1, 4, 1)
    assert same(ties, a.planes[0].flatten(), b.planes[0].flatten()).all()
    assert len(set(ties.roots()[p.flatten().numpy()])) == 4


def test_merge_keeps_planes_apart_that_do_not_overlap():
    ties = Ties()
    planes = ties.merge((2, 4, 3), [labelled(ties, 2, 4, 1), labelled(ties, 1, 1, 3, axes=(2,))])
    assert [p.shape for p in planes] == [(1, 4, 1), (1, 1, 3)]
    assert not ties._edges


def test_zero_ties_to_nothing():
    ties = Ties()
    a, b = ties.new(4), ties.new(4)
    b[1:3] = 0
    ties.tie(a, b)
    ties.tie(a, None)
    assert same(ties, a, torch.where(b > 0, b, a)).all()
    assert len(set(ties.roots()[a.numpy()])) == 4


def test_collapse_drops_or_ties():
    ties = Ties()
    t = labelled(ties, 2, 4, 3, axes=(1, 2))
    assert [axes_of(p) for p in ties.collapse(t, [2]).planes] == [[1]]
    assert torch.equal(ties.along(t, [2]), t.planes[1].flatten())
    (p,) = ties.reshape(labelled(ties, 2, 8), (2, 2, 4))
    (q,) = ties.collapse(Labels((2, 2, 4), (p,)), [1]).planes
    assert q.shape == (1, 1, 4)
    assert same(ties, p[0, 0], p[0, 1]).all()


def test_fixed_says_why_and_the_first_reason_stays():
    ties = Ties()
    a, b = ties.new(2), ties.new(2)
    ties.tie(a[:1], b[:1])
    ties.fix(b, "second", "net.py:3")
    ties.fix(a, "third")
    fixed, root = ties.fixed(ties.roots()), ties.roots()
    assert str(fixed[root[int(a[0])]]) == "second at net.py:3"
    assert str(fixed[root[int(a[1])]]) == "third"
    assert fixed[FIXED].what == "network input"


@few
@given(st.integers(2, 40).flatmap(lambda n: st.tuples(
    st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=80))))  # fmt: skip
def test_components_are_those_of_a_naive_union(drawn):
    n, edges = drawn
    ties = Ties()
    ids = ties.new(n)
    naive = list(range(n))
    for a, b in edges:
        ties.tie(ids[a : a + 1], ids[b : b + 1])
        low, high = sorted((naive[a], naive[b]))
        naive = [low if c == high else c for c in naive]
    assert (ties.roots()[ids.numpy()] == ids.numpy()[naive]).all()  # the smallest label names the class


# -- views


def draw_view(base: torch.Tensor, random) -> torch.Tensor:
    """A random slice, select and permute of a tensor."""
    view = base
    for _ in range(random.randint(1, 4)):
        kind = random.choice(("slice", "select", "permute", "unsqueeze"))
        axis = random.randrange(view.ndim) if view.ndim else 0
        if kind == "slice" and view.ndim:
            start = random.randrange(view.shape[axis])
            stop = random.randint(start + 1, view.shape[axis])
            view = view[(slice(None),) * axis + (slice(start, stop, random.choice((1, 1, 2))),)]
        elif kind == "select" and view.ndim > 1:
            view = view.select(axis, random.randrange(view.shape[axis]))
        elif kind == "permute":
            view = view.permute(random.sample(range(view.ndim), view.ndim))
        elif view.ndim < 5:
            view = view.unsqueeze(axis)
    return view


def base_of(random) -> torch.Tensor:
    shape = [random.choice((1, 2, 3, 4)) for _ in range(random.randint(2, 4))]
    base = torch.arange(math.prod(shape)).view(shape)
    return base.permute(random.sample(range(base.ndim), base.ndim)) if random.random() < 0.3 else base


@few
@given(st.randoms(use_true_random=False))
def test_coordinates_are_where_the_view_lies(random):
    base = base_of(random)
    view = draw_view(base, random)
    at = coordinates(geometry(base), geometry(view))
    assert at is not None
    assert torch.equal(base[tuple(at)].expand(view.shape), view)


@pytest.mark.parametrize(
    ("view", "shapes"),
    [
        pytest.param(lambda t: t.transpose(1, 2).view(2, 4, 3, 2), [(1, 1, 3, 2), (1, 4, 1, 1)], id="split"),
        pytest.param(lambda t: t.mT[:, :, 2:].unflatten(2, (2, 2)), [(1, 1, 2, 2), (1, 4, 1, 1)], id="part"),
        pytest.param(lambda t: t.as_strided((12, 4), (4, 1)), [(12, 1), (1, 4)], id="merged"),
    ],
)
def test_views_that_split_and_merge(view, shapes):
    """Labels of a (2, 6, 4) tensor along its last two axes, seen through a view that `reshape` does not describe."""
    ties = Ties()
    tracer = Tracer(ties, rules.find)
    base = torch.arange(48).view(2, 6, 4)
    lab = labelled(ties, 2, 6, 4, axes=(1, 2))
    tracer.put(base, lab)
    seen = view(base)
    planes = tracer.labels(seen).planes
    assert [tuple(p.shape) for p in planes] == shapes
    for p, q in zip(planes, lab.planes, strict=True):
        assert torch.equal(p.expand(seen.shape), q.expand(base.shape).flatten()[seen])


@few
@given(st.randoms(use_true_random=False))
def test_labels_seen_and_written_through_a_view(random):
    """Labels land where torch writes: every tensor has labels of its own along each axis, one axis at a time."""
    base = base_of(random)
    view = draw_view(base, random)
    if reshaped(geometry(base), geometry(view)):
        return  # the whole of it: `reshape` is at work
    for axis in range(base.ndim):
        ties = Ties()
        tracer = Tracer(ties, rules.find)
        if base.shape[axis] > 1:
            lab = labelled(ties, *base.shape, axes=(axis,))
            tracer.put(base, lab)
            full = lab.planes[0].expand(base.shape)
            flat = dict(zip(base.flatten().tolist(), full.flatten().tolist(), strict=True))
            for p in tracer.labels(view).planes:
                seen = p.expand(view.shape).flatten().tolist()
                assert seen == [flat[i] for i in view.flatten().tolist()]
    for axis in range(view.ndim):
        if view.shape[axis] > 1:
            ties = Ties()
            tracer = Tracer(ties, rules.find)
            tracer.put(base, Labels(tuple(base.shape), (), None))
            lab = labelled(ties, *view.shape, axes=(axis,))
            tracer.put(view, lab, write=True)
            (p,) = tracer.labels(base).planes
            landed = dict(zip(base.flatten().tolist(), p.expand(base.shape).flatten().tolist(), strict=True))
            wanted = lab.planes[0].expand(view.shape).flatten().tolist()
            assert [landed[i] for i in view.flatten().tolist()] == wanted


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda t: t.diagonal(), id="diagonal"),
        pytest.param(lambda t: t.unfold(1, 3, 1), id="overlapping windows"),
        pytest.param(lambda t: t.as_strided((4,), (0,)), id="stride 0"),
    ],
)
def test_unusual_views_are_refused(view):
    base = torch.zeros(4, 6)
    assert coordinates(geometry(base), geometry(view(base))) is None
    ties = Ties()
    tracer = Tracer(ties, rules.find)
    lab = labelled(ties, 4, 6)
    tracer.put(base, lab)
    tracer.labels(view(base))
    assert {int(r) for r in ties.roots()[lab.ids().numpy()]} <= ties.fixed(ties.roots()).keys()


def test_reshaped_means_the_whole_in_order():
    base = torch.zeros(2, 6, 4)
    assert reshaped(geometry(base), geometry(base.view(2, 24)))
    assert reshaped(geometry(base), geometry(base.view(12, 1, 4)))
    assert not reshaped(geometry(base), geometry(base.transpose(1, 2)))
    assert not reshaped(geometry(base), geometry(base[:, :3]))


# -- helpers of the trace


def test_rebatch_repeats_samples_and_leaves_the_rest():
    x, scalar, meta = torch.arange(6.0).view(3, 2), torch.tensor(1.0), torch.empty(3, 5, device="meta")
    again = rebatch({"a": (x, scalar), "b": [meta]}, 4)
    assert again["a"][0].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert again["a"][1] is scalar
    assert again["b"][0].shape == (4, 5)
    assert again["b"][0].device.type == "meta"
    assert rebatch((x, torch.zeros(2, 2)), 1)[0] is x  # two batch sizes: nothing is known of the axis


def test_locate_names_the_module_and_the_line():
    class Inner(torch.nn.Module):
        def forward(self):
            return locate({id(self): "encoder.0"})

    module, where = Inner()()
    assert module == "encoder.0"
    assert where.startswith("test_labels.py:")
