"""``org/name`` stands for a model on the Hub wherever a folder of a model is expected, and models can be uploaded.

The Hub is a small server on this machine; what asks it is the real ``huggingface_hub``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

import flowportrait as fp
from flowportrait import hub as hub_module
from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights
from flowportrait.hub import is_hub_id, model_folder
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.backbone import GeneratorConfig
from flowportrait.models.checkpoints import checkpoint_folder
from flowportrait.preferences.latent_reward import LatentReward
from flowportrait.rewards.registry import RewardOptions
from flowportrait.rl.policy_adapter import ARFlowAdapter
from flowportrait.rl.post_trainer import build_policy_adapter
from tests.hub_server import TOKEN, Hub, Repository, serve_hub


def small_generator(seed: int = 0) -> ARFlow:
    torch.manual_seed(seed)
    return ARFlow(GeneratorConfig(layers=1, hidden=32, heads=2, front_end="mel")).eval()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``huggingface_hub`` ask another server, as ``HF_ENDPOINT`` does before it is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with ``lab/small`` and an empty cache; nobody is logged in, and the process has asked for nothing yet."""
    hub_module._download.cache_clear()
    monkeypatch.chdir(tmp_path)
    with serve_hub() as server:
        point_to(server.address, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        small_generator().save_pretrained(tmp_path / "small")
        server.repositories["lab/small"] = Repository({"main": files_of(tmp_path / "small")})
        yield server
    hub_module._download.cache_clear()


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name].half(), theirs[name].half()) for name in mine)


def test_a_generator_on_the_hub_is_loaded_by_its_name(hub: Hub) -> None:
    assert same_weights(load_generator("lab/small"), small_generator())
    pipeline = fp.AnimatePipeline.from_pretrained("lab/small", denoise=False)
    assert same_weights(pipeline.generator, small_generator())


def test_the_files_are_downloaded_once_and_found_without_a_connection(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint_folder("lab/small")
    asked = len(hub.requests)
    assert checkpoint_folder("lab/small") == folder
    assert len(hub.requests) == asked
    hub_module._download.cache_clear()
    point_to("http://127.0.0.1:9", monkeypatch)
    assert checkpoint_folder("lab/small") == folder


def test_a_revision_is_named_behind_an_at_sign(hub: Hub, tmp_path: Path) -> None:
    small_generator(seed=1).save_pretrained(tmp_path / "other")
    repository = hub.repositories["lab/small"]
    repository.revisions["v2"] = files_of(tmp_path / "other")
    for revision in ("v2", repository.commit("v2")):
        assert same_weights(load_generator(f"lab/small@{revision}"), small_generator(seed=1))
    assert same_weights(load_generator("lab/small@main"), small_generator())
    with pytest.raises(BadInput, match="lab/small on the Hub has no revision v3"):
        load_generator("lab/small@v3")


def test_only_settings_weights_and_texts_are_downloaded(hub: Hub) -> None:
    extra = {"model.py": b"raise SystemExit", "model.pkl": b"x", "state/big.pt": b"x", "notes.md": b"x"}
    hub.repositories["lab/small"].revisions["main"] |= extra
    held = set(files_of(checkpoint_folder("lab/small")))
    assert held == {"README.md", "config.json", "model.safetensors", "notes.md"}


def test_a_run_on_the_hub_stands_for_its_checkpoint(hub: Hub) -> None:
    files = hub.repositories["lab/small"].revisions["main"]
    hub.repositories["lab/run"] = Repository({"main": {f"checkpoint/{name}": data for name, data in files.items()}})
    assert checkpoint_folder("lab/run").name == "checkpoint"


def test_reward_models_are_found_there_too(hub: Hub) -> None:
    hub.repositories["lab/latent"] = Repository({"main": files_of(shipped_weights("latent_reward"))})
    reward = fp.build_reward("latent_preference", RewardOptions(latent_preference=Path("lab/latent")))
    assert same_weights(reward.model, LatentReward.load())  # type: ignore[attr-defined]


def test_post_training_starts_from_a_generator_there_and_leaves_pipelines_to_diffusers(hub: Hub) -> None:
    assert isinstance(build_policy_adapter("lab/small"), ARFlowAdapter)
    hub.repositories["lab/pipeline"] = Repository({"main": {"model_index.json": b"{}"}})
    assert not isinstance(build_policy_adapter("lab/pipeline"), ARFlowAdapter)


def test_a_folder_of_that_name_comes_first_and_a_mistyped_path_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    small_generator(seed=2).save_pretrained(tmp_path / "lab" / "small")
    assert same_weights(load_generator("lab/small"), small_generator(seed=2))
    with pytest.raises(BadInput, match="No checkpoint named lab/smal: use"):
        load_generator("lab/smal")
    assert hub.requests == []
    assert not any(map(is_hub_id, ("sft", "/a/b", "./a/b", "a/b/c", "a\\b", "a/", "lab/small", "https://a/b")))
    assert model_folder("./nothing/there") == Path("./nothing/there")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lab/nothing", r"There is no folder lab/nothing, and the Hub has no such model that you may read: check"),
        ("lab/private", r"There is no folder lab/private, and the Hub has no such model that you may read: check"),
        ("lab/gated", r"The owners of lab/gated have to grant you access"),
        ("lab/empty", r"The model lab/empty on the Hub is no checkpoint: it has no model\.safetensors"),
        ("lab/a--b..c", r"Downloading lab/a--b\.\.c failed \("),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(hub: Hub, name: str, sentence: str) -> None:
    files = hub.repositories["lab/small"].revisions["main"]
    hub.repositories["lab/private"] = Repository({"main": files}, private=True)
    hub.repositories["lab/gated"] = Repository({"main": files}, gated=True)
    hub.repositories["lab/empty"] = Repository({"main": {"README.md": b"# Empty"}})
    with pytest.raises(BadInput, match=sentence) as caught:
        checkpoint_folder(name)
    assert "\n" not in str(caught.value)


def test_without_a_connection_a_new_name_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(BadInput, match=r"no folder lab/small, and the Hub cannot be asked .* HF_HUB_OFFLINE\.$"):
        checkpoint_folder("lab/small")


def test_a_download_that_breaks_off_is_one_sentence_and_goes_on_later(hub: Hub) -> None:
    hub.broken.add("model.safetensors")
    with pytest.raises(BadInput, match=r"^Downloading lab/small failed \(.*\): try again\.$"):
        checkpoint_folder("lab/small")
    hub.broken.clear()
    assert same_weights(load_generator("lab/small"), small_generator())


def test_half_a_download_without_a_connection_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint_folder("lab/small") / "model.safetensors").unlink()
    hub_module._download.cache_clear()
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(BadInput, match="Only a part of lab/small was downloaded before"):
        checkpoint_folder("lab/small")


