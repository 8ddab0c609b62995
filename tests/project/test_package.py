"""The two wheels, in an empty environment: what is in them, what they require, and that they make a video offline.

The environment gets links to the installed packages that their metadata requires, directly or through others, and
nothing else: a package that the code imports and the metadata does not name is missing there.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import av
import flowportrait_weights
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from skimage.data import astronaut

import flowportrait
from flowportrait.samples import SPEECH
from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WEIGHTS = "flowportrait-weights"
NOT_FOR_ANIMATE = {"openai", "fastapi", "uvicorn", "peft", "accelerate", "gradio", "diffusers", "tensorboard"}
SCRIPTS = "Scripts" if os.name == "nt" else "bin"
OFFLINE = '''"""Every connection and look-up of a name fails."""
import socket

def refused(*_, **__):
    raise OSError("this environment has no network")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refused
'''


Wheels = tuple[Path, Path]
"""The wheel of the code, and that of the weights."""


def build_wheel(source: Path) -> Path:
    """The wheel of a folder with a ``pyproject.toml``, in that folder."""
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(source)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return source / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """The wheels of this checkout, built from a copy of what belongs to it."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for folder in ("src", "LICENSES", "weights"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    return build_wheel(source), build_wheel(source / "weights")


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def metadata(wheels: Wheels) -> Message:
    return metadata_of(wheels[0])


@pytest.mark.slow
def test_the_wheel_of_the_code_holds_its_data_and_nothing_of_weights_and_tests(wheels: Wheels) -> None:
    held = set(zipfile.ZipFile(wheels[0]).namelist())
    for folder in ("samples", "human_study/page", "portraitgen", "evaluation"):
        files = [path for path in (ROOT / "src" / "flowportrait" / folder).rglob("*") if path.is_file()]
        wanted = {path.relative_to(ROOT / "src").as_posix() for path in files if path.suffix != ".pyc"}
        assert wanted <= held, wanted - held
    assert "flowportrait/py.typed" in held
    assert {name.split("/")[0] for name in held} == {"flowportrait", f"flowportrait-{PROJECT['version']}.dist-info"}
    kinds = (".safetensors", ".onnx", ".task", ".tflite")
    assert [name for name in held if name.endswith(kinds)] == []
    assert wheels[0].stat().st_size < 2e6


@pytest.mark.slow
def test_the_wheel_of_the_weights_holds_every_shipped_file_and_no_code(wheels: Wheels) -> None:
    held = set(zipfile.ZipFile(wheels[1]).namelist())
    files = [path for path in (ROOT / "weights" / "flowportrait_weights").rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT / "weights").as_posix() for path in files if path.suffix != ".pyc"}
    assert wanted == {name for name in held if ".dist-info/" not in name}
    assert [name for name in held if name.endswith(".py")] == ["flowportrait_weights/__init__.py"]
    assert 30e6 < wheels[1].stat().st_size < 100e6, "the index takes files of up to 100 MB"


@pytest.mark.slow
def test_the_metadata_names_the_licences_of_code_and_weights_and_brings_their_texts(wheels: Wheels) -> None:
    code, weights = (set(metadata_of(wheel)["License-Expression"].split(" AND ")) for wheel in wheels)
    assert code == {"Apache-2.0", "CC-BY-4.0", "MIT"}
    assert "LicenseRef-FlowPortrait-Weights-Research" in weights
    texts = [
        {name.split("/licenses/")[1] for name in zipfile.ZipFile(wheel).namelist() if "/licenses/" in name}
        for wheel in wheels
    ]
    assert texts[0] == {"LICENSE", "NOTICE", "LICENSES/CC-BY-4.0.txt", "LICENSES/MIT.txt"}
    assert texts[1] == {"NOTICE", *(f"LICENSES/{name}.txt" for name in weights)}


@pytest.mark.slow
def test_the_code_requires_the_weights_of_its_own_version(wheels: Wheels) -> None:
    required = [Requirement(line) for line in metadata_of(wheels[0]).get_all("Requires-Dist")]
    (weights,) = [one for one in required if one.name == WEIGHTS]
    assert str(weights.specifier) == f"=={PROJECT['version']}"
    assert [metadata_of(wheel)["Version"] for wheel in wheels] == [PROJECT["version"]] * 2
    assert flowportrait.__version__ == flowportrait_weights.__version__ == PROJECT["version"]


