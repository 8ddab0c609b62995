"""Every network is wholly on the device that it is placed on, computes there alone, and nearly the same in bfloat16.

Tensors of the ``meta`` device have shapes but no numbers: an operation that mixes them with tensors of the CPU fails,
so that a network that computes there needs nothing that was left behind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flowportrait import devices
from flowportrait.devices import default_device, device_of, limit_threads, onnx_providers, place_network, use_device
from flowportrait.errors import BadInput
from flowportrait.evaluation import networks as evaluation
from flowportrait.evaluation.lip_sync import PixelSyncExpert
from flowportrait.media.occlusion import OcclusionNet
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.enhancer import Isolator, load_enhancer
from flowportrait.models.patch_flow import PatchFlow, PatchFlowConfig
from flowportrait.models.sampler import ChunkSampler, sample_from_mel, sample_motion
from flowportrait.portraitgen.still_flow import PortraitFlow
from flowportrait.preferences.latent_reward import LatentReward
from flowportrait.preferences.reward_model import MotionReward
from flowportrait.rendering.retouch_network import MouthWindows, RetouchNet, example_windows
from flowportrait.rendering.vae_codec import TinyAutoencoder
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.face import FaceNet
from flowportrait.rewards.registry import build_reward
from flowportrait.rewards.sync import MotionSyncExpert
from tests.models.test_generator_live import TINY
from tests.models.test_generator_live import build as tiny

CUDA = pytest.mark.gpu
Forward = Callable[[nn.Module, torch.device], torch.Tensor]


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    """Motion and log-mel of two clips of 30 frames."""
    return rand(2, 30, 30), rand(2, 120, 80)


def chunks(model: ARFlow, device: torch.device) -> torch.Tensor:
    """Two chunks of two clips: front end, backbone, head and the space of latents."""
    with torch.no_grad():
        condition = model.condition(0.3 * rand(2, 32, 80))
    sampler = ChunkSampler(model, condition, [1, 2])
    return torch.cat([sampler.draw(), sampler.draw()], 1)


def latent_reward(model: LatentReward, device: torch.device) -> torch.Tensor:
    config = model.config
    return model(rand(2, 3, 30 * config.chunk), 0.5, rand(2, 3, config.audio_width), rand(2, 30)).mean


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Forward]] = {
    "generator": (lambda: tiny(TINY), chunks),
    "generator on log-mel": (lambda: tiny(replace(TINY, front_end="mel", anchor=False)), chunks),
    "shipped generator": (lambda: load_generator("rl"), chunks),
    "enhancer": (lambda: copy.deepcopy(load_enhancer()), lambda net, at: net(rand(1, 9, 320).to(at))[0]),
    "isolator": (lambda: isolator(), lambda net, at: isolated(net, at)),
    "picture generator": (
        lambda: perturbed(PatchFlow(PatchFlowConfig(grid=2, depth=8))),
        lambda net, at: net.velocity(rand(2, 32).to(at), torch.tensor(0.5), rand(2, net.config.hidden + 64).to(at)),
    ),
    "portrait generator": (
        PortraitFlow,
        lambda net, at: net.velocity(
            rand(2, net.latent_dim).to(at), torch.tensor(0.5), net.attributes_in(rand(2, 5).to(at))
        ),
    ),
    "retouching": (lambda: perturbed(RetouchNet()), lambda net, at: net(windows(at))[1]),
    "occlusion": (OcclusionNet, lambda net, at: net(rand(1, 3, 64, 64).to(at))),
    "autoencoder": (lambda: TinyAutoencoder(4, False), lambda net, at: net.encode(rand(1, 3, 32, 32).to(at)).latents),
    "sync reward": (lambda: copy.deepcopy(MotionSyncExpert.load()), lambda net, at: net.score(*clips())[0]),
    "sync evaluation": (
        lambda: copy.deepcopy(PixelSyncExpert.load()),
        lambda net, at: net.score(100 * rand(2, 9, 48, 64), rand(2, 36, 80))[0],
    ),
    "face network": (lambda: copy.deepcopy(FaceNet.load()), lambda net, at: net(rand(2, 3, 128, 128).sigmoid())),
    "image features": (lambda: copy.deepcopy(evaluation._mobilenet()), lambda net, at: net(rand(1, 3, 64, 64).to(at))),
    "preference reward": (
        lambda: copy.deepcopy(MotionReward.load()),
        lambda net, at: net(*clips()) + net.frame_scores(*clips()).mean(1),
    ),
    "latent reward": (lambda: copy.deepcopy(LatentReward.load()), latent_reward),
}  # fmt: skip


def windows(device: torch.device) -> MouthWindows:
    torch.manual_seed(1)
    return MouthWindows(*(part.to(device) for part in example_windows()))


def perturbed(net: nn.Module) -> nn.Module:
    """With random weights where the untrained network has zeros."""
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return net


def isolator() -> Isolator:
    found = load_enhancer().isolator
    assert found is not None
    return copy.deepcopy(found)


def isolated(net: nn.Module, device: torch.device) -> torch.Tensor:
    """The isolator's layers, from spectra on; its running means are a loop over numbers, which ``meta`` has none of."""
    assert isinstance(net, Isolator)
    if device.type == "meta":
        return net.mel(torch.empty(5, 161, dtype=torch.complex64, device=device))
    sound = 0.1 * rand(640 * 8)
    return net(sound, net.initial_state())


