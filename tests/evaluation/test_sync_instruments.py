"""The instruments of lip sync: what they may see, where their curves peak, and which weights are the evaluation's."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from benchmarks.sync_instruments import shifted_wins
from tools.sync_clips import EVALUATION_LEFT_OUT, speaker_halves
from tools.train_sync_instruments import jitter_points

from flowportrait.errors import BadInput
from flowportrait.evaluation.openseeface import OpenSeeFace
from flowportrait.evaluation.sync_experts import LandmarkSyncExpert, LightASDSyncExpert, cepstra_of_mel
from flowportrait.evaluation.sync_instruments import SyncInstrument, sync_instruments
from flowportrait.files import shipped_weights
from flowportrait.media.audio import read_audio
from flowportrait.media.mel import log_mel
from flowportrait.samples import SPEECH
from flowportrait.training.joint_embedding import JointEmbedding

FRAMES = 32
EVALUATION_SHA256 = {
    "sync_light_asd/a.safetensors": "70035b635432d3f38d080febdf1ef5aa7dc39aac7bf9c890bae6e24cc650c060",
    "sync_light_asd/b.safetensors": "595f46c04f673b638fd1ea8bd650294cac21a1bc2e2e1579995892aa123dcff1",
    "sync_landmarks/model.safetensors": "aad0c0cc14e6e334a3c2f44eedfe9c143ebdb4750a283f05bd18ce3d34da4fa0",
}
"""The weights that were finished before any reward was tuned against something else than them."""


def small_experts() -> list[tuple[JointEmbedding, torch.Tensor]]:
    """Both kinds of networks with few channels, and lips that each can read."""
    torch.manual_seed(0)
    mouth = torch.nn.functional.interpolate(torch.rand(1, FRAMES, 6, 8), size=(48, 64), mode="bilinear") * 255
    points = torch.rand(1, FRAMES, 66, 2)
    return [
        (LightASDSyncExpert((4, 4, 8), spots=2).eval(), mouth),
        (LandmarkSyncExpert(8).eval(), points),
    ]


@pytest.mark.parametrize("place", [0, 1], ids=["pixels", "landmarks"])
def test_a_window_hears_only_its_own_frames_and_nothing_is_padded(place: int) -> None:
    net, lips = small_experts()[place]
    sound = torch.randn(1, 4 * FRAMES, 80)
    changed = sound.clone()
    changed[:, 4 * (FRAMES - 3) :] += 1
    with torch.no_grad():
        face, voice, other = net.embed_face(lips), net.embed_audio(sound), net.embed_audio(changed)
    assert face.shape == voice.shape == (1, FRAMES - net.WINDOW + 1, net.DIM)
    torch.testing.assert_close(voice.norm(dim=-1), torch.ones(voice.shape[:2]))
    assert torch.equal(voice[:, :-3], other[:, :-3])
    assert not torch.allclose(voice[:, -3:], other[:, -3:])


@pytest.mark.parametrize("place", [0, 1], ids=["pixels", "landmarks"])
def test_windows_of_lips_and_sound_are_at_the_same_time(place: int) -> None:
    """What changes frame f moves the same windows of the face as what changes its four columns does of the sound."""
    net, lips = small_experts()[place]
    sound, frame = torch.randn(1, 4 * FRAMES, 80), FRAMES // 2
    moved, louder = lips.clone(), sound.clone()
    moved[:, frame] = moved[:, frame].flip(-1)
    louder[:, 4 * frame : 4 * frame + 4] += 2
    with torch.no_grad():
        seen = (net.embed_face(moved) - net.embed_face(lips)).norm(dim=-1)[0]
        heard = (net.embed_audio(louder) - net.embed_audio(sound)).norm(dim=-1)[0]
    windows = torch.arange(len(seen)).float()
    centres = [float((change * windows).sum() / change.sum()) + net.WINDOW // 2 for change in (seen, heard)]
    assert centres == pytest.approx([frame, frame], abs=1.0)


class CoupledExpert(JointEmbedding):
    """Reads the same signal from lips and sound, as a perfect expert would."""

    WINDOW = 5
    DIM = 8

    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """Embed lips ``[B, T, 8]`` by their values at the middle of each window."""
        return torch.nn.functional.normalize(lips[:, 2:-2].float(), dim=-1)

    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Embed log-mel by the first bands of the middle frame."""
        return torch.nn.functional.normalize(mel[:, 8:-8:4, :8], dim=-1)


