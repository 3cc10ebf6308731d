"""nnU-Net's plans as MODEL: the network, mini-batches and loss of its trainer, and slim plans that it trains."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.documents import check_form, parse_json
from ..core.errors import BadInput, nearest
from ..core.reading import read_bytes
from ..core.spelling import spelled
from .common import BATCHES, Choice, Output, Slim, Step, need, quietly
from .nnunet import SLIM

if TYPE_CHECKING:
    from torch import nn

PREPROCESSED, RESULTS = "nnUNet_preprocessed", "nnUNet_results"
FORM = {"dataset_name": str, "plans_name": str, "configurations": {str: dict}}
DATASET_FORM = {"labels": dict}
OPTIMIZERS = {"SGD": "sgd", "Adam": "adam", "AdamW": "adamw"}


@dataclass
class Plans:
    """One configuration of a plans file."""

    spec: str
    path: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]  # dataset.json
    configuration: str
    fold: int | str
    trainer_name: str
    suffixes: tuple[str, ...] = (".json", ".pth")
    _loss: Any = field(default=None, init=False)

    @classmethod
    def open(cls, spec: str, choice: Choice) -> Plans:
        """Read plans and dataset.json, and find the trainer."""
        what = f"model {spec}"
        need("nnunetv2", "nnunet", f"{what}: nnU-Net's plans")
        path, configuration = find_plans(spec, choice.configuration)
        plans = _read(path, FORM, what)
        if configuration not in plans["configurations"]:
            known = nearest(configuration, sorted(plans["configurations"]))
            raise BadInput(f"{what}: has no configuration '{configuration}'{known}")
        beside = path.with_name("dataset.json")
        if not beside.exists() and (folder := preprocessed()) is not None:
            beside = folder / plans["dataset_name"] / "dataset.json"
        if not beside.exists():
            raise BadInput(
                f"{what}: there is no dataset.json beside it or in ${PREPROCESSED}/{plans['dataset_name'][:60]}; copy it there"
            )
        dataset = _read(beside, DATASET_FORM, f"{beside}")
        return cls(spec, path, plans, dataset, configuration, _fold(choice.fold), choice.trainer or "nnUNetTrainer")

    @property
    def what(self) -> str:
        return f"model {self.spec}"

    @property
    def notes(self) -> list[str]:
        return []

    # -- nnU-Net's own objects

    @cached_property
    def _managers(self) -> tuple[Any, Any, Any]:
        """nnU-Net's view of the plans, of the configuration, and of the labels."""
        with quietly(self.what):
            from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

            manager = PlansManager(deepcopy(self.plans))
            return manager, manager.get_configuration(self.configuration), manager.get_label_manager(self.dataset)

    @cached_property
    def _architecture(self) -> dict[str, Any]:
        """The configuration's architecture: its own, inherited, or made of plans of the old form."""
        architecture: dict[str, Any] = deepcopy(self._managers[1].configuration["architecture"])
        return architecture

    @property
    def is_slim(self) -> bool:
        return bool(self._architecture.get("network_class_name") == SLIM)

    @cached_property
    def trainer(self) -> Any:
        """The trainer, as `nnUNetv2_train` makes it, but for its results folder: it writes nothing."""
        import torch

        results = os.environ.get(RESULTS)
        with tempfile.TemporaryDirectory() as scratch:
            with quietly(spelled("trainer", self.trainer_name), **_settings(scratch)):
                from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

                trainer_class = recursive_find_trainer_class_by_name(self.trainer_name)
                plans = {**deepcopy(self.plans), "continue_training": False}
                trainer = trainer_class(
                    plans=plans,
                    configuration=self.configuration,
                    fold=self.fold,
                    dataset_json=deepcopy(self.dataset),
                    device=torch.device("cpu"),
                )
                trainer._set_batch_size_and_oversample()
            before = trainer.folder_with_segs_from_previous_stage
            if before is not None and results is not None:
                trainer.folder_with_segs_from_previous_stage = str(Path(results) / Path(before).relative_to(scratch))
        trainer.print_to_log_file = _say_nothing
        return trainer

    def _built(self, plans: dict[str, Any]) -> nn.Module:
        """The network as the trainer builds it of plans."""
        with quietly(self.what):
            from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
            from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

            manager = PlansManager(deepcopy(plans))
            configuration = manager.get_configuration(self.configuration)
            labels = manager.get_label_manager(self.dataset)
            channels = determine_num_input_channels(manager, configuration, self.dataset)
            build = self.trainer.build_network_architecture
            ends = (channels, labels.num_segmentation_heads, self.trainer.enable_deep_supervision)
            if "plans_manager" in inspect.signature(build).parameters:
                network: nn.Module = build(manager, configuration, *ends)
            else:  # of trainers before nnU-Net 2.6
                network = build(
                    configuration.network_arch_class_name,
                    configuration.network_arch_init_kwargs,
                    configuration.network_arch_init_kwargs_req_import,
                    *ends,
                )
            return network

    # -- what ranp asks a project

    def network(self, seed: int) -> nn.Module:
        """The network, its weights drawn as nnU-Net draws them."""
        from ..core.contexts import seeded

        with seeded(seed):
            return self._built(self.plans)

    def step(self) -> Step:
        """Patch size, batch size and the trainer's optimiser."""
        from torch import nn

        manager, configuration, _ = self._managers
        with quietly(self.what):
            from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

            channels = determine_num_input_channels(manager, configuration, self.dataset)
            trainer = self.trainer
            trainer.network = nn.Conv3d(1, 1, 1)  # the optimiser is made for some network
            optimizer, _ = trainer.configure_optimizers()
            trainer.network = None
        name = OPTIMIZERS.get(type(optimizer).__name__)
        if name == "sgd" and optimizer.defaults.get("momentum"):
            name = "sgd-momentum"
        batch = int(trainer.batch_size)
        return Step((batch, int(channels), *map(int, configuration.patch_size)), batch, name)

    def keys(self) -> None:
        return None

    def batches(self, limit: int | None, seed: int, where: str = "") -> list[tuple[Any, Any]]:
        """Mini-batches of the fold's training cases, by the trainer's own loader: seeded, no augmentation, one thread."""
        from ..core.contexts import seeded

        if self.is_slim:
            raise BadInput(f"{self.what}: is slim already; give the dense plans that it was made from")
        trainer = self.trainer
        folder = trainer.preprocessed_dataset_folder
        if folder is None or not Path(folder).is_dir():
            number = re.sub(r"\D.*", "", self.plans["dataset_name"].removeprefix("Dataset"))
            where = f"${PREPROCESSED} is not set" if folder is None else f"there is no folder {folder}"
            raise BadInput(
                f"{self.what}: no preprocessed cases: {where}; type nnUNetv2_preprocess -d {number} -c {self.configuration}, or give "
                f"{spelled('batches')}"
            )
        splits = Path(trainer.preprocessed_dataset_folder_base, "splits_final.json")
        with tempfile.TemporaryDirectory() as scratch, seeded(seed):
            if splits.exists():  # nnU-Net writes one where there is none
                shutil.copy(splits, scratch)
            trainer.preprocessed_dataset_folder_base = scratch
            with (
                quietly(f"{self.what}: the loader of fold {self.fold}", **_settings(scratch)),
                _without_augmentation(trainer),
            ):
                loader, _ = trainer.get_dataloaders()
                batches = [next(loader) for _ in range(limit or BATCHES)]
        return [(batch["data"], batch["target"]) for batch in batches]

    def loss(self) -> Callable[[Any, Any], Any]:
        """The trainer's loss."""
        if self._loss is None:
            with quietly(self.what, nnUNet_compile="false"):
                self._loss = self.trainer._build_loss()
        loss: Callable[[Any, Any], Any] = self._loss
        return loss

    def check_output(self, path: str) -> None:
        """BadInput where slim plans would have the name of the dense ones, and so their results folder."""
        if Path(path).suffix == ".json" and Path(path).stem == self.plans["plans_name"]:
            raise BadInput(
                f"cannot write {path}: the dense plans are called {Path(path).stem} too, and nnU-Net would train both to one folder; "
                "give another name"
            )

    def output(self, slim: Slim, path: str) -> Output:
        """Slim plans (.json), or the weights for `-pretrained_weights` (.pth)."""
        self.check_output(path)
        if Path(path).suffix == ".pth":
            import torch

            file = io.BytesIO()
            torch.save({"network_weights": dict(slim.model.state_dict())}, file)
            return Output(file.getvalue())
        plans = slim_plans(self.plans, self.configuration, self._architecture, slim.header, Path(path).stem)
        built = {name: tuple(t.shape) for name, t in self._built(plans).state_dict().items()}
        if built != {name: tuple(t.shape) for name, t in slim.model.state_dict().items()}:
            raise BadInput(
                f"{spelled('trainer', self.trainer_name)} builds a network of its own, whatever the plans say; give a trainer that "
                "builds that of the plans"
            )
        return Output((json.dumps(plans, indent=4) + "\n").encode(), self._notes_of(path), self._command(path))

    def _command(self, path: str) -> str:
        number = self.plans["dataset_name"].removeprefix("Dataset")[:3]
        trainer = "" if self.trainer_name == "nnUNetTrainer" else f" -tr {self.trainer_name}"
        return f"nnUNetv2_train {number} {self.configuration} {self.fold} -p {Path(path).stem}{trainer}"

    def _notes_of(self, path: str) -> list[str]:
        notes = [
            "nnU-Net draws all weights anew when it trains slim plans; to start from the kept ones (but for the segmentation layers), "
            "write them too, -o NAME.pth, and give nnUNetv2_train -pretrained_weights NAME.pth"
        ]
        folder = preprocessed()
        home = None if folder is None else folder / self.plans["dataset_name"]
        if home is None or Path(path).absolute().parent.resolve() != home.resolve():
            shown = home or f"${PREPROCESSED}/{self.plans['dataset_name']}"
            notes.append(f"nnU-Net looks for plans in {shown}: copy {Path(path).name} there")
        return notes


