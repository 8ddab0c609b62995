"""The instruments of lip sync side by side: what each tells apart on speakers and languages that it never saw."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tools.sync_clips import ClipMaker, SyncClip, footage_videos

import flowportrait.evaluation.sync_instruments as shipped
from benchmarks.material import use_one_thread
from benchmarks.record import Record
from flowportrait.commands.options import OptionalPath
from flowportrait.evaluation.lip_sync import SHORT_MAX_OFFSET, sync_from_embeddings
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.evaluation.sync_instruments import SyncInstrument
from flowportrait.rewards.sync import MotionSyncExpert
from flowportrait.training.joint_embedding import JointEmbedding

SHIFTS = (1, 2, 3, 5, 10, 15)
PIECE_FRAMES = 30
"""Frames of the pieces that longer clips are compared in: those of the short clips."""
MIN_WINDOWS = 8
OTHER_LANGUAGES = ("Language_hi", "Language_pl", "Language_pt", "Language_th")
"""Speakers of languages that no sync expert learned from, not even those of the split of the rewards."""
MAN_OF_GRID = "grid_s1"
Embeddings = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class SyncInstrumentsOptions:
    """Test every instrument of lip sync on speakers that it did not learn from.

    Accuracy says in how many comparisons the own sound fits better than a wrong one (chance 50 %), in pieces of about a
    second; its interval is over speakers, each of whom counts the same. A shifted sound is the real sound of the same
    clip, never silence. Controls that must lose: another sentence, a still face, a mouth that follows loudness. LSE-C
    at 0 is given for real mouths (the ceiling), for the same motion redrawn on portraits, and for the controls; its
    chance level is that of reversed sound. The reward's expert is beside them.
    """

    data: Path
    """Footage with split.tsv and london/."""
    work: Path
    """Folder of prepared clips; what is there is kept."""
    tracker: OptionalPath = None
    """lm_model0_opt.onnx of OpenSeeFace; without it the instrument that reads landmarks is left out."""
    clips: int = 12
    """Most videos of a speaker."""


class RememberingExpert(JointEmbedding):
    """An expert that embeds the same lips and the same sound once, because several instruments contain it."""

    def __init__(self, expert: JointEmbedding) -> None:
        super().__init__()
        self.WINDOW, self.DIM = expert.WINDOW, expert.DIM
        self._expert, self._known = expert, dict[tuple[str, bytes], torch.Tensor]()

    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """Embed lips ``[1, T, …]``."""
        return self._remember("face", lips, self._expert.embed_face)

    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Embed log-mel ``[1, 4T, 80]``."""
        return self._remember("voice", mel, self._expert.embed_audio)

    def _remember(self, kind: str, value: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        key = kind, hashlib.sha256(value.contiguous().numpy().tobytes()).digest()
        if key not in self._known:
            self._known[key] = embed(value)
        return self._known[key]


def sync_instruments(options: SyncInstrumentsOptions, record: Record) -> None:
    use_one_thread()
    instruments = shipped.sync_instruments(points=options.tracker is not None)
    instruments["reward"] = SyncInstrument("reward", "motion", (MotionSyncExpert.load(),), "reward speakers")
    experts = {expert: RememberingExpert(expert) for one in instruments.values() for expert in one.networks}
    instruments = {
        name: replace(one, networks=tuple(experts[expert] for expert in one.networks))
        for name, one in instruments.items()
    }
    maker = ClipMaker(options.work / "clips-dev", options.data, options.tracker, portrait_split="dev", portraits=6)
    videos = footage_videos(options.data, "dev", options.clips)
    videos += [v for v in footage_videos(options.data, "reward", 1, ("talkvid",)) if v.speaker in OTHER_LANGUAGES]
    clips = maker.make(videos)
    for group, members in _groups(clips).items():
        speakers = len({clip.speaker for clip in members})
        seconds = sum(map(len, members)) / 25
        record.note(f"{group}: {len(members)} clips ({seconds:.0f} s) of {speakers} speakers.")
        for instrument in instruments.values():
            _compare(instrument, members, f"accuracy, {group}", record)
            _score_kinds(instrument, members, f"LSE-C at 0, {group}", record)
        record.add("chance", "own sound against any wrong one", 0.5, group=f"accuracy, {group}")


def _groups(clips: Sequence[SyncClip]) -> dict[str, list[SyncClip]]:
    groups: dict[str, list[SyncClip]] = defaultdict(list)
    for clip in clips:
        if clip.speaker in OTHER_LANGUAGES:
            groups["other languages"].append(clip)
        if clip.name.startswith("anchors/"):
            groups["Arabic news"].append(clip)
        elif clip.speaker == MAN_OF_GRID:
            groups["GRID"].append(clip)
        elif clip.speaker not in OTHER_LANGUAGES or clip.speaker == "Language_pl":
            groups["in the wild"].append(clip)
    return dict(groups)


def _lips(instrument: SyncInstrument, clip: SyncClip, drawn: bool = False) -> np.ndarray:
    if drawn:
        return clip.drawn_mouth if instrument.reads == "mouth" else clip.drawn_points
    return {"mouth": clip.mouth, "points": clip.points, "motion": clip.motion}[instrument.reads]


# --- Accuracy ---


def _compare(instrument: SyncInstrument, clips: Sequence[SyncClip], group: str, record: Record) -> None:
    pairs = [instrument.embed(_lips(instrument, clip), clip.audio) for clip in clips]
    wins: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for place, (clip, (face, voice)) in enumerate(zip(clips, pairs, strict=True)):
        pieces = max(1, len(clip) // PIECE_FRAMES)
        for shift in SHIFTS:
            for signed in (-shift, shift):
                wins[f"sound ±{shift}"][clip.speaker] += shifted_wins(face, voice, signed, pieces)
        other = _other_sentence(clips, pairs, place)
        if other is not None:
            wins["other sentence"][clip.speaker] += _wins(face, voice, face, other, pieces)
        for control, order in (("still face", _still(clip)), ("loudness jaw", clip.loudness_driven())):
            wrong = instrument.embed(_lips(instrument, clip)[order], clip.audio)[0]
            wins[control][clip.speaker] += _wins(face, voice, wrong, voice, pieces)
        if instrument.reads != "motion":
            drawn = instrument.embed(_lips(instrument, clip, drawn=True), clip.audio)[0]
            for signed in (-5, 5):
                wins["redrawn, sound ±5"][clip.speaker] += shifted_wins(drawn, voice, signed, pieces)
    for test, by_speaker in wins.items():
        shares = np.array([np.mean(found) for found in by_speaker.values() if found])
        if len(shares):
            record.add(instrument.name, test, bootstrap_mean(shares), group=group)


def shifted_wins(face: np.ndarray, voice: np.ndarray, shift: int, pieces: int = 1) -> list[float]:
    """Return for every piece of a clip whether its own sound fits better than the sound ``shift`` frames later.

    Args:
        face: embeddings ``[W, D]`` of lips.
        voice: of sound, at the same times.
        shift: in frames; the sound at both times is the clip's own.
        pieces: how many pieces of equal length.

    Returns:
        1 or 0 for each piece, ½ where both fit the same; nothing where the clip is too short.
    """
    count, start = len(face) - abs(shift), max(0, -shift)
    if count < MIN_WINDOWS * pieces:
        return []
    own, late = slice(start, start + count), slice(start + shift, start + shift + count)
    return _wins(face[own], voice[own], face[own], voice[late], pieces)


def _wins(
    face: np.ndarray, voice: np.ndarray, other_face: np.ndarray, other_voice: np.ndarray, pieces: int
) -> list[float]:
    size = min(len(face), len(other_face), len(other_voice))
    own, other = (face * voice).sum(-1)[:size], (other_face[:size] * other_voice[:size]).sum(-1)
    gaps = [float(part.mean()) for part in np.array_split(own - other, pieces) if len(part)]
    return [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]


def _other_sentence(clips: Sequence[SyncClip], pairs: Sequence[Embeddings], place: int) -> np.ndarray | None:
    """Return the sound of the next clip of the same speaker, or of another speaker where there is none."""
    order = [(place + step) % len(clips) for step in range(1, len(clips))]
    same = [other for other in order if clips[other].speaker == clips[place].speaker]
    chosen = next(iter(same or order), None)
    return None if chosen is None else pairs[chosen][1]


def _still(clip: SyncClip) -> np.ndarray:
    return np.full(len(clip), len(clip) // 2)


# --- LSE-C ---


def _score_kinds(instrument: SyncInstrument, clips: Sequence[SyncClip], group: str, record: Record) -> None:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    pairs = [instrument.embed(_lips(instrument, clip), clip.audio) for clip in clips]
    for place, (clip, (face, voice)) in enumerate(zip(clips, pairs, strict=True)):
        mouths = {"real": face}
        if instrument.reads != "motion":
            mouths["redrawn"] = instrument.embed(_lips(instrument, clip, drawn=True), clip.audio)[0]
        for control, order in (("loudness jaw", clip.loudness_driven()), ("still face", _still(clip))):
            mouths[control] = instrument.embed(_lips(instrument, clip)[order], clip.audio)[0]
        sounds = {kind: (mouth, voice) for kind, mouth in mouths.items()}
        other = _other_sentence(clips, pairs, place)
        if other is not None:
            sounds["other sentence"] = (face, other)
        for kind, (mouth, sound) in sounds.items():
            size = min(len(mouth), len(sound))
            if size - 2 * SHORT_MAX_OFFSET < MIN_WINDOWS:
                continue
            measured = sync_from_embeddings(mouth[:size], sound[:size], SHORT_MAX_OFFSET)
            found[kind][clip.speaker].append(measured.lse_c_at_zero)
            if kind == "real":
                found["real, |offset|"][clip.speaker].append(abs(measured.offset))
                found["chance (reversed sound)"][clip.speaker].append(measured.chance)
    for kind, by_speaker in found.items():
        means = np.array([np.mean(values) for values in by_speaker.values()])
        record.add(instrument.name, kind, bootstrap_mean(means), group=group)