@pytest.mark.parametrize("late", [-4, 0, 3])
def test_the_curve_of_coupled_signals_has_its_peak_at_their_delay(late: int) -> None:
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.1, 640 * 100).astype(np.float32) * np.repeat(rng.uniform(0, 1, 400), 160).astype(np.float32)
    instrument = SyncInstrument("perfect", "mouth", (CoupledExpert(),), "nobody")
    mel = log_mel(audio)[::4, :8].numpy()
    measured = instrument.score(np.roll(mel, -late, axis=0), audio)
    assert measured is not None
    assert measured.offset == late
    assert measured.reach == 15
    assert (measured.lse_c_at_zero == measured.lse_c) == (late == 0)


def test_the_mean_of_two_networks_is_the_mean_of_their_similarities() -> None:
    torch.manual_seed(1)
    nets = tuple(LandmarkSyncExpert(8).eval() for _ in range(2))
    points = np.random.default_rng(2).random((FRAMES, 66, 2)).astype(np.float32)
    audio = np.random.default_rng(3).normal(0, 0.1, 640 * FRAMES).astype(np.float32)
    alone = [SyncInstrument("one", "points", (net,), "").embed(points, audio) for net in nets]
    face, voice = SyncInstrument("both", "points", nets, "").embed(points, audio)
    np.testing.assert_allclose((face * voice).sum(-1), np.mean([(f * v).sum(-1) for f, v in alone], 0), atol=1e-5)
    assert face.shape[1] == 2 * nets[0].DIM


def test_networks_of_different_windows_are_compared_at_the_same_middle_frames() -> None:
    torch.manual_seed(2)
    wide, narrow = LandmarkSyncExpert(8).eval(), PointsOfFiveFrames().eval()
    points = np.random.default_rng(4).random((FRAMES, 66, 2)).astype(np.float32)
    audio = np.random.default_rng(5).normal(0, 0.1, 640 * FRAMES).astype(np.float32)
    both = SyncInstrument("both", "points", (wide, narrow), "")
    face, voice = both.embed(points, audio)
    alone = [SyncInstrument("one", "points", (net,), "").embed(points, audio) for net in (wide, narrow)]
    similarity = [(f * v).sum(-1) for f, v in alone]
    assert both.window == 11
    np.testing.assert_allclose((face * voice).sum(-1), (similarity[0] + similarity[1][3:-3]) / 2, atol=1e-5)