ROUGHER = {"generator": 0.2, "generator on log-mel": 0.2, "face network": 0.08}
"""Relative errors in bfloat16 that may be larger: of random weights, and of 28 layers."""


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def network(name: str) -> tuple[nn.Module, Forward]:
    torch.manual_seed(0)
    make, forward = NETWORKS[name]
    return make().eval(), forward


def test_a_network_is_wholly_on_its_device_and_needs_nothing_from_another(network: tuple[nn.Module, Forward]) -> None:
    net, forward = network
    place_network(net, "meta")
    assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers())} == {"meta"}
    with torch.no_grad():
        assert forward(net, torch.device("meta")).device.type == "meta"


def test_half_precision_computes_nearly_the_same(name: str, network: tuple[nn.Module, Forward]) -> None:
    net, forward = network
    with torch.no_grad():
        exact = forward(net, torch.device("cpu"))
        before = {name: value.dtype for name, value in net.state_dict().items()}
        place_network(net, dtype=torch.bfloat16)
        rough = forward(net, torch.device("cpu"))
    after = {name: value.dtype for name, value in net.state_dict().items()}
    assert any(after[name] == torch.bfloat16 for name in after)
    assert all(after[name] in (before[name], torch.bfloat16) for name in after)
    assert rough.dtype == torch.float32
    # bfloat16 keeps 8 bits: a relative error of 0.4 % a product, some of which remain in the end.
    error = (rough - exact).square().mean().sqrt() / exact.square().mean().sqrt().clamp_min(1e-6)
    assert 0 < error < ROUGHER.get(name, 0.05)


@CUDA
def test_a_graphics_processor_computes_what_the_cpu_does(network: tuple[nn.Module, Forward]) -> None:
    net, forward = network
    with torch.no_grad():
        ours = forward(net, torch.device("cpu"))
        theirs = forward(place_network(net, "cuda"), torch.device("cuda"))
    assert theirs.device.type == "cuda"
    assert torch.allclose(ours, theirs.cpu(), atol=1e-2, rtol=1e-2)


def test_a_generator_in_half_precision_performs_nearly_the_same() -> None:
    """Over four seconds, in standard deviations of real motion; errors add up from chunk to chunk."""
    exact, rough = load_generator("rl"), load_generator("rl", dtype=torch.bfloat16)
    sound = 0.1 * np.random.default_rng(0).normal(size=(1, 640 * 100)) * (1 + np.sin(np.arange(64_000) / 900))
    ours, theirs = (sample_motion(model, sound.astype(np.float32), [3]) for model in (exact, rough))
    assert theirs.dtype == torch.float32
    assert 0 < (ours - theirs).square().mean().sqrt() < 0.15 * ours.square().mean().sqrt()


