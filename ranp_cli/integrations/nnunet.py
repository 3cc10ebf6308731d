"""nnU-Net: `slim`, the network class that slim plans name. nnU-Net finds it by that name and calls it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..core.documents import check_form, shown
from ..core.errors import BadInput
from ..io.header import ADVICE, FORM, built_from, read_header

if TYPE_CHECKING:
    from torch import nn

SLIM = f"{__name__}.slim"  # network_class_name of slim plans
PACKAGES = ("dynamic_network_architectures", "nnunetv2")  # whose networks nnU-Net's own plans name
WHAT = "these slim plans"


def slim(ranp: Mapping[str, Any], **kwargs: Any) -> nn.Module:
    """An empty slim network: the dense one that the plans name, with the shapes and attributes that they record.

    Args:
        ranp: `arch_kwargs["ranp"]` of plans that `ranp prune -o NAME.json` wrote.
        kwargs: what nnU-Net calls the dense class with: its arch_kwargs, input_channels, num_classes, deep_supervision.

    Raises: BadInput when the plans are damaged, name another class than one of nnU-Net's, or were made for other input
        channels or classes.
    """
    import torch

    if not isinstance(ranp, Mapping):
        raise BadInput(f"{WHAT}: 'ranp' is {shown(ranp)}, wants an object; {ADVICE}")
    check_form(dict(ranp), {**FORM, "network_class_name": str}, WHAT, ADVICE)
    header, _ = read_header(ranp)
    dense_class = class_named(header["network_class_name"])

    def dense(**changed: Any) -> nn.Module:
        with torch.device("meta"):
            return dense_class(**{**kwargs, **changed})

    network = dense()
    _check_ends(header, kwargs, network, dense)
    if any(t.is_meta for module in network.modules() for t in _constants(module)):
        network = dense_class(**kwargs)  # buffers whose values only the class itself knows
    return built_from(header, network, WHAT)


def class_named(name: str) -> Any:
    """A network class of nnU-Net's own packages; BadInput for any other name."""
    from torch import nn

    advice = f"wants a network class of {' or '.join(PACKAGES)}; {ADVICE}"
    if not re.fullmatch(rf"({'|'.join(PACKAGES)})(\.[A-Za-z_]\w*)+", name):
        raise BadInput(f"{WHAT}: the dense network_class_name is {shown(name, 80)}, {advice}")
    module_name, _, class_name = name.rpartition(".")
    try:
        found = getattr(import_module(module_name), class_name, None)
    except ImportError as error:
        raise BadInput(f"{WHAT}: there is no {shown(name, 80)}; {advice}") from error
    is_network = isinstance(found, type) and issubclass(found, nn.Module)
    if not is_network or found.__module__.split(".")[0] not in PACKAGES:
        raise BadInput(f"{WHAT}: the dense network_class_name is {shown(name, 80)}, {advice}")
    return found


def _constants(module: nn.Module) -> list[Any]:
    """Buffers that the module does not set anew by itself."""
    if callable(getattr(module, "reset_parameters", None)):
        return []
    return [t for t in module._buffers.values() if t is not None]


def _check_ends(
    header: Mapping[str, Any], kwargs: Mapping[str, Any], network: nn.Module, dense: Callable[..., nn.Module]
) -> None:
    """BadInput where the slim network has other input channels or classes than it is asked for."""
    from ..core.fingerprint import fingerprint

    if fingerprint(network) == header["fingerprint"]:
        return
    shapes = {name: p.shape for name, p in network.named_parameters()}
    for key, words in (("input_channels", "input channels"), ("num_classes", "classes")):
        asked = kwargs.get(key)
        if not isinstance(asked, int):
            continue
        for name, p in dense(**{key: asked + 1}).named_parameters():
            axis = next((k for k, n in enumerate(p.shape) if n != shapes[name][k]), None)
            made_for = header["shapes"].get(name)
            if axis is not None and made_for is not None and len(made_for) == p.ndim:
                if made_for[axis] != asked:
                    raise BadInput(
                        f"{WHAT} are of a network with {made_for[axis]} {words}, and the data set has {asked}; prune the plans of "
                        "this data set"
                    )
                break