@pytest.mark.slow
def test_one_command_installs_both_from_the_repositorys_address(tmp_path: Path) -> None:
    """A repository with the files of this checkout, the large ones cut short; what others make is left out."""
    repository = tmp_path / "repository"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for folder in ("src", "LICENSES", "weights"):
        shutil.copytree(ROOT / folder, repository / folder, ignore=ignored)
    for path in (repository / "weights" / "flowportrait_weights").rglob("*.*"):
        if path.stat().st_size > 100_000:
            path.write_bytes(b"weights")
    for name in ("README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, repository / name)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (own,) = (line for line in project.splitlines(True) if line.startswith(f'  "{WEIGHTS}=='))
    alone = re.sub(r"(?ms)^dependencies = \[.*?^\]", f"dependencies = [\n{own}]", project)
    (repository / "pyproject.toml").write_text(alone, encoding="utf-8")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "All"]):
        subprocess.run([*git, *words], cwd=repository, check=True)
    address = f"git+{repository.as_uri()}"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation",
         "--target", str(tmp_path / "target"), f"{WEIGHTS} @ {address}#subdirectory=weights",
         f"flowportrait @ {address}"],
        capture_output=True, text=True, cwd=tmp_path, env=without_pythonpath(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "target" / "flowportrait_weights" / "rl" / "model.safetensors").read_bytes() == b"weights"
    assert (tmp_path / "target" / "flowportrait" / "cli.py").is_file()


def without_pythonpath() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def requirements(name: str, extras: tuple[str, ...] = ()) -> list[Requirement]:
    """What an installed package requires here, with some of its extras."""
    found = [Requirement(line) for line in importlib.metadata.distribution(name).requires or []]
    return [one for one in found if any(applies(one, extra) for extra in ("", *extras))]


def applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def closure(first: list[Requirement]) -> set[str]:
    """Names of all packages that these requirements bring, directly and through others."""
    found: set[str] = set()
    todo = list(first)
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if name not in found and name != WEIGHTS:
            found.add(name)
            todo += requirements(name, tuple(one.extras))
    return found


@pytest.mark.slow
def test_animate_requires_none_of_the_packages_of_training_judging_and_serving(metadata: Message) -> None:
    base = closure([one for line in metadata.get_all("Requires-Dist") if applies(one := Requirement(line))])
    assert base & NOT_FOR_ANIMATE == set()
    assert "matplotlib" not in {Requirement(line).name for line in PROJECT["dependencies"]}  # mediapipe requires it


def test_all_is_every_extra_for_users_and_dev_is_that_and_the_tools() -> None:
    def reached(extra: str) -> set[str]:
        own = [Requirement(line) for line in EXTRAS[extra]]
        more = {name for one in own if one.name == "flowportrait" for name in one.extras}
        return {extra}.union(*(reached(name) for name in more))

    assert reached("all") == set(EXTRAS) - {"dev", "docs", "livekit", "pipecat", "ray"}
    assert reached("dev") == set(EXTRAS)


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {
        canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if version
    }


def test_the_lock_pins_what_the_project_requires_and_meets_every_constraint() -> None:
    """Of the project, and of each package that is installed here in its locked version."""
    locked = pins()
    needs = [
        Requirement(line) for line in [*PROJECT["dependencies"], *(line for own in EXTRAS.values() for line in own)]
    ]
    checked = 0
    for name, version in locked.items():
        try:
            if importlib.metadata.version(name).split("+")[0] == version:
                needs += requirements(name)
                checked += 1
        except importlib.metadata.PackageNotFoundError:
            continue
    broken = [
        f"{one} is locked at {locked.get(canonicalize_name(one.name))}"
        for one in needs
        if one.name not in ("flowportrait", WEIGHTS)
        and applies(one)
        and not one.specifier.contains(locked.get(canonicalize_name(one.name), "0"), prereleases=True)
    ]
    assert broken == []
    assert checked > 100
    assert "torchvision" not in locked


