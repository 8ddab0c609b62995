"""Claims about mapping a function over items, and about what is said where a cluster cannot do it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from flowportrait import parallel
from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.parallel import RayTasks, Workers, parallel_map


def size_and_process(path: Path, scale: int) -> tuple[int, int]:
    return scale * path.stat().st_size, os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_results_come_in_order_from_here_or_from_processes(processes: int, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(9)]
    for number, file in enumerate(files):
        file.write_bytes(b"." * number)
    found = list(parallel_map(partial(size_and_process, scale=2), files, Workers(processes), lambda file: file))
    assert [size for size, _ in found] == [2 * number for number in range(9)]
    assert ({process for _, process in found} == {os.getpid()}) == (processes == 0)


@pytest.mark.parametrize(
    "words",
    [
        ["prepare", "footage", "--output", "out"],
        ["evaluate", "footage", "--output", "out"],
        ["posttrain", "--prompts", "footage", "--output", "out", "--iterations", "1"],
        ["pipeline", "run.yaml"],
    ],
)
def test_without_ray_the_command_that_installs_it_is_named(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "footage").mkdir()
    (tmp_path / "footage" / "a.mp4").write_bytes(b"no video")
    monkeypatch.setattr("flowportrait.extras._is_installed", lambda package: package != "ray")
    monkeypatch.delitem(__import__("sys").modules, "ray", raising=False)
    assert main([*words, "--ray", "auto"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "This needs the package ray: run pip install 'flowportrait[ray]'."
    )


@pytest.mark.parametrize("address", ["nowhere", "host:port", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadInput, match=f"--ray {address} is no address: give auto, HOST:PORT or ray://HOST:PORT"):
        RayTasks(address)


def test_a_cluster_that_does_not_answer_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "require_extra", lambda *_: parallel)
    with pytest.raises(BadInput, match=r"No Ray cluster answers at 127\.0\.0\.1:1 \(.*\): start one with 'ray start"):
        RayTasks("127.0.0.1:1")


def test_a_machine_with_another_version_or_without_the_files_is_refused(tmp_path: Path) -> None:
    """It would leave out videos, or write what nobody finds."""
    marker, file = tmp_path / "out" / ".shared", tmp_path / "a.mp4"
    setup = parallel._TaskSetup("9.9", str(tmp_path), None, None)
    with pytest.raises(BadInput, match=r"has FlowPortrait .*, this one 9\.9: install the same version on all"):
        parallel._run_task(setup, None, os.getpid)
    here = parallel._TaskSetup(parallel.__version__, str(tmp_path / "no such folder"), str(marker), None)
    with pytest.raises(BadInput, match=rf"does not see {tmp_path / 'out'}: inputs and outputs must be on a file"):
        parallel._run_task(here, file, os.getpid)
    marker.parent.mkdir()
    marker.touch()
    with pytest.raises(BadInput, match=rf"does not see {file}"):
        parallel._run_task(here, file, os.getpid)
    file.touch()
    assert parallel._run_task(here, file, os.getpid) == os.getpid()