def test_what_was_pushed_is_what_is_loaded(hub: Hub) -> None:
    address = small_generator(seed=3).push_to_hub("lab/mine", private=True, token=TOKEN, commit_message="First")
    assert address == f"{hub.address}/lab/mine"
    repository = hub.repositories["lab/mine"]
    assert (repository.private, repository.messages) == (True, ["First"])
    assert set(repository.revisions["main"]) == {"README.md", "config.json", "model.safetensors"}
    card = repository.revisions["main"]["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "flowportrait"
    repository.private = False
    assert same_weights(load_generator("lab/mine"), small_generator(seed=3))
    small_generator(seed=4).push_to_hub("lab/mine", token=TOKEN)
    assert len(repository.messages) == 2


def test_a_shipped_generator_is_pushed_with_its_own_card(hub: Hub) -> None:
    pipeline = fp.AnimatePipeline.from_pretrained("rl", denoise=False)
    pipeline.push_to_hub("lab/rl", token=TOKEN)
    pushed = hub.repositories["lab/rl"].revisions["main"]
    assert pushed["README.md"] == (shipped_weights("rl") / "README.md").read_bytes()
    pipeline.generator.push_to_hub("lab/tuned", token=TOKEN)
    card = hub.repositories["lab/tuned"].revisions["main"]["README.md"].decode()
    assert "license_name: flowportrait-weights-research" in card.split("---")[1]
    assert "Trained from `rl`" in card


@pytest.mark.parametrize("token", [None, "hf_reader"])
def test_a_push_without_the_right_is_one_sentence(hub: Hub, token: str | None) -> None:
    with pytest.raises(BadInput, match=r"The Hub refuses to write lab/mine \(403\): log in .* that may write it\.$"):
        small_generator().push_to_hub("lab/mine", **({"token": token} if token else {}))


@pytest.mark.parametrize("name", ["mine", "a/b/c", "lab/mine@v1", ""])
def test_a_push_to_no_name_asks_nobody(hub: Hub, name: str) -> None:
    with pytest.raises(BadInput, match="give ORGANISATION/NAME or USER/NAME"):
        small_generator().push_to_hub(name)
    assert hub.requests == []


def test_a_trainer_without_a_checkpoint_has_nothing_to_push(hub: Hub) -> None:
    with pytest.raises(BadInput, match="call train first"):
        fp.PostTrainer("sft", train_prompts="prompts", output_dir="nowhere").push_to_hub("lab/mine", token=TOKEN)


def test_without_the_library_one_sentence_names_the_extra(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowportrait.extras._is_installed", lambda package: False)
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    with pytest.raises(BadInput, match=r"huggingface_hub: run pip install 'flowportrait\[hub\]'"):
        checkpoint_folder("lab/small")


@pytest.mark.slow
def test_the_command_line_takes_the_name_and_the_address_of_another_server(hub: Hub, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    words = ["export", "--checkpoint", "lab/nothing", "--output", "step.onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "flowportrait", *words], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "the Hub has no such model" in done.stderr
    words[2] = "lab/small"
    done = subprocess.run(
        [sys.executable, "-m", "flowportrait", *words], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "step.onnx").is_file()
