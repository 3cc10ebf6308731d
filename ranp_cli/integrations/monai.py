"""MONAI: a bundle's config as MODEL, with its mini-batches and loss, and the config that puts the slim network in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput, nearest
from ..core.spelling import spelled
from ..io.readers import some_of
from .common import BATCHES, Output, Slim, Step, need, quietly

if TYPE_CHECKING:
    from torch import nn

TARGET, ROOT, SEPARATOR = "_target_", "bundle_root", "::"
CONFIGS = ("train.json", "train.yaml", "train.yml")  # of a bundle's folder, in configs/


@dataclass
class Bundle:
    """One network of a bundle's config."""

    spec: str
    path: Path
    config: dict[str, Any]
    net_id: str
    suffixes: tuple[str, ...] = (".json",)

    @classmethod
    def open(cls, spec: str, path: Path, config: dict[str, Any], net_id: str) -> Bundle:
        """The config, which was read already; `net_id` is empty where MODEL does not name one."""
        what = f"model {spec}"
        need("monai", "monai", f"{what}: the config of a bundle")
        net_id = net_id.replace("#", SEPARATOR) or "network_def"
        bundle = cls(spec, path, config, net_id)
        if at(config, net_id) is None:
            nets = [name for name in bundle.ids("") if "net" in name.lower()] or list(bundle.ids(""))
            raise BadInput(
                f"{what}: has no '{net_id}'{nearest(net_id, nets)}; it has {some_of(nets, 6)}: give {path}#ID"
            )
        return bundle

    @property
    def what(self) -> str:
        return f"model {self.spec}"

    @property
    def notes(self) -> list[str]:
        codes = [text for text in _texts(self.config) if text.startswith("$")]
        return [f"{self.path.name} holds {len(codes)} $ expressions: these are code, and run"] if codes else []

    # -- the config

    @property
    def root(self) -> Path:
        """The bundle's folder: that above `configs`, else that of the config."""
        folder = self.path.absolute().parent
        return folder.parent if folder.name == "configs" else folder

    @cached_property
    def parser(self) -> Any:
        """MONAI's view of the config, with relative ids and macros resolved."""
        with quietly(self.what):
            from monai.bundle import ConfigParser

            config = deepcopy(self.config)
            if ROOT in config and not Path(str(config[ROOT])).is_absolute():
                config[ROOT] = str(self.root)
            parser = ConfigParser(config)
            parser.resolve_macro_and_relative_ids()
            return parser

    def ids(self, ending: str) -> Iterator[str]:
        """The ids of what has a `_target_` that ends so."""
        for where, value in _mappings(self.config):
            if str(value.get(TARGET, "")).rsplit(".", 1)[-1].endswith(ending) and TARGET in value:
                yield where

    def made(self, where: str, seed: int) -> Any:
        """What MONAI makes of an id."""
        from ..core.contexts import seeded

        with seeded(seed), quietly(f"{self.what}: {where}"):
            return self.parser.get_parsed_content(where)

    def one_of(self, kind: str, ending: str, option: str) -> str:
        """The id of the training's loader or loss: the only one, or the only one of `train`; BadInput lists them."""
        found = list(self.ids(ending))
        of_training = [name for name in found if "train" in name.lower()]
        for names in (found, of_training):
            if len(names) == 1:
                return names[0]
        if not found:
            have = f"no {kind} in it; it has {some_of(list(self.ids('')), 6)}"
        else:
            have = f"more than one {kind}: {some_of(found, 6)}"
        way = f"{spelled(option, f'{self.path}#ID')} or a file" if option == "batches" else spelled(option)
        raise BadInput(f"{self.what}: {have}; give {way}")

    # -- what ranp asks a project

    def network(self, seed: int) -> nn.Module:
        from torch import nn

        network = self.made(self.net_id, seed)
        if not isinstance(network, nn.Module):
            raise BadInput(
                f"{self.what}: '{self.net_id}' is a {type(network).__name__}, wants a network; give {self.path}#ID"
            )
        return network

    def step(self) -> Step:
        return Step()

    def batches(self, limit: int | None, seed: int, where: str = "") -> list[Any]:
        """The first mini-batches of the training's data loader."""
        from ..core.contexts import seeded

        where = where.replace("#", SEPARATOR)
        if where and at(self.config, where) is None:
            loaders = list(self.ids("DataLoader"))
            raise BadInput(
                f"{self.what}: has no '{where}'{nearest(where, loaders) if loaders else ' and no data loader'}"
            )
        where = where or self.one_of("data loader", "DataLoader", "batches")
        with seeded(seed), quietly(f"{self.what}: {where}"):
            loader = self.parser.get_parsed_content(where)
            return list(islice(loader, limit or BATCHES))

    def keys(self) -> str:
        """What MONAI's dicts call input and target."""
        return "image,label"

    def loss(self) -> Callable[[Any, Any], Any]:
        loss: Callable[[Any, Any], Any] = self.made(self.one_of("loss", "Loss", "loss"), 0)
        return loss

    def check_output(self, path: str) -> None:
        """Any name will do; that of the config itself is refused as an input."""

    def output(self, slim: Slim, path: str) -> Output:
        """The config to lay over the bundle's: `ranp_cli.load` of the slim file, with the dense network."""
        files = [file for file in slim.written if file.endswith(".safetensors")]
        if not files:
            raise BadInput(
                f"{path}: wants the slim network in a file, and there is none; give -o {self.root / 'models'}/slim.safetensors too"
            )
        dense = deepcopy(self.parser[self.net_id])
        override = {self.net_id: {TARGET: "ranp_cli.load", "path": self._place(files[0]), "model": dense}}
        data = (json.dumps(override, indent=4) + "\n").encode()
        names = [os.path.relpath(name) for name in (self.path, path)]
        return Output(data, [], f'python -m monai.bundle run --config_file "{names}"')

    def _place(self, file: str) -> str:
        """A path as an expression below `bundle_root`; an absolute one where it lies elsewhere, or the config has no root."""
        place = Path(file).absolute()
        if ROOT not in self.config or not place.is_relative_to(self.root):
            return str(place)
        return f"$str(@{ROOT}) + {'/' + place.relative_to(self.root).as_posix()!r}"


def config_of(folder: Path) -> Path:
    """The training config in a bundle's folder."""
    for name in CONFIGS:
        if (folder / "configs" / name).is_file():
            return folder / "configs" / name
    raise BadInput(
        f"model {folder}: is a folder without configs/train.json or configs/train.yaml; give a bundle's folder or its config"
    )


def is_config(content: Any) -> bool:
    """Whether a document holds networks or other things to make, by `_target_`."""
    return isinstance(content, dict) and any(TARGET in value for _, value in _mappings(content))


def _mappings(config: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All mappings of a config, with their ids."""
    parts = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    if isinstance(config, Mapping):
        yield where, config
    for key, value in parts:
        yield from _mappings(value, f"{where}{SEPARATOR}{key}" if where else str(key))


def is_plain(mapping: Mapping[str, Any]) -> bool:
    """Whether a mapping holds no references and no expressions of MONAI's."""
    return not any(text[:1] in ("$", "@", "%") for text in _texts(mapping))


def _texts(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, (Mapping, list)):
        for value in config.values() if isinstance(config, Mapping) else config:
            yield from _texts(value)


def at(config: Any, where: str) -> Any:
    """The part of a config with an id; None where there is none."""
    for part in where.split(SEPARATOR):
        if isinstance(config, Mapping) and part in config:
            config = config[part]
        elif isinstance(config, list) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        else:
            return None
    return config