# -- plans


def preprocessed() -> Path | None:
    """nnU-Net's folder of preprocessed data sets, where it is set."""
    folder = os.environ.get(PREPROCESSED)
    return Path(folder) if folder else None


def find_plans(spec: str, configuration: str | None) -> tuple[Path, str]:
    """The plans file and the configuration that MODEL and the option name."""
    if spec.endswith(".json"):
        return Path(spec), configuration or "3d_fullres"
    dataset, _, named = spec.partition(":")
    if configuration not in (None, named):
        raise BadInput(
            f"model {spec}: names the configuration {named}, and {spelled('configuration')} another one; leave one out"
        )
    folder = preprocessed()
    if folder is None:
        raise BadInput(f"model {spec}: ${PREPROCESSED} is not set; set it as for nnU-Net, or give the plans file")
    prefix = dataset if dataset.startswith("Dataset") else f"Dataset{int(dataset):03}_"
    is_whole = dataset.startswith("Dataset")
    names = sorted(
        p.name for p in folder.glob("Dataset*") if p.name == prefix or (not is_whole and p.name.startswith(prefix))
    )
    if len(names) != 1:
        found = (
            f"{', '.join(names[:4])} in {folder} are all of that number"
            if names
            else f"there is no {prefix}* in {folder}"
        )
        raise BadInput(f"model {spec}: {found}; give the plans file")
    return folder / names[0] / "nnUNetPlans.json", named