class PointsOfFiveFrames(JointEmbedding):
    """Reads single points and bands at the middle of windows of five frames."""

    WINDOW = 5
    DIM = 4

    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """Embed points ``[B, T, 66, 2]`` by two of them."""
        return torch.nn.functional.normalize(lips[:, 2:-2, :2].flatten(2), dim=-1)

    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Embed log-mel by four bands."""
        return torch.nn.functional.normalize(mel[:, 8:-8:4, :4], dim=-1)


def test_too_short_or_silent_clips_are_not_measured() -> None:
    instrument = SyncInstrument("points", "points", (LandmarkSyncExpert(8).eval(),), "")
    rng = np.random.default_rng(0)
    points, audio = rng.random((28, 66, 2)), rng.random(640 * 28).astype(np.float32)
    assert instrument.score(points[:27], audio) is None
    assert instrument.score(points, audio[:0]) is None
    assert instrument.score(points, audio) is not None


def test_cepstra_are_those_of_the_usual_formula() -> None:
    """Mel-frequency cepstra of samples, computed as python_speech_features does, against those from our log-mel."""
    wave = read_audio(SPEECH)[:32_000]
    ours = cepstra_of_mel(log_mel(wave)).numpy()
    theirs = reference_cepstra(wave)
    count = min(len(ours), len(theirs))
    # Our column j is centred at sample 160 j + 80, theirs at 160 j + 200.
    same = [np.corrcoef(ours[1:count, k], theirs[: count - 1, k])[0, 1] for k in range(13)]
    assert min(same) > 0.8
    assert np.abs(ours[1:count].mean(0) - theirs[: count - 1].mean(0)).max() < theirs.std(0).max() / 2


def reference_cepstra(wave: np.ndarray) -> np.ndarray:
    """Cepstra ``[N, 13]`` by the defaults of python_speech_features."""
    from scipy.fft import dct

    samples = np.append(wave[0], wave[1:] - 0.97 * wave[:-1]) * 32768
    count = 1 + (len(samples) - 400) // 160
    frames = np.stack([samples[160 * i : 160 * i + 400] for i in range(count)])
    power = np.abs(np.fft.rfft(frames, 512)) ** 2 / 512
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 28) / 2595) - 1)
    bins = np.floor(513 * corners / 16_000)
    bank = np.zeros((26, 257))
    for j in range(26):
        low, mid, high = bins[j : j + 3].astype(int)
        bank[j, low:mid] = (np.arange(low, mid) - low) / (mid - low)
        bank[j, mid:high] = (high - np.arange(mid, high)) / (high - mid)
    cepstra = dct(np.log(np.maximum(power @ bank.T, 1e-12)), type=2, norm="ortho")[:, :13]
    cepstra *= 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    cepstra[:, 0] = np.log(np.maximum(power.sum(1), 1e-12))
    return cepstra


def test_mirrored_points_are_those_of_a_mirrored_face() -> None:
    """A face that is its own mirror image stays so, whichever side the augmentation shows."""
    places = {48: (-0.4, -0.2), 49: (-0.2, -0.3), 57: (-0.4, 0.2), 56: (-0.2, 0.3), 58: (-0.6, 0), 59: (-0.3, -0.1),
              65: (-0.3, 0.1), 6: (-1, 2), 7: (-0.5, 2.2)}  # fmt: skip
    opposite = {48: 52, 49: 51, 57: 53, 56: 54, 58: 62, 59: 61, 65: 63, 6: 10, 7: 9}
    points = np.zeros((66, 2), np.float32)
    for left, (x, y) in places.items():
        points[left], points[opposite[left]] = (x, y), (-x, y)
    batch = torch.from_numpy(np.broadcast_to(points, (64, 8, 66, 2)).copy())
    mean = jitter_points(batch, np.random.default_rng(0)).mean((0, 1))
    torch.testing.assert_close(mean, torch.from_numpy(points), atol=0.12, rtol=0.1)


def test_speakers_are_divided_into_disjoint_halves_of_about_the_same_size() -> None:
    counts = {"ann": 60, "bob": 50, "cem": 40, "dan": 30, "eve": 1, EVALUATION_LEFT_OUT[0]: 200}
    first, second = speaker_halves(name for name, count in counts.items() for _ in range(count))
    assert set(first) | set(second) == set(counts) - set(EVALUATION_LEFT_OUT)
    assert not set(first) & set(second)
    assert abs(sum(counts[name] for name in first) - sum(counts[name] for name in second)) <= 20


def test_a_sound_that_is_late_loses_against_the_own_one_and_silence_is_never_compared() -> None:
    face = np.random.default_rng(0).normal(size=(30, 16))
    face /= np.linalg.norm(face, axis=1, keepdims=True)
    assert shifted_wins(face, face, 3, 2) == [1.0, 1.0]
    assert shifted_wins(face, np.roll(face, 3, axis=0), 3, 2) == [0.0, 0.0]
    assert shifted_wins(face, face, 23) == []


def test_the_network_of_openseeface_is_asked_for_by_name(tmp_path) -> None:
    with pytest.raises(BadInput, match="lm_model0_opt"):
        OpenSeeFace(tmp_path / "none.onnx")


# --- What ships ---


def test_the_evaluation_s_weights_are_those_that_were_finished_before_any_reward_was_tuned() -> None:
    found = {name: hashlib.sha256(shipped_weights(name).read_bytes()).hexdigest() for name in EVALUATION_SHA256}
    assert found == EVALUATION_SHA256
    for name, digest in EVALUATION_SHA256.items():
        assert digest in (shipped_weights(name).parent / "README.md").read_text(encoding="utf-8")


def test_the_halves_learned_from_disjoint_speakers_and_none_from_those_of_the_reward() -> None:
    folder = shipped_weights("sync_light_asd")
    first, second = (set(json.loads((folder / f"{half}.json").read_text())["speakers"]) for half in "ab")
    landmarks = set(json.loads(shipped_weights("sync_landmarks/model.json").read_text())["speakers"])
    assert not first & second
    assert landmarks <= second
    assert not (first | second) & {"grid_s1", "hdtf_a", "hdtf_b"}


def test_every_instrument_has_its_name_and_reads_what_it_says() -> None:
    instruments = sync_instruments(points=True)
    assert list(instruments) == ["pixels", "pixels-a", "pixels-b", "pixels-ab", "pixels-all", "landmarks"]
    assert all(name == one.name and one.networks for name, one in instruments.items())
    assert "landmarks" not in sync_instruments(points=False)