@pytest.mark.slow
def test_plain_pip_resolves_all_extras_together_under_the_lock(tmp_path: Path) -> None:
    """A solution for all of them is one for each alone. Needs the package index; nothing is installed."""
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report),
         "-c", str(ROOT / "requirements.lock"), str(ROOT / "weights"), f"{ROOT}[all,dev]"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    chosen = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    found = {canonicalize_name(one["name"]): one["version"].split("+")[0] for one in chosen}
    assert found.pop("flowportrait") == found.pop(WEIGHTS) == PROJECT["version"]
    assert found.items() <= pins().items()


def test_nothing_is_installed_behind_the_resolvers_back() -> None:
    option = "--no-" + "deps"
    texts = [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / ".github").rglob("*.yml"), ROOT / ".ci" / "run"]
    for folder in ("src", "docs", "tests", "benchmarks", "examples"):
        texts += [path for suffix in ("*.py", "*.md") for path in (ROOT / folder).rglob(suffix)]
    assert [path for path in texts if option in path.read_text(encoding="utf-8")] == []


@pytest.fixture(scope="module")
def environment(wheels: Wheels, metadata: Message, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheels, what they require, and no network."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    site = next(folder.glob("**/site-packages"))
    needed = closure([one for line in metadata.get_all("Requires-Dist") if applies(one := Requirement(line))])
    for name in needed:
        files = importlib.metadata.distribution(name).files or []
        for top in {file.parts[0] for file in files if ".." not in file.parts}:
            target = Path(str(importlib.metadata.distribution(name).locate_file(top)))
            if target.exists() and not (site / top).exists():
                (site / top).symlink_to(target)
    interpreter = folder / SCRIPTS / "python"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-index", "--quiet", *wheels],
        capture_output=True, text=True, env=without_pythonpath(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (site / "sitecustomize.py").write_text(OFFLINE)
    return folder


@pytest.mark.slow
def test_in_an_empty_environment_without_network_a_photo_and_speech_become_a_video(
    environment: Path, tmp_path: Path
) -> None:
    """From an empty folder, by a user without settings, under a path with a blank."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    Image.fromarray(astronaut()).save(folder / "photo.png")
    with av.open(str(SPEECH)) as source:
        rate = source.streams.audio[0].rate
    shutil.copy(SPEECH, folder / "speech.flac")
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "0",
    }
    done = subprocess.run(
        [environment / SCRIPTS / "flowportrait", "animate", "--image", "photo.png", "--audio", "speech.flac",
         "--crop", "--size", "256", "--output", "talking.mp4"],
        cwd=folder, env=variables, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with av.open(str(folder / "talking.mp4")) as made:
        picture, sound = made.streams.video[0], made.streams.audio[0]
        assert (picture.width, picture.height) == (256, 256)
        assert sum(1 for _ in made.decode(picture)) == pytest.approx(25 * 159_414 / rate, abs=4)
        assert sound.rate == rate
    assert sorted(path.name for path in folder.iterdir()) == ["photo.png", "speech.flac", "talking.mp4"]


def imported() -> dict[str, Path]:
    """Top-level modules that the package's own files import, anywhere in them, with one file for each."""
    found: dict[str, Path] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            found |= {name.partition(".")[0]: path for name in names}
    return found


def test_every_import_is_of_a_package_that_the_project_requires() -> None:
    """The standard library, a requirement, or what a requirement brings; torchvision is used where it is installed."""
    ours = {"flowportrait", "flowportrait_weights", "torchvision"} | set(sys.stdlib_module_names) | {"_typeshed"}
    first = [
        Requirement(line) for line in [*PROJECT["dependencies"], *(line for own in EXTRAS.values() for line in own)]
    ]
    required = closure([one for one in first if one.name != "flowportrait" and applies(one)])
    packages = {"dlib": ["dlib-bin"], **importlib.metadata.packages_distributions()}  # its own list is wrong
    unknown = {
        module: path.name
        for module, path in imported().items()
        if module not in ours and not {canonicalize_name(name) for name in packages.get(module, [])} & required
    }
    assert unknown == {}
