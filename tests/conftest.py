"""Options and fixtures that all tests share."""

import pytest
from packages import declare_torchvision_ops

declare_torchvision_ops()  # `import timm` works beside a CPU build of torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="write the golden files anew instead of comparing")
