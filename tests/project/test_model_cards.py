"""Cards of models and corpora are in the Hub's format, and say what was learned, under which licence, and for what."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard
from tools.write_model_cards import PAGE, model_cards_page, read_card

from flowportrait.data.dataset_note import write_dataset_note
from flowportrait.files import shipped_weights, write_text
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.backbone import GeneratorConfig
from flowportrait.models.checkpoints import SHIPPED_CHECKPOINTS
from flowportrait.models.model_card import set_card_section
from tests import ROOT

WEIGHTS = ROOT / "weights" / "flowportrait_weights"
FOLDERS = sorted(path.parent for path in WEIGHTS.glob("*/README.md"))
TASKS = {
    "audio-to-audio", "feature-extraction", "image-feature-extraction", "image-segmentation", "image-to-image",
    "image-to-video", "keypoint-detection",
}  # fmt: skip
"""Names of tasks that the Hub knows and that are used here."""
KEYS = {"license", "license_name", "license_link", "library_name", "pipeline_tag", "language", "tags", "datasets",
        "base_model"}  # fmt: skip
RESEARCH = ("license: other", "license_name: flowportrait-weights-research", "license_link: https://")


def small_generator() -> ARFlow:
    torch.manual_seed(0)
    return ARFlow(GeneratorConfig(layers=1, hidden=32, heads=2, front_end="mel")).eval()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_card_of_the_shipped_weights_has_what_the_hub_reads(folder: Path) -> None:
    front, title, use = read_card(folder)
    assert set(front) <= KEYS
    assert front["library_name"] == "flowportrait"
    assert front.get("pipeline_tag") in {None, *TASKS}
    assert set(front.get("language", [])) <= {"ar", "en"}
    assert front["tags"]
    assert all(re.fullmatch(r"[a-z0-9-]+", tag) for tag in front["tags"])
    assert len(title) > 5
    assert len(use) > 20
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict()["license"] == front["license"]


def test_every_card_of_learned_weights_says_how_to_make_them_again() -> None:
    learned = [folder for folder in FOLDERS if read_card(folder)[0]["license"] == "other"]
    assert len(learned) > 10
    commands = re.compile(r"python -m tools\.\w+|flowportrait (?:pretrain|posttrain|preferences)")
    assert [one.name for one in learned if not commands.search((one / "README.md").read_text("utf-8"))] == []


def test_the_page_of_the_manual_is_made_from_the_cards() -> None:
    assert PAGE.read_text(encoding="utf-8") == model_cards_page(WEIGHTS), "run python -m tools.write_model_cards"


def test_a_checkpoint_trained_from_nothing_asks_for_its_licence(tmp_path: Path) -> None:
    small_generator().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict()["license"] == "unknown"
    assert card.data.to_dict()["pipeline_tag"] in TASKS
    assert "Name it at the top" in card.text


@pytest.mark.parametrize("name", SHIPPED_CHECKPOINTS)
def test_what_is_saved_from_shipped_weights_keeps_their_licence_also_after_two_steps(name: str, tmp_path: Path) -> None:
    load_generator(name).save_pretrained(tmp_path / "first")
    load_generator(tmp_path / "first").save_pretrained(tmp_path / "second")
    for folder in ("first", "second"):
        text = (tmp_path / folder / "README.md").read_text(encoding="utf-8")
        header = text.split("---\n")[1]
        assert all(line in header for line in RESEARCH)
        assert yaml.safe_load(header)["language"] == ["ar", "en"]
    assert f"Trained from `{name}`" in (tmp_path / "first" / "README.md").read_text(encoding="utf-8")


def test_a_section_is_replaced_and_the_rest_of_a_card_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "README.md", "# A\n\n## Training data\n\nOld.\nOlder.\n\n## Figures\n\nNone.\n")
    set_card_section(tmp_path, "Training data", r"New \1.")
    set_card_section(tmp_path, "Nothing", "Lost.")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text == "# A\n\n## Training data\n\nNew \\1.\n\n## Figures\n\nNone.\n"


CLIPS = [
    {"name": "a", "speaker": "ann", "split": "train", "frames": 1500},
    {"name": "b", "speaker": "bob", "split": "train", "frames": 750},
    {"name": "c", "speaker": "cem", "split": "test", "frames": 75},
]


def test_a_corpus_gets_a_note_with_counts_licences_and_limits(tmp_path: Path) -> None:
    import json

    corpus, footage = tmp_path / "talks", tmp_path / "footage"
    corpus.mkdir()
    footage.mkdir()
    (footage / "LICENSE.txt").write_text("CC-BY")
    (corpus / "clips.jsonl").write_text("".join(json.dumps(one) + "\n" for one in CLIPS))
    write_dataset_note(corpus, [footage])
    card = DatasetCard.load(corpus / "README.md")
    found = card.data.to_dict()
    assert (found["license"], found["size_categories"], found["pretty_name"]) == ("unknown", ["n<1K"], "talks")
    assert "| train | 2 | 2 | 1.5 |" in card.text
    assert "The footage came with `LICENSE.txt`." in card.text
    assert "did not agree" in card.text

    own = (corpus / "README.md").read_text().replace("license: unknown", "license: cc-by-4.0")
    (corpus / "README.md").write_text(own)
    (corpus / "clips.jsonl").write_text(json.dumps(CLIPS[0]) + "\n")
    write_dataset_note(corpus, [footage])
    again = (corpus / "README.md").read_text()
    assert "license: cc-by-4.0" in again
    assert "| train | 1 | 1 | 1.0 |" in again
    assert "bob" not in again
    assert "| test |" not in again


def test_the_card_of_the_package_names_the_strictest_licence() -> None:
    text = (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
    assert all(line in text.split("---\n")[1] for line in RESEARCH)
    assert shipped_weights().is_dir()
