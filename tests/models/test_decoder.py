"""The generator's own decoder, speech layer, mel scale and filters say what the libraries say that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import butter, lfilter, sosfilt, sosfilt_zi
from transformers import DynamicCache, Qwen3Config, Qwen3Model, WhisperConfig
from transformers.audio_utils import hertz_to_mel as reference_mel
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from flowportrait.media.mel import hertz_to_mel, mel_filterbank, mel_to_hertz
from flowportrait.media.video import FPS
from flowportrait.models.backbone import Decoder, sliding_mask
from flowportrait.models.enhancer import MEAN_DECAY, running_mean
from flowportrait.models.speech_encoder import WIDTH, EncoderLayer
from flowportrait.rendering.motion_filters import BROWS_5_HZ, HEAD_3_HZ, Biquad

SIZES = [(192, 4, 4, 16), (32, 2, 2, 4)]
"""Hidden, heads, layers, window: those of the shipped generators, and small ones."""


def both(hidden: int, heads: int, layers: int, window: int) -> tuple[Qwen3Model, Decoder]:
    """The decoder of transformers and ours, made from the same seed."""
    config = Qwen3Config(
        vocab_size=1, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=hidden // heads,
        layer_types=["sliding_attention"] * layers, use_sliding_window=True, sliding_window=window, max_window_layers=0,
        attention_dropout=0.0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(3)
    theirs = Qwen3Model(config)
    torch.manual_seed(3)
    return theirs, Decoder(hidden, heads, layers, window)


@pytest.mark.parametrize("size", SIZES)
def test_the_decoder_begins_with_the_weights_of_transformers(size: tuple[int, int, int, int]) -> None:
    theirs, ours = (model.state_dict() for model in both(*size))
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [1, 3, 4, 15, 16, 40])
def test_its_states_and_gradients_are_theirs_to_the_bit(size: tuple[int, int, int, int], tokens: int) -> None:
    theirs, ours = both(*size)
    x = torch.randn(2, tokens, size[0])
    states = theirs(inputs_embeds=x, use_cache=False).last_hidden_state, ours(x)
    assert torch.equal(*states)
    for state in states:
        state.square().sum().backward()
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pieces", [[1] * 30, [3, *[1] * 20], [20, 1, 1, 1], [2, 3, 1, 4]])
def test_with_a_cache_it_goes_on_as_they_do_beyond_the_window(
    size: tuple[int, int, int, int], pieces: list[int]
) -> None:
    theirs, ours = both(*size)
    their_cache, our_cache = DynamicCache(config=theirs.config), ours.new_cache()
    with torch.no_grad():
        for piece in pieces:
            x = torch.randn(2, piece, size[0])
            state = theirs(inputs_embeds=x, past_key_values=their_cache, use_cache=True).last_hidden_state
            assert torch.equal(state, ours(x, our_cache))
    assert our_cache.layers[0] is not None
    assert our_cache.layers[0].keys.shape[2] == min(sum(pieces), size[3] - 1)


def test_recomputed_activations_give_the_same_gradients() -> None:
    x, gradients = torch.randn(2, 9, 32), []
    for recompute in (False, True):
        _, model = both(*SIZES[1])
        if recompute:
            model.recompute_activations()
        model.train()(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_token_sees_itself_and_the_window_before_it() -> None:
    mask = sliding_mask(5, 5, 3, torch.device("cpu"))
    assert mask is not None
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0],
                                         [0, 0, 1, 1, 1]]  # fmt: skip
    assert sliding_mask(5, 5, 6, torch.device("cpu")) is None


def test_the_speech_layer_is_whispers_to_the_bit() -> None:
    config = WhisperConfig(d_model=WIDTH, encoder_layers=1, encoder_attention_heads=6, encoder_ffn_dim=4 * WIDTH)
    config._attn_implementation = "sdpa"
    theirs, ours = WhisperEncoderLayer(config).eval(), EncoderLayer()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 20, WIDTH)
    everything = torch.ones(3, 1, 20, 20, dtype=torch.bool)
    with torch.no_grad():
        whole = ours(x, everything, slice(0, 20))
        assert torch.equal(theirs(x, everything), whole)
        assert torch.allclose(ours(x, everything[:, :, 5:9], slice(5, 9)), whole[:, 5:9], atol=1e-5)


def test_the_mel_scale_and_its_filters_are_slaneys() -> None:
    hertz = np.array([0.0, 50.0, 999.0, 1000.0, 1001.0, 7600.0])
    assert np.array_equal(hertz_to_mel(hertz), reference_mel(hertz.copy(), "slaney"))
    assert np.allclose(mel_to_hertz(hertz_to_mel(hertz)), hertz)
    theirs = mel_filter_bank(257, 80, 50.0, 7600.0, 16000, norm="slaney", mel_scale="slaney").astype(np.float32)
    assert np.array_equal(mel_filterbank().numpy(), theirs)


@pytest.mark.parametrize(("hertz", "biquad"), [(3.0, HEAD_3_HZ), (5.0, BROWS_5_HZ)])
def test_the_low_passes_of_head_and_brows_are_butterworths(hertz: float, biquad: Biquad) -> None:
    sections = butter(2, hertz, fs=FPS, output="sos")
    assert np.allclose(sections, [[*biquad.numerator, 1.0, *biquad.feedback]], rtol=1e-12)
    assert np.allclose(sosfilt_zi(sections), [biquad.settled], rtol=1e-12)
    track = np.random.default_rng(0).standard_normal((2, 50, 6)).astype(np.float32)
    wanted, end = sosfilt(sections, track, axis=1, zi=sosfilt_zi(sections)[:, None, :, None] * track[None, :, None, 0])
    state = biquad.initial_state(track[:, 0])
    pieces = [biquad.run(track[:, first : first + 7], state) for first in range(0, 50, 7)]
    assert np.allclose(np.concatenate(pieces, 1), wanted, rtol=1e-12, atol=1e-14)
    assert np.allclose(state.swapaxes(0, 1), end[0], rtol=1e-12, atol=1e-14)


def test_a_running_mean_forgets_at_its_rate_however_it_is_cut() -> None:
    x, start = torch.randn(50, 4), torch.rand(4)
    wanted = lfilter([1 - MEAN_DECAY], [1, -MEAN_DECAY], x.double(), 0, MEAN_DECAY * start.double()[None])[0]
    state = {"mean": start}
    pieces = [running_mean(piece, state, "mean") for piece in x.split(7)]
    assert np.allclose(torch.cat(pieces), wanted, atol=1e-5)
    assert torch.equal(state["mean"].float(), pieces[-1][-1])
