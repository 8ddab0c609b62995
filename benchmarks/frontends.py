"""What an audio front end brings on speakers nobody trained on: lips regressed on its features, equal budgets.

    python benchmarks/frontends.py --corpus CORPUS [--seeds 0 1] [--steps 300] [--only mel whisper phones wakeword]
                                   [--wakeword FOLDER]

Front ends: ``mel`` (log-mel, look-ahead 112 ms), ``whisper`` (first layer of Whisper tiny.en, streamable, 118 ms),
``wakeword`` (the speech embedding of openWakeWord; FOLDER holds ``melspectrogram.onnx`` and ``embedding_model.onnx``,
both in the wheel openwakeword 0.4.0; 76-column windows that end 100 ms after the frame, no further look-ahead),
``phones`` (posteriors of the 42 phones of PocketSphinx's American English model, ``pip install pocketsphinx``;
its features reach 40 ms ahead, and their mean is the whole clip's).
Each is followed by the same small convolutional reader (``audio_encoder.LipReader``), trained without augmentation.
Figures: correlation with real motion per clip, averaged; ``frame_rms`` (lips open as it is loud) must lose.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from generator import correlation

from flowportrait.data.corpus import FaceClip
from flowportrait.data.motion_dataset import MotionClip, load_motion_clips
from flowportrait.evaluation.motion_metrics import frame_rms
from flowportrait.media.mel import MELS_PER_FRAME, normalize_loudness
from flowportrait.models.pretrain import train_lips
from flowportrait.models.speech_encoder import SPEECH_DIM, LipRegression, SpeechEncoder
from flowportrait.models.training_clips import lip_opening_per_number
from flowportrait.rendering.motion_basis import LOWER_FACE

WIDTH = 128
PHONES = 42
SCORE = 1024 * float(np.log(1.0001))
"""One unit of a logged cost as a natural log-likelihood."""
SOFTENED = 5.0
"""Likelihoods of neighbouring columns are not independent: taken at full weight they would say yes or no."""
_PAST_COLUMNS, _AHEAD_COLUMNS = 76, 10

Listen = Callable[[MotionClip], torch.Tensor]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, required=True)
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--only", nargs="+", default=["mel", "whisper"])
    options.add_argument("--wakeword", type=Path)
    given = options.parse_args()
    torch.set_num_threads(1)
    training = load_motion_clips(given.corpus, ("reward", "evaluation", "train"))
    dev = load_motion_clips(given.corpus, ("dev",))
    show("loudness", dev, lambda clip: loud(given.corpus, clip))
    encoder = SpeechEncoder().load_weights().eval()
    front_ends: dict[str, tuple[Listen, int]] = {
        "mel": (lambda clip: clip.mel.reshape(-1, 4 * clip.mel.shape[1]), 0),
        "whisper": (lambda clip: encoder(clip.mel[None])[0], SPEECH_DIM),
    }
    if given.wakeword:
        front_ends["wakeword"] = (wakeword(given.wakeword, given.corpus), 96)
    if "phones" in given.only:
        front_ends["phones"] = (phones(given.corpus), MELS_PER_FRAME * PHONES)
    for name in given.only:
        listen, inputs = front_ends[name]
        heard, held_out = ([replace(clip, mel=listen(clip)) for clip in part] for part in (training, dev))
        for seed in given.seeds:
            torch.manual_seed(seed)
            reader = LipRegression("mel" if name == "mel" else "features", WIDTH, inputs=inputs)
            train_lips(reader, heard, given.steps, 1.0, seed, lambda loss: None)
            show(f"{name} seed {seed}", held_out, lambda clip, reader=reader: read(reader, clip))  # type: ignore[misc]


@torch.no_grad()
def read(reader: LipRegression, clip: MotionClip) -> torch.Tensor:
    """Predicted motion ``[T, 30]`` of a clip, lips only."""
    predicted = reader(clip.mel[None].float())[0, : len(clip.motion)]
    motion = torch.zeros_like(clip.motion)
    motion[:, LOWER_FACE] = reader.lips(predicted[None], clip.style[None])[0]
    return motion


def loud(corpus: Path, clip: MotionClip) -> torch.Tensor:
    """All lips open as the sound gets louder."""
    sound = FaceClip.load(corpus / "clips" / f"{clip.name}.safetensors").audio
    track = torch.from_numpy(frame_rms(sound, len(clip.motion), 1.0)).float()
    return track[:, None] * lip_opening_per_number()[None]


def show(name: str, clips: list[MotionClip], predict: Callable[[MotionClip], torch.Tensor]) -> None:
    """One row: by source, lip gap and lower face."""
    opening, rows = lip_opening_per_number(), []
    for source in ("anchors", "grid"):
        values = []
        for clip in (clip for clip in clips if clip.name.startswith(source)):
            made = predict(clip)
            lower = correlation(made[:, :8].T, clip.motion[:, :8].T).mean()
            values.append((float(correlation(made @ opening, clip.motion @ opening)), float(lower)))
        if values:
            gap, low = np.mean(values, axis=0)
            rows.append(f"{source} gap {gap:.3f} lower {low:.3f}")
    print(f"{name:16s} {'  '.join(rows)}", flush=True)


def wakeword(folder: Path, corpus: Path) -> Listen:
    """openWakeWord's embedding, one overlapping window per video frame."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    mel, embed = (
        onnxruntime.InferenceSession(folder / name, settings, providers=["CPUExecutionProvider"])
        for name in ("melspectrogram.onnx", "embedding_model.onnx")
    )

    def listen(clip: MotionClip) -> torch.Tensor:
        sound = normalize_loudness(FaceClip.load(corpus / "clips" / f"{clip.name}.safetensors").audio)
        padded = np.pad(sound, (160 * _PAST_COLUMNS, 160 * 2 * _AHEAD_COLUMNS))[None].astype(np.float32) * 32767
        columns = mel.run(None, {mel.get_inputs()[0].name: padded})[0].squeeze() / 10 + 2
        ends = [4 * (t + 1) + _AHEAD_COLUMNS for t in range(len(clip.motion))]
        windows = np.stack([columns[end : end + _PAST_COLUMNS] for end in ends])[..., None].astype(np.float32)
        out = embed.run(None, {embed.get_inputs()[0].name: windows})[0]
        return torch.from_numpy(out.reshape(len(windows), -1))

    return listen