@CUDA
def test_a_graphics_processor_performs_what_the_cpu_does() -> None:
    sound = (0.1 * np.random.default_rng(0).normal(size=(2, 640 * 48))).astype(np.float32)
    ours, theirs = (
        sample_motion(load_generator("rl", device), sound, [3, 4], enhancer=load_enhancer(device=device))
        for device in ("cpu", "cuda")
    )
    assert theirs.device.type == "cpu"
    assert torch.allclose(ours, theirs, atol=0.05)


def test_what_is_loaded_in_a_context_is_placed_there_and_nothing_else() -> None:
    with use_device("meta"):
        inside = MotionSyncExpert.load()
        told_otherwise = MotionSyncExpert.load(device="cpu")
        generator = load_generator("sft")
        nets = evaluation.load_evaluation_networks()
    assert device_of(inside).type == device_of(generator).type == "meta"
    assert isinstance(nets.texture, evaluation.MobileNetFeatures)
    assert device_of(nets.texture._layers).type == "meta"
    assert device_of(told_otherwise).type == "cpu"
    assert MotionSyncExpert.load() is told_otherwise
    assert MotionSyncExpert.load(device="meta") is inside
    assert default_device() == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("reward", ["sync", "preference"])
def test_a_reward_answers_on_the_cpu_wherever_its_network_is(reward: str) -> None:
    """In half precision, which stands in for another device where there is none."""
    batch = RewardBatch(rand(2, 30, 30), rand(2, 120, 80))
    exact = build_reward(reward)(batch).value
    with use_device("cpu", torch.bfloat16):
        rough = build_reward(reward)(batch).value
    assert rough.device.type == "cpu"
    assert not torch.equal(rough, exact)
    assert torch.allclose(rough, exact, atol=0.1)


def test_networks_of_onnx_run_where_the_runtime_can(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    assert onnx_providers() == ["CPUExecutionProvider"]
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    assert onnx_providers("cuda:0") == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert onnx_providers("cpu") == ["CPUExecutionProvider"]
    with use_device("cuda"):
        assert onnx_providers() == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert onnx_providers("cuda") == ["CPUExecutionProvider"]


def test_a_network_without_any_numbers_is_on_the_cpu() -> None:
    assert device_of(nn.ReLU()) == torch.device("cpu")


def test_placing_twice_and_back_changes_nothing_but_the_rounding(tmp_path: Path) -> None:
    model = tiny(TINY)
    mel = rand(1, 48, 80)
    exact = sample_from_mel(model, mel, [1])
    hooks = [len(part._forward_pre_hooks) for part in place_network(model, dtype=torch.bfloat16).modules()]
    assert [len(part._forward_pre_hooks) for part in place_network(model, dtype=torch.bfloat16).modules()] == hooks
    back = sample_from_mel(model.float(), mel, [1])
    assert torch.allclose(back, exact, atol=0.1)
    model.save_pretrained(tmp_path)
    assert torch.allclose(sample_from_mel(ARFlow.from_pretrained(tmp_path), mel, [1]), back, atol=0.05)
    assert devices.read_weights(tmp_path / "model.safetensors")["motion_in.weight"].dtype == torch.float32


def test_items_are_computed_with_one_thread_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inside = []
        for _ in limit_threads(inside.append(torch.get_num_threads()) for _ in range(3)):
            assert torch.get_num_threads() == 2
        assert inside == [1, 1, 1]

        def fails() -> Iterator[int]:
            yield 1
            raise BadInput("no more")

        with pytest.raises(BadInput):
            list(limit_threads(fails()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
