"""Claims about ``Dockerfile``, ``compose.yaml`` and ``.dockerignore``: what can be checked without a build."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
STUDIO = COMPOSE["services"]["studio"]
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
BIN = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def instructions(text: str = DOCKERFILE) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile and their arguments, with continued lines joined and comments left out."""
    lines = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", text, flags=re.M)).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines if line.strip()]


def arguments(name: str) -> list[str]:
    return [argument for instruction, argument in instructions() if instruction == name]


def tool(name: str) -> str:
    found = shutil.which(name, path=BIN)
    if found is None:
        pytest.skip(f"{name} is not installed: it comes with the extra dev on Linux")
    return found


def lint(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "Dockerfile").write_text(text, encoding="utf-8")
    return subprocess.run([tool("hadolint"), str(folder / "Dockerfile")], capture_output=True, text=True, check=False)


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    words = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_hadolint_has_nothing_to_say_and_notices_a_bad_line(tmp_path: Path) -> None:
    done = lint(DOCKERFILE, tmp_path)
    assert done.returncode == 0, done.stdout
    assert lint(DOCKERFILE + "RUN cd /tmp && sudo ls\n", tmp_path).returncode == 1


def test_the_compose_file_follows_the_published_schema(tmp_path: Path) -> None:
    done = check_schema(ROOT / "compose.yaml")
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(yaml.safe_dump({"services": {"studio": STUDIO | {"restarts": "always"}}}), encoding="utf-8")
    assert check_schema(wrong).returncode == 1


def is_sent(path: str) -> bool:
    """Whether the builder gets a path: the last line of ``.dockerignore`` that matches it or a folder above decides."""
    parts = Path(path).parts
    sent = True
    for line in IGNORED:
        pattern = line.removeprefix("!")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        if pattern.startswith("**/"):
            matches = any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
        else:
            matches = any(fnmatch.fnmatch(one, pattern) and one.count("/") == pattern.count("/") for one in above)
        if matches:
            sent = line.startswith("!")
    return sent


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    copied = [word for line in arguments("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert {"src", "weights", "pyproject.toml", "requirements.lock"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists() or not is_sent(name)] == []
    sent = {path.name for path in ROOT.iterdir() if is_sent(path.name)}
    assert sent == set(copied)
    assert is_sent("src/flowportrait/cli.py")
    assert not is_sent("src/flowportrait/__pycache__/cli.pyc")
    assert not is_sent(".git/config")


def test_what_the_package_is_built_from_is_copied() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    copied = " ".join(arguments("COPY"))
    readme = re.search(r'^readme = "(.+)"', project, re.M)
    licences = re.search(r"^license-files = \[(.+)\]", project, re.M)
    assert readme is not None
    assert licences is not None
    for name in [readme[1], *re.findall(r'"([^"]+)"', licences[1])]:
        assert name.split("/")[0] in copied.split()


def test_the_image_installs_extras_that_exist_and_nothing_secret() -> None:
    extras = re.search(r"'\.\[([\w,]+)\]'", DOCKERFILE)
    assert extras is not None
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", project, re.M) for extra in extras[1].split(","))
    assert not re.search(r"password|token|secret|api_key", DOCKERFILE + str(COMPOSE), re.I)


def test_the_program_runs_as_an_ordinary_user_without_rights() -> None:
    (user,) = arguments("USER")
    uid = user.split(":")[0]
    assert int(uid) >= 1000
    assert f"--uid {uid}" in DOCKERFILE
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name in ("RUN", "COPY"))
    assert STUDIO["cap_drop"] == ["ALL"]
    assert STUDIO["read_only"] is True
    assert all(f"uid={uid}" in mount for mount in STUDIO["tmpfs"] if ":" in mount)


def test_the_studio_is_offered_to_this_machine_alone() -> None:
    assert STUDIO["network_mode"] == "host"
    assert "ports" not in STUDIO
    assert arguments("EXPOSE") == []
    assert "0.0.0.0" not in DOCKERFILE + str(COMPOSE)


def test_what_is_written_lies_in_the_volume() -> None:
    (volume,) = arguments("VOLUME")
    assert arguments("WORKDIR")[-1] == volume
    assert STUDIO["volumes"] == [f"{next(iter(COMPOSE['volumes']))}:{volume}"]
    assert f"XDG_CONFIG_HOME={volume}/" in DOCKERFILE


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the commands of the image are for a POSIX shell")
def test_the_start_command_serves_and_the_health_check_notices(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PORT": str(port), "PATH": BIN, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = json.loads(arguments("CMD")[-1])
    check = json.loads(arguments("HEALTHCHECK")[0].split("CMD", 1)[1])

    def is_healthy() -> bool:
        return subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0

    assert not is_healthy()
    studio = subprocess.Popen(start, env=environment, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not is_healthy():
            assert time.monotonic() < deadline
            assert studio.poll() is None
            time.sleep(0.5)
    finally:
        studio.terminate()
        studio.wait(timeout=30)
    assert not is_healthy()
