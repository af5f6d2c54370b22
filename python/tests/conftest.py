"""Every test runs on each device there is. ROPEJIT_REQUIRE_GPU=1 makes a missing GPU a failure."""

import os
import tempfile

# Before anything of ropejit is loaded: a cache of our own, and no tuning beside tests that share few cores.
os.environ.setdefault("ROPEJIT_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"ropejit-tests-{os.getuid()}"))
os.environ.setdefault("ROPEJIT_TUNING", "never")
# Products that come out the same twice, so that bits can be compared.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

GPU = torch.cuda.is_available()
DEVICES = ["cpu", *(["cuda"] if GPU else [])]


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)


def pytest_terminal_summary(terminalreporter):
    if not GPU:
        terminalreporter.section("NO GPU: EVERY TEST ON A GPU WAS SKIPPED", sep="!", red=True)


def pytest_sessionstart(session):
    if not GPU and os.environ.get("ROPEJIT_REQUIRE_GPU"):
        pytest.exit("ROPEJIT_REQUIRE_GPU is set, and PyTorch sees no GPU", returncode=1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(7)
