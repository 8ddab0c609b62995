"""Every page of the documentation runs as written: commands and Python blocks in order, in a folder of its own.

The folder holds ``INPUTS``; everything else a page makes itself. ``tests/doc_commands.py`` says which blocks are run.
Runs that would take long are cut: clips of three seconds, small pictures, one iteration.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.config import override
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.rl.post_trainer import PostTrainer
from flowportrait.samples import SPEECH
from tests.doc_commands import FORM, PAGES, ROOT, SHELL, Block, blocks, lines, page_name, words

INPUTS = {
    "photos": ("me.png", "me.jpg", "photo.jpg", "anna.jpg", "ben.jpg"),
    "sounds": ("me.wav", "speech.wav", "anna.wav", "ben.wav"),
    "videos": ("clip.mp4", "interview.mp4"),
}
"""What a reader has before a page begins; and a folder ``mine`` with ``me.png`` and ``me.wav``, and ``story.txt``."""
CLAIMS: dict[str, Callable[[Path], bool]] = {
    "docs/guides/rewards.md": lambda home: "reward/open_eyes" in (home / "run" / "metrics.jsonl").read_text(),
    "docs/guides/recipes.md": lambda home: (
        json.loads((home / "half" / "recipe.json").read_text())["name"] == "better_half:CARD"
        and json.loads((home / "half" / "metrics.jsonl").read_text().splitlines()[0])["loss/policy"] > 0
        and json.loads((home / "half" / "metrics.jsonl").read_text().splitlines()[0])["skipped"] == 0
        and (home / "half" / "checkpoint" / "model.safetensors").is_file()
    ),
}
"""Page → what is true of the folder when it has run, beyond that nothing failed."""
INSTALLS = {"pip", "make", "git", "source", "python3", "export"}
"""Programs that change the environment; ``test_package`` and ``test_workflow`` check what they install and make."""
SERVERS = (
    "flowportrait serve",
    "flowportrait studio",
    "flowportrait judge serve",
    "flowportrait preferences study serve",
)
"""Commands that go on until they are stopped; ``test_*_browser.py`` and ``test_judge_serve.py`` run them."""
SMALL = ("groups=1", "group_size=2", "frames=28", "updates=1", "rollout_chunks=1", "render_size=64", "iterations=1")
RUN = [page for page in PAGES if any(one.language in (*SHELL, "python") and not one.not_run for one in blocks(page))]


def smaller(line: str) -> list[str]:
    """The words of a command, cut to what a test can wait for."""
    given = words(line)
    if given[0] == "animate" and not {"--video", "--size", "--speaker"} & set(given):
        given += ["--size", "128"]
    if given[0] == "posttrain" and "--output" in given and "--iterations" not in given and "groups=" not in line:
        given += ["--set", *SMALL]
    return given


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``INPUTS``."""
    folder = tmp_path_factory.mktemp("inputs")
    face = Image.fromarray(np.ascontiguousarray(astronaut()[:300, 60:360]))
    sound = (read_audio(SPEECH)[: 3 * SAMPLE_RATE].clip(-1, 1) * 32767).astype(np.int16)
    for name in INPUTS["photos"]:
        face.save(folder / name)
    for name in INPUTS["sounds"]:
        wavfile.write(folder / name, SAMPLE_RATE, sound)
    (folder / "mine").mkdir()
    for name in ("me.png", "me.wav"):
        shutil.copy(folder / name, folder / "mine")
    (folder / "story.txt").write_text("Good day.\n")
    first, *others = (folder / name for name in INPUTS["videos"])
    with contextlib.chdir(folder):
        making = ["animate", "--image", "me.png", "--audio", "me.wav", "--crop", "--size", "128"]
        assert main([*making, "--output", str(first)]) == 0
    for other in others:
        shutil.copy(first, other)
    return folder


@pytest.fixture
def home(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the inputs as the current folder, whose modules can be imported while the test runs."""
    folder = tmp_path / "home"
    shutil.copytree(inputs, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(folder))
    train = PostTrainer.train

    def small(self: PostTrainer, *more: Any, **named: Any) -> Any:
        if self.config.iterations > 10:
            self.config = override(self.config, list(SMALL))
        return train(self, *more, **named)

    monkeypatch.setattr(PostTrainer, "train", small)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=page_name)
def test_a_page_runs_as_written(page: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = types.ModuleType("page_of_the_documentation")
    monkeypatch.setitem(sys.modules, namespace.__name__, namespace)
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language in ("python", "yaml") and block.title:
            (home / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            place = "\n" * block.line + block.text
            exec(compile(place, str(page), "exec"), namespace.__dict__)
        elif block.language in SHELL:
            for line in lines(block.text):
                run(line, block, monkeypatch)
    assert CLAIMS.get(page_name(page), Path.is_dir)(home)


def run(line: str, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one line of a shell block, which must succeed; forms and installations are left out."""
    if FORM in line or shlex.split(line)[0] in INSTALLS or line.startswith(SERVERS):
        return
    if not line.startswith("flowportrait ") or " && " in line or " | " in line:
        done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, env=shell_environment())
        assert done.returncode == 0, f"{block.page}:{block.line}: {line}\n{done.stderr[-2000:]}"
        return
    source = re.search(r"\s<\s*(\S+)", line)
    given_in = Path(source[1] if source else os.devnull)
    with (
        monkeypatch.context() as patch,
        given_in.open(encoding="latin-1") as standard_input,
        io.TextIOWrapper(Path(".piped").open("wb")) as pipe,
    ):
        patch.setattr(sys, "stdin", standard_input)
        given = smaller(line)
        if "-" in given:
            patch.setattr(sys, "stdout", pipe)
        try:
            code = main(given)
        except SystemExit as end:  # help and lists end so
            code = int(end.code or 0)
        assert code == 0, f"{block.page}:{block.line}: {line}"


def shell_environment() -> dict[str, str]:
    """The environment of this process, in which the program and its package are those that are tested."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
