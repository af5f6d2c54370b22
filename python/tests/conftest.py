"""Every test runs on each device there is. ROPEJIT_REQUIRE_GPU=1 makes a missing GPU a failure, and leaves out what needs none:
on a GPU host its time is for what nothing else can show.
"""

import importlib
import os
import sys
import tempfile
import types

# Before anything of ropejit is loaded: a cache of our own, and no tuning beside tests that share few cores.
os.environ.setdefault("ROPEJIT_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"ropejit-tests-{os.getuid()}"))
# Packs that the tester has installed are not read.
os.environ["XDG_DATA_HOME"] = os.path.join(tempfile.gettempdir(), f"ropejit-tests-{os.getuid()}", "no-data")
os.environ.setdefault("ROPEJIT_TUNING", "never")
# Products that come out the same twice, so that bits can be compared.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# JAX would take three quarters of the GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import pytest
import torch

GPU = torch.cuda.is_available()
ONLY_GPU = bool(os.environ.get("ROPEJIT_REQUIRE_GPU"))
DEVICES = [*([] if ONLY_GPU else ["cpu"]), *(["cuda"] if GPU else [])]


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a GPU")


def pytest_collection_modifyitems(config, items):
    off = [i for i in items if ONLY_GPU and not i.get_closest_marker("gpu") and "device" not in getattr(i, "fixturenames", ())]
    config.hook.pytest_deselected(items=off)
    items[:] = [i for i in items if i not in off]
    for item in items:
        if item.get_closest_marker("gpu") and not GPU:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_terminal_summary(terminalreporter):
    if not GPU:
        terminalreporter.section("NO GPU: EVERY TEST ON A GPU WAS SKIPPED", sep="!", red=True)
    if MISSING:
        terminalreporter.section(f"NOT INSTALLED, SO NOT TESTED: {', '.join(sorted(MISSING))}", sep="!", red=True)


MISSING = set()


def library(name, optional=False):
    """The library, or a skip that the summary tells of. On a GPU host it has to be there, unless it is ``optional``."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if ONLY_GPU and not optional:
            pytest.fail(f"{name} is not installed, and ROPEJIT_REQUIRE_GPU is set")
        MISSING.add(name)
        pytest.skip(f"{name} is not installed", allow_module_level=optional)


@pytest.fixture
def cupy():
    return library("cupy")


@pytest.fixture
def jax():
    return library("jax")


def pytest_sessionstart(session):
    if not GPU and ONLY_GPU:
        pytest.exit("ROPEJIT_REQUIRE_GPU is set, and PyTorch sees no GPU", returncode=1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(7)


@pytest.fixture
def served(monkeypatch):
    """The results of calls of replaced functions that kernels have computed, as a list that grows."""
    from ropejit import _functions

    native, calls = _functions._drop_in, []

    def counted(*arguments):
        out = native(*arguments)
        if out is not None:
            calls.append(out)
        return out

    monkeypatch.setattr(_functions, "_drop_in", counted)
    return calls


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a text as a module of a model, which `patch` finds."""
    monkeypatch.syspath_prepend(tmp_path)
    package = types.ModuleType("transformers_modules")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "transformers_modules", package)

    def load(text):
        name = f"modeling_{len(list(tmp_path.glob('*.py')))}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(text)
        return importlib.import_module(f"transformers_modules.{name}")

    return load
