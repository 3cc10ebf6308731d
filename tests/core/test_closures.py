"""A copy of a model is bound to itself: what its hooks, lambdas and patched methods hold of the model is the copy's."""

import copy
import functools
import threading
import weakref

import pytest
import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.copies import meta_copy, replicate
from ranp_cli.core.errors import BadInput

X = torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
BATCH = [(X, torch.randint(0, 2, (2, 6, 6, 6), generator=torch.Generator().manual_seed(1)))]
SEEN = {}


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.h = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1), nn.Conv3d(8, 2, 1)
        self.kept = {}

    def forward(self, x):
        return self.h(self.b(self.a(x).relu()).relu())


class Lambda(Base):
    def __init__(self):
        super().__init__()
        self.act = lambda x: self.a(x).relu()

    def forward(self, x):
        return self.h(self.b(self.act(x)).relu())


class InContainers(Base):
    def __init__(self):
        super().__init__()
        self.steps = {"first": [lambda x, net=self: net.a(x).relu()]}

    def forward(self, x):
        return self.h(self.b(self.steps["first"][0](x)).relu())


class Partial(Base):
    def __init__(self):
        super().__init__()
        self.act = functools.partial(lambda net, x: net.a(x).relu(), self)

    def forward(self, x):
        return self.h(self.b(self.act(x)).relu())


class HeadReadsHooks(Base):
    """As DPT does: the head reads what the hooks kept."""

    def __init__(self):
        super().__init__()
        self.h = nn.Conv3d(16, 2, 1)
        for name in ("a", "b"):
            getattr(self, name).register_forward_hook(self.keep(name))

    def keep(self, name):
        def hook(module, args, out):
            self.kept[name] = out

        return hook

    def forward(self, x):
        self.b(self.a(x).relu())
        return self.h(torch.cat([self.kept["a"], self.kept["b"]], 1))


class Weak(Base):
    def __init__(self):
        super().__init__()
        self.b.parent = weakref.ref(self)
        object.__setattr__(self.b, "proxy", weakref.proxy(self))  # not as a child, which would be a circle
        self.b.forward = functools.partial(self.forward_of_b, self.b)

    @staticmethod
    def forward_of_b(b, x):
        return nn.Conv3d.forward(b, x) + 0 * b.parent().a.weight.sum() + 0 * b.proxy.a.bias.sum()


class Recorder:
    """Lives beside the model, as a Grad-CAM extractor does."""

    def __init__(self, net):
        self.net, self.kept = net, {}

    def save(self, module, args, out):
        self.kept[module] = out


def patched():
    net = Base()
    before = net.forward

    @functools.wraps(before)
    def forward(x):
        return 2 * before(x)

    net.forward = forward
    return net


def patched_layer():
    net = Base()
    before = net.b.forward
    net.b.forward = lambda x: before(x) + 0 * net.a.weight.sum()
    return net


def recorded():
    net = Base()
    net.recorder = Recorder(net)
    net.a.register_forward_hook(net.recorder.save)
    return net


def recorded_outside():
    net = Base()
    net.a.register_forward_hook(Recorder(net).save)
    return net


def writes_a_global():
    def hook(module, args, out):
        SEEN["a"] = out

    net = Base()
    net.a.register_forward_hook(hook)
    return net


KINDS = [
    Lambda,
    InContainers,
    Partial,
    HeadReadsHooks,
    Weak,
    patched,
    patched_layer,
    recorded,
    recorded_outside,
    writes_a_global,
]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_pruned_as_if_written_plainly(make):
    torch.manual_seed(0)
    net = make()
    result = ranp.prune(net, BATCH, sparsity=0.5)
    assert result.report.to_dict()["sparsity"]["achieved"] >= 0.45
    assert result.report.to_dict()["verified"]["max_rel_error_fp64"] < 1e-10
    result.model(X).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    assert not net.kept
    assert not SEEN
    copy.deepcopy(net)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_a_copy_on_meta_touches_nothing_of_the_original(make):
    net = make()
    out = meta_copy(net)(X.to("meta"))
    assert out.device.type == "meta"
    assert not net.kept
    assert not SEEN


def test_plain_deepcopy_would_have_failed():
    """The control: without binding, the hook of a copy writes to the original."""
    net = HeadReadsHooks()
    copy.deepcopy(net).a(X)
    assert net.kept


def test_activations_that_a_hook_has_kept_are_copied():
    net = Base()
    net.a.register_forward_hook(lambda module, args, out: net.kept.update(out=out))
    net(X)
    kept = net.kept["out"]
    twin = replicate(net, lambda _, t: t.clone())
    twin(X + 1)
    assert net.kept["out"] is kept
    assert not torch.equal(twin.kept["out"], kept)


def test_what_cannot_be_bound_is_named():
    class Locked:
        def __init__(self, net):
            self.net, self.lock = net, threading.Lock()

    def hook_of(holder):
        return lambda module, args, out: holder.net.kept.update(out=out)

    net = Base()
    net.a.register_forward_hook(hook_of(Locked(net)))
    with pytest.raises(BadInput, match=r"a\._forward_hooks .*test_closures\.py:\d+.*cannot be copied"):
        ranp.prune(net, BATCH, sparsity=0.5)
    assert not net.kept


def test_a_global_that_hook_and_forward_share_is_refused():
    class ReadsGlobal(Base):
        def forward(self, x):
            return super().forward(x) + 0 * SEEN["a"].sum()

    def hook(module, args, out):
        SEEN["a"] = out

    net = ReadsGlobal()
    net.a.register_forward_hook(hook)
    with pytest.raises(BadInput, match="share the global 'SEEN'"):
        ranp.prune(net, BATCH, sparsity=0.5)
    assert not SEEN
