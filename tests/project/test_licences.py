"""Licences are stated once per file and agree: model cards, the page, notices, texts, and the metadata of wheels."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests import ROOT

PACKAGE = ROOT / "weights"
WEIGHTS = PACKAGE / "flowportrait_weights"
FOLDERS = sorted(path for path in WEIGHTS.iterdir() if (path / "README.md").is_file())
RESEARCH = "LicenseRef-FlowPortrait-Weights-Research"
IDS = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "other": RESEARCH}
"""Licence of a model card → SPDX identifier."""
BLOB = "https://github.com/flowportrait/flowportrait/blob/main/"
OTHERS = {"face_landmarker", "face_net", "image_features", "person", "speech"}
"""Folders with nothing but files of other projects."""


def card(folder: Path) -> dict[str, object]:
    """The front matter of a model card."""
    match = re.match(r"---\n(.*?)\n---\n# ", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    assert match, f"{folder.name}/README.md has no front matter"
    return yaml.safe_load(match[1])


def licences(folder: Path) -> set[str]:
    found = card(folder)["license"]
    return {IDS[one] for one in ([found] if isinstance(found, str) else found)}  # type: ignore[attr-defined]


def expression(package: Path) -> set[str]:
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["license"].split(" AND "))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_model_card_names_its_licence_and_the_page_repeats_it(folder: Path) -> None:
    own = licences(folder)
    if RESEARCH in own:
        assert card(folder)["license_name"] == "flowportrait-weights-research"
        assert str(card(folder)["license_link"]).startswith(BLOB)
        assert (ROOT / str(card(folder)["license_link"]).removeprefix(BLOB)).is_file()
    assert (RESEARCH in own) == (folder.name not in OTHERS)
    page = (ROOT / "docs" / "reference" / "licences.md").read_text(encoding="utf-8")
    rows = page[page.index(f"`weights/{folder.name}`") :].splitlines()
    row = rows[0] + next((line for line in rows[1:2] if line.startswith("| |")), "")
    named = {
        RESEARCH if one == "research only" else one
        for one in re.findall(r"research only|Apache-2\.0|MIT|BSD-3-Clause", row)
    }
    assert named == own


def test_every_folder_of_weights_has_a_card() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {path.relative_to(WEIGHTS).parts[0] for path in files} == {folder.name for folder in FOLDERS}


def test_the_expression_of_the_weights_is_that_of_every_card_and_the_code_has_its_own() -> None:
    assert expression(PACKAGE) == set().union(*(licences(folder) for folder in FOLDERS))
    assert {path.stem for path in (PACKAGE / "LICENSES").iterdir()} == expression(PACKAGE)
    assert (PACKAGE / "LICENSES" / "Apache-2.0.txt").read_text() == (ROOT / "LICENSE").read_text()
    assert licences(PACKAGE) == {RESEARCH}, "the strictest of them stands for the package as a whole"
    assert expression(ROOT) == {"Apache-2.0", *(path.stem for path in (ROOT / "LICENSES").iterdir())}
    assert RESEARCH not in expression(ROOT)


def test_the_notice_names_everything_that_others_made() -> None:
    notice = (PACKAGE / "NOTICE").read_text(encoding="utf-8")
    named = set(re.findall(r"^(\w+)(?:/[\w.]+\n|  )", notice.partition("other projects:")[2], re.M))
    foreign = {folder.name for folder in FOLDERS if licences(folder) - {RESEARCH}}
    assert named == foreign
    for maker in ("Google", "OpenAI", "Weya AI", "VGGFace2", "Soumith Chintala", "GRID"):
        assert maker in notice
    assert "Useful Sensors" in (ROOT / "NOTICE").read_text(encoding="utf-8")


def test_the_readmes_first_screen_says_what_may_be_used_commercially() -> None:
    screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:24])
    assert "The code is Apache-2.0 and may be used commercially. The shipped weights may not" in screen
    assert "docs/reference/licences.md" in screen