def phones(corpus: Path) -> Listen:
    """Log posteriors of PocketSphinx's phones: the best of each phone's three context-free states, over all phones."""
    from pocketsphinx import Config, Decoder, get_model_path

    model, logs = Path(get_model_path()) / "en-us", Path(tempfile.mkdtemp())
    decoder = Decoder(Config(
        hmm=str(model / "en-us"), allphone=str(model / "en-us-phone.lm.bin"), lm=None, dict=None, compallsen=True,
        senlogdir=str(logs), loglevel="ERROR", dither=False,
    ))  # fmt: skip

    def listen(clip: MotionClip) -> torch.Tensor:
        sound = normalize_loudness(FaceClip.load(corpus / "clips" / f"{clip.name}.safetensors").audio)
        decoder.start_utt()
        decoder.process_raw((sound * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        [log] = logs.iterdir()
        scores = senone_scores(log.read_bytes())[:, : 3 * PHONES]
        log.unlink()
        likely = torch.from_numpy(-SCORE * scores.reshape(len(scores), PHONES, 3).min(2))
        columns = (likely / SOFTENED).log_softmax(1).clamp_min(-10) / 5 + 1
        wanted = MELS_PER_FRAME * len(clip.motion)
        whole = torch.cat([columns, columns[-1:].repeat(max(0, wanted - len(columns)), 1)])[:wanted]
        return whole.reshape(len(clip.motion), -1)

    return listen


def senone_scores(log: bytes) -> np.ndarray:
    """Costs ``[T, senones]`` that PocketSphinx logged with ``compallsen``: a header, then a count and as many int16."""
    head = log.index(b"endhdr\n")
    senones = int(log[:head].split(b"n_sen ")[1].split()[0])
    return np.frombuffer(log[head + 11 :], np.int16).reshape(-1, 1 + senones)[:, 1:].astype(np.float32)


if __name__ == "__main__":
    main()
