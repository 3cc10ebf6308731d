"""Options and fixtures that all tests share."""

import os
import sys

# Before torch: processes that run side by side share the cores, and do not spin on them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
# The memory of 16-bit convolutions is modelled for processors without matrix units (AMX); oneDNN reads this at its start.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import pytest
import torch
from package_imports import declare_torchvision_ops

declare_torchvision_ops()  # `import timm` works beside a CPU build of torch
torch.backends.opt_einsum.enabled = (
    False  # where it is installed, an einsum of three has another order, and another count
)


def pytest_configure(config: pytest.Config) -> None:
    """What is tested is the CPU, on machines that have a GPU too: that is what `-m gpu` is for."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="write the golden files anew instead of comparing")


@pytest.fixture(autouse=True, scope="session")
def a_cache_folder_of_the_tests_own(tmp_path_factory):
    """What a test measures is not kept for the user, nor for the next run of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # processes of a test compile our code once
        yield


@pytest.fixture
def one_thread():
    """Many small networks on a shared machine: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def two_threads():
    """For what depends on their number, as the memory that a convolution works in."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


_from_elsewhere: dict[
    str, object
] = {}  # modules that lie in no temporary folder; looked at once, for there are thousands


@pytest.fixture(autouse=True)
def files_of_a_test_are_not_imported_by_the_next(tmp_path_factory):
    """Forget what was imported from pytest's temporary folders: the next test may import a `net` of its own."""
    yield
    new = [(name, module) for name, module in sys.modules.items() if _from_elsewhere.get(name) is not module]
    base = str(tmp_path_factory.getbasetemp()) + os.sep
    for name, module in new:
        stands = vars(module)
        places = [stands.get("__file__") or "", *(stands.get("__path__") or ())]
        if any(str(place).startswith(base) for place in places):
            del sys.modules[name]
        else:
            _from_elsewhere[name] = module


@pytest.fixture
def clock(monkeypatch):
    """Give `latency.once` times made by a function of the work."""
    from ranp_cli.costs import timing

    def use(seconds):
        monkeypatch.setattr(timing, "once", lambda work, device: seconds(work))

    return use


@pytest.fixture
def by_sparsity_alone(monkeypatch):
    """Under a limit of time the best sparsity is taken: no units are exchanged."""
    from ranp_cli.api import time_search

    monkeypatch.setattr(time_search, "applies", lambda ranking, limits: False)


@pytest.fixture(autouse=True, scope="session")
def every_report_holds_to_the_schema():
    """Validate whatever report a test makes: a key that `report_types.py` does not know is found where it first appears."""
    import jsonschema

    from ranp_cli.core.atomic import strict
    from ranp_cli.reporting.report import Report
    from ranp_cli.reporting.report_schema import schema

    validator, plain = jsonschema.Draft202012Validator(schema()), Report.to_dict

    def validated(self):
        document = plain(self)
        validator.validate(strict(document))
        return document

    Report.to_dict = validated
    yield
    Report.to_dict = plain
