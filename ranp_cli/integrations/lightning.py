"""Lightning: a callback that prunes a module's network before its optimiser is made, from its own loader and training step.

    trainer = lightning.Trainer(callbacks=[Prune(sparsity=0.6, attribute="net")])

Importing this file lets `load_from_checkpoint` of any LightningModule read the checkpoints of pruned ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from itertools import islice
from typing import Any

from torch import Tensor, nn

import ranp_cli as ranp

from ..core.contexts import seeded
from ..core.errors import USER_EXCEPTIONS, BadInput, RanpError, shortened
from ..core.spelling import spelled
from ..core.tensors import map_tensors
from ..io.batches import Batch
from ..io.user_code import user_error

try:
    import lightning.pytorch.core.saving as saving
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        f"Prune needs lightning ({shortened(error, 80)}); type pip install 'ranp-cli[lightning]'"
    ) from error

KEY = "ranp"  # in a checkpoint: {attribute: header}
HEADERS = "_ranp_headers"  # of a module that is slim: the same
DENSE = "_ranp_dense"  # until training starts, {attribute: dense network}: a checkpoint may bring another mask


class Prune(Callback):
    """Prune `module.<attribute>` when `fit` begins, before the optimiser is made; the same network in every process.

    Args:
        sparsity: fraction of neurons to remove, in [0, 1), or "max". Give this or `budget`.
        attribute: where the network is in the module, such as `net` or `model.backbone`.
        batches: how many mini-batches of the training loader the scores come from. The loss is that of `training_step`,
            which must call the network once, and return the loss or a dict with it.
        options: further keywords of `ranp_cli.prune`, such as `budget`, `resource`, `seed` or `round_to`.

    The header of the slim network is kept in checkpoints: a run that is resumed, `test` with a `ckpt_path` and
    `load_from_checkpoint` build it from there.
    """

    def __init__(
        self, sparsity: float | str | None = None, attribute: str = "net", batches: int = 2, **options: Any
    ) -> None:
        super().__init__()
        if type(batches) is not int or batches < 1:
            raise BadInput(f"{spelled('batches', batches)}: give 1 or more mini-batches")
        self.sparsity, self.attribute, self.batches, self.options = sparsity, attribute, batches, options
        self.report: ranp.Report | None = None  # of the pruning, in the process that did it
        self.mask: ranp.Mask | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prune what is not slim already. (A checkpoint to go on from is loaded after this, and its network takes the place.)"""
        if stage == "fit" and not getattr(pl_module, HEADERS, None):
            network_at(pl_module, self.attribute)
            self._prune(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        vars(pl_module).pop(DENSE, None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        vars(pl_module).pop(DENSE, None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if headers := getattr(pl_module, HEADERS, None):
            checkpoint[KEY] = headers

    def _prune(self, trainer: Trainer, module: LightningModule) -> None:
        """The first process prunes, all take its network: their weights may differ until they are made equal."""
        found: tuple[Any, ...] = ()
        if trainer.global_rank == 0:
            try:
                result = self._pruned(trainer, module)
                self.report, self.mask = result.report, result.mask
                found = (None, result.header, {name: t.cpu() for name, t in result.model.state_dict().items()})
            except RanpError as error:  # all processes must end, and with its message
                if trainer.world_size == 1:
                    raise
                found = (str(error), None, None)
        problem, header, weights = trainer.strategy.broadcast(found, src=0)
        if problem is not None:
            raise BadInput(problem)
        slim_down(module, {self.attribute: header})
        network_at(module, self.attribute).load_state_dict(weights)

    def _pruned(self, trainer: Trainer, module: LightningModule) -> ranp.Pruned:
        seed = self.options.get("seed", 0)
        if not module.automatic_optimization:
            raise BadInput(
                "Prune takes the loss that training_step returns, and this module optimises by hand; prune its network with "
                "ranp_cli.prune before fit"
            )
        with seeded(seed), _as_code("the training loader"):
            raws = list(islice(trainer.fit_loop._data_source.dataloader(), self.batches))
        loss = StepLoss(module, self.attribute)
        with seeded(seed):
            mini_batches = [loss.batch(raw, index) for index, raw in enumerate(raws)]
        try:
            return ranp.prune(
                network_at(module, self.attribute), mini_batches, loss=loss, sparsity=self.sparsity, **self.options
            )
        finally:
            for each in module.modules():
                if isinstance(each, Metric):  # which training_step has added to
                    each.reset()


class StepLoss:
    """The loss of a module's `training_step`, as a function of what its network returns."""

    def __init__(self, module: LightningModule, attribute: str) -> None:
        self.module, self.attribute = module, attribute

    def batch(self, raw: Any, index: int) -> Batch:
        """A mini-batch whose input is what `training_step` gives the network, and whose target is all of it."""
        stand_in = _Recorder(network_at(self.module, self.attribute))
        self._step(raw, index, stand_in)
        if len(stand_in.calls) != 1:
            raise BadInput(
                f"training_step calls {self.attribute} {len(stand_in.calls)} times for a mini-batch; Prune wants one call: prune the "
                "network with ranp_cli.prune before fit"
            )
        args, kwargs = map_tensors(stand_in.calls[0], lambda t: t.detach())
        return Batch(args, kwargs, (raw, index))

    def __call__(self, output: Any, target: Any) -> Tensor:
        raw, index = target
        loss = self._step(raw, index, _Answer(output))
        loss = loss.get("loss") if isinstance(loss, Mapping) else loss
        if not isinstance(loss, Tensor):
            raise BadInput("training_step returns no loss; Prune wants a tensor, or a dict with the key loss")
        return loss

    def _step(self, raw: Any, index: int, network: nn.Module) -> Any:
        """`training_step` with another network in place, and nothing logged."""
        module = self.module
        with _in_place(module, self.attribute, network), _unlogged(module), _as_code("training_step"):
            return module.training_step(raw, index)


class _Recorder(nn.Module):
    """Run a network and keep what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, []  # type: nn.Module, list[tuple[Any, Any]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return self.network(*args, **kwargs)


class _Answer(nn.Module):
    """Return what is known already."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


# -- the network in its module


def network_at(module: nn.Module, attribute: str) -> nn.Module:
    """The network at a dotted attribute; BadInput lists what there is."""
    found: Any = module
    for part in attribute.split("."):
        found = found._modules.get(part) if isinstance(found, nn.Module) else None
    if found is None:
        known = ", ".join(name for name, _ in module.named_children()) or "none; make them in __init__"
        raise BadInput(f"{type(module).__name__} has no network '{attribute}'; its modules: {known}")
    network: nn.Module = found
    return network


def slim_down(module: nn.Module, headers: Mapping[str, Any]) -> None:
    """Put the empty slim networks of headers in their places."""
    if not isinstance(headers, Mapping):
        raise BadInput(f"'{KEY}' in the checkpoint is a {type(headers).__name__}; wants an object of headers")
    if getattr(module, HEADERS, None) == headers:
        return
    kept = vars(module).setdefault(DENSE, {})
    for attribute, header in headers.items():
        dense = kept.setdefault(attribute, network_at(module, attribute))
        owner, name = _place(module, attribute)
        owner._modules[name] = ranp.build(header, dense)
    vars(module)[HEADERS] = dict(headers)


def _place(module: nn.Module, attribute: str) -> tuple[nn.Module, str]:
    owner, _, name = attribute.rpartition(".")
    return module.get_submodule(owner), name


@contextlib.contextmanager
def _in_place(module: nn.Module, attribute: str, network: nn.Module) -> Iterator[None]:
    owner, name = _place(module, attribute)
    before = owner._modules[name]
    owner._modules[name] = network
    try:
        yield
    finally:
        owner._modules[name] = before


@contextlib.contextmanager
def _unlogged(module: LightningModule) -> Iterator[None]:
    """Lightning takes no values before its loop runs."""
    for name in ("log", "log_dict"):
        vars(module)[name] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            del vars(module)[name]


@contextlib.contextmanager
def _as_code(what: str) -> Iterator[None]:
    try:
        yield
    except RanpError:
        raise
    except USER_EXCEPTIONS as error:
        raise user_error(what, error) from error


# -- checkpoints


_waiting: ContextVar[Any] = ContextVar("headers of the checkpoint that is being loaded", default=None)
_load_state, _load_state_dict = saving._load_state, LightningModule.load_state_dict


def _load_slim_state(cls: Any, checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Lightning's own, which makes the module and then loads its state dict: between the two it becomes slim."""
    token = _waiting.set(checkpoint.get(KEY))
    try:
        module = _load_state(cls, checkpoint, *args, **kwargs)
        vars(module).pop(DENSE, None)
        return module
    finally:
        _waiting.reset(token)


def _load_slim_state_dict(self: LightningModule, *args: Any, **kwargs: Any) -> Any:
    headers = _waiting.get()
    if headers is None and self._trainer is not None:  # which may be loading a checkpoint to go on from
        headers = (self._trainer._checkpoint_connector._loaded_checkpoint or {}).get(KEY)
    if headers is not None:
        slim_down(self, headers)
    return _load_state_dict(self, *args, **kwargs)


_HOOKS = ((saving, "_load_state", _load_slim_state), (LightningModule, "load_state_dict", _load_slim_state_dict))
for _owner, _name, _hook in _HOOKS:  # once for the process, when this module is imported
    setattr(_owner, _name, _hook)
