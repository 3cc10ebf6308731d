"""What the integrations share: what a framework's own file says of a network, and a framework that is kept quiet."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from ..core.errors import USER_EXCEPTIONS, BadInput, RanpError
from ..core.spelling import spelled
from ..io.user_code import own_command_line, user_error

if TYPE_CHECKING:
    from torch import nn

    from ..pruning.mask import Mask


BATCHES = 2  # mini-batches of a framework's own loader, where nobody says how many


@dataclass(frozen=True)
class Choice:
    """What of a framework's file is meant, as the options say; None: not said."""

    configuration: str | None = None
    fold: int | str | None = None
    trainer: str | None = None

    @property
    def first_given(self) -> str | None:
        """The name of an option that was given."""
        return next((name for name, value in vars(self).items() if value is not None), None)


@dataclass(frozen=True)
class Slim:
    """A slim network that is to be written for a framework: its header for `ranp_cli.build`, and how it came about."""

    model: nn.Module
    mask: Mask
    header: Mapping[str, Any]
    written: Sequence[str] = ()  # the files of the run so far


@dataclass(frozen=True)
class Step:
    """The training step that a framework's file describes; None: it does not say."""

    inputs: tuple[int, ...] | None = None
    batch_size: int | None = None
    optimizer: str | None = None


@dataclass
class Output:
    """A file for the framework, and what to tell of it."""

    data: bytes
    notes: list[str] = field(default_factory=list)
    holds: str | None = None  # of a file that the framework reads by itself: what to type next


class Project(Protocol):
    """A network as a framework's own file has it."""

    spec: str
    suffixes: tuple[str, ...]  # of the files that `output` makes

    def network(self, seed: int) -> nn.Module: ...

    def step(self) -> Step: ...

    def batches(self, limit: int | None, seed: int, where: str = "") -> Any: ...

    def keys(self) -> str | None: ...

    def loss(self) -> Callable[[Any, Any], Any] | None: ...

    def check_output(self, path: str) -> None: ...

    def output(self, slim: Slim, path: str) -> Output: ...

    @property
    def notes(self) -> list[str]: ...


def need(package: str, extra: str, what: str) -> None:
    """BadInput with the command to type where a package is not installed."""
    if find_spec(package) is None:
        raise BadInput(f"{package} is wanted for {what} and not installed; type pip install 'ranp-cli[{extra}]'")


@contextlib.contextmanager
def quietly(what: str, **environment: str) -> Iterator[None]:
    """Run a framework's code: what it prints is dropped, its warnings are its own, what it raises is one line.

    Args:
        environment: variables that are set meanwhile.
    """
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), own_command_line():
            warnings.simplefilter("ignore")
            yield
    except RanpError:
        raise
    except USER_EXCEPTIONS as error:
        raise user_error(what, error) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def no_arguments(args: Any, what: str) -> None:
    """BadInput for arguments of a factory, which a framework's file has itself."""
    if args:
        raise BadInput(f"{what} says what its network is made with; leave out {spelled('model_args')}")