def slim_plans(
    plans: dict[str, Any], configuration: str, architecture: dict[str, Any], header: Any, name: str
) -> dict[str, Any]:
    """The plans with one configuration slim; those that inherit their architecture from it keep the dense one."""
    slim = deepcopy(plans)
    slim["plans_name"] = name
    configurations = slim["configurations"]
    for other, values in configurations.items():
        if (
            other != configuration
            and "architecture" not in values
            and _architect(plans["configurations"], other) == configuration
        ):
            values["architecture"] = deepcopy(architecture)
    record = {
        "version": header["version"],
        "network_class_name": architecture["network_class_name"],
        **{key: header[key] for key in ("fingerprint", "shapes", "attributes", "mask_sha256")},
    }
    configurations[configuration]["architecture"] = {
        **architecture,
        "network_class_name": SLIM,
        "arch_kwargs": {**architecture["arch_kwargs"], "ranp": record},
    }
    return slim


def _architect(configurations: dict[str, Any], name: str) -> str | None:
    """The configuration that another one inherits its architecture from."""
    seen: set[str] = set()
    while name in configurations and name not in seen:
        seen.add(name)
        parent = configurations[name].get("inherits_from")
        if "architecture" in configurations[name] or parent is None:
            return name
        name = parent
    return None


def _read(path: Path, form: Any, what: str) -> dict[str, Any]:
    advice = "let nnU-Net write it anew"
    document = parse_json(read_bytes(path, what), what, advice)
    check_form(document, form, what, advice)
    found: dict[str, Any] = document
    return found


def _fold(fold: int | str | None) -> int | str:
    if fold in (None, "all"):
        return "all" if fold else 0
    text = str(fold)
    if not re.fullmatch(r"\d{1,4}", text):
        raise BadInput(f"{spelled('fold', fold)}: give a whole number from 0 on, or all")
    return int(text)


# -- the trainer without its side effects


def _settings(scratch: str) -> dict[str, str]:
    """nnU-Net's environment: results go to a folder that is removed, one thread, nothing is compiled or sent anywhere."""
    quiet = {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "false", "nnUNet_wandb_enabled": "0"}
    return {RESULTS: scratch, **quiet}


def _say_nothing(*words: Any, **how: Any) -> None:
    """In place of the trainer's log."""


@contextlib.contextmanager
def _without_augmentation(trainer: Any) -> Iterator[None]:
    """The trainer's loaders cut patches of the final size, and transform training cases as validation cases."""

    def transforms(patch_size: Any, rotation: Any, scales: Any, *_: Any, **about: Any) -> Any:
        known = ("is_cascaded", "foreground_labels", "regions", "ignore_label")
        return trainer.get_validation_transforms(scales, **{key: about[key] for key in known if key in about})

    def sizes() -> Any:
        return (0.0, 0.0), False, trainer.configuration_manager.patch_size, ()

    trainer.get_training_transforms = transforms
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size = sizes
    try:
        yield
    finally:
        del trainer.get_training_transforms, trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size
