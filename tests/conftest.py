"""One thread per process: the networks here are tiny, and threads that wait for each other cost ten times more."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The certificate that videos are signed with is made in the user's configuration folder: not in the real one.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="flowportrait-tests-")

import pytest
import torch
from hypothesis import settings

from flowportrait import plugins
from tests import required

FOOTAGE = Path(os.environ.setdefault("FLOWPORTRAIT_DATA", str(Path(__file__).parents[2] / "shared" / "data")))
"""Development footage: beside the project's folder, or where the variable says."""

atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)
# A busy machine is no reason to fail.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("data") and not FOOTAGE.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no development footage in {FOOTAGE}: set FLOWPORTRAIT_DATA"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        for group in required.groups(item.path.name):
            item.add_marker(group)
        if item.get_closest_marker("distributed") and not hasattr(os, "fork"):
            item.add_marker(pytest.mark.skip(reason="this system cannot fork processes"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test of a required group fails where skips must not hide anything."""
    report = yield
    if any(item.get_closest_marker(group) for group in required.GROUPS):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that is skipped as a whole, by ``pytest.importorskip`` at its top."""
    report = yield
    if required.groups(collector.path.name):
        _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and required.skips_fail() and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which FLOWPORTRAIT_CI forbids for this test: {report.longrepr}"


@pytest.fixture(scope="session")
def _installed_plugin_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tests/plugin_package`` as pip installs it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("plugins")
    source = folder / "source"
    shutil.copytree(Path(__file__).parent / "plugin_package", source)
    words = ["install", "--quiet", "--no-index", "--no-build-isolation", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", *words, str(source)], check=True)
    return folder / "site"


@pytest.fixture
def plugin_package(_installed_plugin_package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of somebody else that adds a part of every kind, installed while the test runs; also on PYTHONPATH,
    for commands that the test starts. Returns the folder that it is installed in."""
    monkeypatch.syspath_prepend(_installed_plugin_package)
    monkeypatch.setenv("PYTHONPATH", str(_installed_plugin_package), prepend=os.pathsep)
    plugins.clear_plugin_cache()
    yield _installed_plugin_package
    plugins.clear_plugin_cache()
    sys.modules.pop("flowportrait_plugin_example", None)
