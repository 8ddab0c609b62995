"""``AnimatePipeline``: the service that makes every talking video.

request ─► inputs ─► motion            ─► frames                     ─► signed file
           read      GenerationSession    MotionCodec, DubbedVideo      AnimatePipelineOutput.save

pipe = AnimatePipeline.from_pretrained("rl")
pipe("me.jpg", "me.wav").save("talking.mp4")                             # a photo
pipe.dub("interview.mp4", "translated.wav").save("dubbed.mp4")           # a video
pipe.drive("me.jpg", "actor.mp4").save("driven.mp4")                     # a photo with the motion of a video
pipe.conversation(["anna.jpg", "ben.jpg"], ["anna.wav", "ben.wav"])      # two speakers
pipe.stream("me.jpg", microphone).save("live.mp4")                       # speech that is still arriving
pipe.run(AnimateRequest(image=Path("me.jpg"), text="Hello."))            # any of these, as data
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from flowportrait.devices import Device, default_device, device_of
from flowportrait.errors import BadInput
from flowportrait.hub import UploadSettings
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, Sound
from flowportrait.media.mel import frame_count, normalize_quiet_recording
from flowportrait.media.portrait import Portrait
from flowportrait.media.stream import SoundBuffer
from flowportrait.media.video import FPS
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.conditioning import RewardSteering, encode_portraits
from flowportrait.models.enhancer import Enhancer, load_enhancer
from flowportrait.models.packed_networks import pack_networks
from flowportrait.models.prosody_motion import VoiceFollower, voice_follower
from flowportrait.models.sampler import GenerationSession
from flowportrait.pipelines.conversation import (
    draw_in_one_photo,
    draw_side_by_side,
    find_speaker_portraits,
    generate_conversation_motion,
)
from flowportrait.pipelines.driven import drive_portrait
from flowportrait.pipelines.guidance import (
    MotionCandidate,
    best_candidate,
    build_guidance,
    build_ranking_reward,
    score_candidates,
)
from flowportrait.pipelines.inputs import (
    MIN_SPEECH_SECONDS,
    AnimateInputs,
    AudioInput,
    ImageInput,
    NoProgressDisplay,
    PortraitCache,
    ProgressDisplay,
    check_duration,
    read_conversation_inputs,
    read_driver_inputs,
    read_inputs,
    read_speech,
    synthesize_speech,
)
from flowportrait.pipelines.output import AnimatePipelineOutput, AnimateStream, LazyFrames, MotionTrack, draw_frames
from flowportrait.pipelines.request import AnimateRequest, AnimateSettings
from flowportrait.provenance.manifest import VideoOrigin
from flowportrait.rendering.dubbing import DubbedVideo
from flowportrait.rendering.footage import Progress, no_progress, track_face_in_video
from flowportrait.rendering.motion_files import read_motion
from flowportrait.rendering.motion_filters import Controls
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rendering.retouch import retouch_network


class AnimatePipeline:
    """Makes talking videos from portraits or footage and speech, with one motion generator."""

    def __init__(
        self,
        generator: ARFlow,
        enhancer: Enhancer | None = None,
        *,
        name: str = "the generator",
        display: ProgressDisplay | None = None,
    ) -> None:
        """Create a pipeline from networks that are already loaded; ``from_pretrained`` loads them.

        Args:
            generator: the network that generates motion from speech.
            enhancer: removes noise from the speech before the generator hears it; None leaves it as it is.
            name: name of the generator in messages.
            display: shows the progress; by default nothing is shown.
        """
        self.generator, self.enhancer = generator, enhancer
        self.name, self.display = name, display or NoProgressDisplay()
        self.dtype, self._portraits = torch.float32, PortraitCache(self.display)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "rl",
        *,
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        denoise: bool = True,
        display: ProgressDisplay | None = None,
    ) -> AnimatePipeline:
        """Load a shipped generator (``rl``, ``sft``), one in a folder, or one on the Hub.

        Args:
            name: checkpoint name, folder of a checkpoint or a run, or ``org/name`` or ``org/name@revision`` on the Hub.
            device: device of the networks, such as ``cuda``; the CPU by default.
            dtype: number format in which matrix products are computed; float32 by default.
            denoise: load the enhancer, which removes noise from the speech before the generator hears it.
            display: shows the progress, such as the module ``flowportrait.terminal``.

        Raises:
            BadInput: there is no such checkpoint.
        """
        enhancer = load_enhancer(device=device, dtype=dtype) if denoise else None
        pipeline = cls(pack_networks(load_generator(name, device, dtype)), enhancer, name=str(name), display=display)
        pipeline.dtype = default_device(device, dtype)[1]
        return pipeline

    def push_to_hub(self, name: str, **settings: Unpack[UploadSettings]) -> str:
        """Upload the generator with the card that it was loaded with, and return its address on the Hub."""
        return self.generator.push_to_hub(name, card=getattr(self.generator.origin, "card", None), **settings)

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return device_of(self.generator)

    def __call__(
        self,
        image: ImageInput | Portrait,
        audio: AudioInput | None = None,
        *,
        text: str | None = None,
        voice: str | None = None,
        **settings: Unpack[AnimateSettings],
    ) -> AnimatePipelineOutput:
        """Animate a portrait.

        Args:
            image: photo, painting or drawing, as a file, ``[H, W, 3]`` uint8 RGB, or a Pillow image.
            audio: speech as a file, or samples ``[N]`` float32 at 16 kHz.
            text: text to speak instead of a recording.
            voice: the voice that speaks the text; see ``AnimateRequest.voice``.
            **settings: see ``AnimateRequest``.

        Returns:
            The video. Its motion is generated and its frames are drawn when they are first used.

        Raises:
            BadInput: an input or a setting cannot be used.
        """
        request = AnimateRequest(**settings)
        request.check()
        inputs = AnimateInputs(*read_speech(audio, text, voice))
        if not request.motion_in:
            check_duration(inputs.speech)
        return self._animate(self._portraits.find(image, request), inputs, request)

    def dub(
        self,
        video: str | Path,
        audio: AudioInput | None = None,
        *,
        text: str | None = None,
        voice: str | None = None,
        seed: int = 0,
        face: int | None = None,
        loop: bool = False,
        denoise: bool = True,
    ) -> AnimatePipelineOutput:
        """Dub a video: change only the lips so that they follow other speech, at the video's own frame rate.

        All else stays unchanged, and frames without a visible mouth keep their lips; ``undubbed_frames`` counts them.

        Args:
            video: the footage.
            audio: speech as a file, or samples ``[N]`` float32 at 16 kHz.
            text: text to speak instead of a recording.
            voice: the voice that speaks the text.
            seed: random seed of the motion.
            face: which face, counted from the left at the start of a shot, beginning at 1; the largest by default.
            loop: if the speech is longer, play the video forwards and backwards in turn until it ends; otherwise the
                result lasts as long as the video.
            denoise: remove noise from the speech before the generator hears it.

        Raises:
            BadInput: the video is unreadable or shows no face that can be dubbed, or one input lasts under 0.2 s.
        """
        request = AnimateRequest(video=Path(video), seed=seed, face=face, loop=loop, denoise=denoise)
        sound, speech = read_speech(audio, text, voice)
        name = str(audio) if isinstance(audio, (str, Path)) else "the speech"
        return self._dub(AnimateInputs(sound, speech, video=Path(video), sound_name=name), request)

    def drive(
        self,
        image: ImageInput | Portrait,
        clip: str | Path,
        audio: AudioInput | None = None,
        **settings: Unpack[AnimateSettings],
    ) -> AnimatePipelineOutput:
        """Move a portrait with the expression and the head of a person in a clip, at the clip's own frame rate.

        Args:
            image: photo, painting or drawing, as in ``__call__``.
            clip: video of the person.
            audio: sound that replaces that of the clip.

        Raises:
            BadInput: an input or a setting cannot be used, or the clip shows no face.
        """
        request = AnimateRequest(drive=Path(clip), **settings)
        request.check()
        inputs, portrait = read_driver_inputs(Path(clip), audio), self._portraits.find(image, request)
        return drive_portrait(self.codec(portrait), Path(clip), inputs, request, self.display)

    def conversation(
        self,
        images: list[ImageInput] | tuple[ImageInput, ...] | ImageInput,
        recordings: Sequence[AudioInput | tuple[int, AudioInput]],
        *,
        turns: bool = False,
        **settings: Unpack[AnimateSettings],
    ) -> AnimatePipelineOutput:
        """Animate two people who talk with each other; the silent one listens, nods and blinks.

        Args:
            images: photos of both, the left one first, or one photo that shows both.
            recordings: one per photo, both from the start; with ``turns`` pairs of a speaker (0 or 1) and a recording.
            turns: play the recordings one after the other.

        Raises:
            BadInput: an input cannot be used, or the only photo does not show two faces.
        """
        request = AnimateRequest(**settings)
        request.check()
        photos = images if isinstance(images, (list, tuple)) else [images, images]
        if len(photos) != 2 or len(recordings) < 2 or (len(recordings) > 2 and not turns):
            raise BadInput(
                f"A conversation of {len(photos)} photos and {len(recordings)} recordings is not possible: give two of "
                "each, or more recordings with turns=True."
            )
        by_speaker = [item if isinstance(item, tuple) else (index % 2, item) for index, item in enumerate(recordings)]
        return self._converse(
            read_conversation_inputs(photos, by_speaker, turns, request.background, self.display), request
        )

    def stream(
        self,
        image: ImageInput | Portrait,
        chunks: Iterable[np.ndarray | Sound] | None = None,
        *,
        text: str | None = None,
        voice: str | None = None,
        **settings: Unpack[AnimateSettings],
    ) -> AnimateStream:
        """Animate a portrait while the speech is still arriving; each chunk of 160 ms needs 120 ms of further sound.

        Args:
            image: photo, painting or drawing, as in ``__call__``.
            chunks: pieces of speech of any length: samples ``[n]`` float32 at 16 kHz, or ``Sound``.
            text: text to speak instead, sentence by sentence.
            voice: the voice that speaks the text.

        Raises:
            BadInput: an input or a setting cannot be used.
        """
        request = AnimateRequest(text=text, voice=voice, **settings)
        request.check()
        return self.run_stream(request, chunks, self._portraits.find(image, request))

    def run_stream(
        self,
        request: AnimateRequest,
        chunks: Iterable[np.ndarray | Sound] | None = None,
        portrait: Portrait | None = None,
    ) -> AnimateStream:
        """Animate the photo of a request while the speech is still arriving.

        Args:
            request: a photo and settings.
            chunks: pieces of speech; if None, the request's text is spoken.
            portrait: the face in the photo, if it was already found.

        Raises:
            BadInput: an input or a setting cannot be used.
        """
        request.check()
        request.check_stream()
        if portrait is None:
            if request.image is None:
                raise BadInput("There is nothing to animate: give --image.")
            portrait = self._portraits.find(request.image, request)
        if chunks is None:
            from flowportrait.speech.text_to_speech import prefetch

            chunks = prefetch(synthesize_speech(request.text or "", request.voice))
        tape = SoundBuffer(chunks)
        motion = self.stream_motion(
            tape, seed=request.seed, intensity=request.intensity, controls=request.controls(),
            guidance=self._guidance(request), portrait=portrait, denoise=request.denoise, style=request.style,
        )  # fmt: skip
        return AnimateStream(draw_frames(self.codec(portrait), motion, request.crop, live=True), tape, request.seed)

    def run(self, request: AnimateRequest, inputs: AnimateInputs | None = None) -> AnimatePipelineOutput:
        """Make the video that a request describes, with this pipeline's generator.

        Args:
            request: inputs and settings.
            inputs: the decoded inputs of the request, if they were already read.

        Raises:
            BadInput: an input or a setting cannot be used.
        """
        request.check_inputs()
        inputs = inputs or read_inputs(request, self.display)
        if inputs.video is not None:
            return self._dub(inputs, request)
        if len(inputs.photos) == 2:
            return self._converse(inputs, request)
        if not inputs.photos:
            raise BadInput("There is nothing to animate: give --image, --video or --speaker.")
        portrait = self._portraits.find(inputs.photos[0], request, inputs.photo_names[0])
        if inputs.drive is not None:
            return drive_portrait(self.codec(portrait), inputs.drive, inputs, request, self.display)
        return self._animate(portrait, inputs, request)

    def motion(
        self,
        audio: np.ndarray,
        *,
        seed: int = 0,
        intensity: float = 1.0,
        controls: Controls | None = None,
        guidance: RewardSteering | None = None,
        portrait: Portrait | None = None,
        denoise: bool = True,
        style: str = "auto",
    ) -> Iterator[torch.Tensor]:
        """Generate motion for a recording, chunk by chunk.

        Args:
            audio: samples ``[N]`` at 16 kHz.
            seed: random seed; like the other settings as in ``stream_motion``.

        Yields:
            Motion ``[≤ 4, 30]``, in total ``frame_count(audio)`` frames.

        Raises:
            BadInput: the audio lasts less than 0.2 s.
        """
        check_duration(audio)
        return self.stream_motion(
            [normalize_quiet_recording(audio)], seed=seed, intensity=intensity, controls=controls, guidance=guidance,
            portrait=portrait, denoise=denoise, style=voice_follower(style, audio) or "plain",
        )  # fmt: skip

    def stream_motion(
        self,
        pieces: Iterable[np.ndarray],
        *,
        seed: int = 0,
        intensity: float = 1.0,
        controls: Controls | None = None,
        guidance: RewardSteering | None = None,
        portrait: Portrait | None = None,
        denoise: bool = True,
        style: str | VoiceFollower = "auto",
    ) -> Iterator[torch.Tensor]:
        """Generate motion while the speech is still arriving.

        A chunk is ready when the sound reaches 120 ms past its end; the lengths of the pieces do not change the motion.

        Args:
            pieces: samples ``[n]`` float32 at 16 kHz, of any length.
            seed: random seed.
            intensity: how expressive the motion is, from 0.6 to 1.6.
            controls: scales of blinks, head motion and expression, and the gaze direction.
            guidance: reward that influences every chunk; see ``build_guidance``.
            portrait: the speaker, for a generator that uses vision.
            denoise: remove noise before the generator hears the speech.
            style: manner of speaking, see ``AnimateRequest.style``.

        Yields:
            Motion ``[≤ 4, 30]``.
        """
        session = GenerationSession(
            self.generator, seed, steering=guidance, intensity=intensity, enhancer=self.enhancer if denoise else None,
            portrait=encode_portraits(self.generator, [portrait] if portrait else []),
            follower=voice_follower(style) if isinstance(style, str) else style,
        )  # fmt: skip
        controlled = controls or Controls()
        for piece in pieces:
            yield from map(controlled, session.push(piece))
        yield from map(controlled, session.finish())

    def codec(self, portrait: Portrait) -> MotionCodec:
        """Return the codec that draws a portrait from motion, with its networks on the pipeline's device."""
        return MotionCodec(portrait, network=retouch_network(self.device, self.dtype))

    def dubbed_video(
        self,
        video: Path,
        speech: np.ndarray,
        *,
        seed: int = 0,
        intensity: float = 1.0,
        face: int | None = None,
        loop: bool = False,
        denoise: bool = True,
        progress: Progress = no_progress,
    ) -> DubbedVideo:
        """Track a video and generate lip motion for speech ``[N]`` at 16 kHz; see ``dub``."""
        check_duration(speech)
        footage = track_face_in_video(video, face, progress)
        span = len(footage) / float(footage.fps)
        if span < MIN_SPEECH_SECONDS:
            raise BadInput(f"{video} lasts {span:.2f} s, too short to dub: give longer footage or a photo as --image.")
        count = max(len(footage), math.ceil(len(speech) * footage.fps / SAMPLE_RATE)) if loop else len(footage)
        padded = np.zeros(math.ceil(count * FPS / footage.fps) * SAMPLES_PER_FRAME, np.float32)
        padded[: len(speech)] = speech[: len(padded)]
        motion = MotionTrack(lambda: self.motion(padded, seed=seed, intensity=intensity, denoise=denoise))
        return DubbedVideo(footage, motion, count, progress, retouch_network(self.device, self.dtype))

    def _animate(self, portrait: Portrait, inputs: AnimateInputs, request: AnimateRequest) -> AnimatePipelineOutput:
        controls, guidance = request.controls(), self._guidance(request)
        seed, count = request.seed, frame_count(inputs.speech)
        candidates: tuple[MotionCandidate, ...] = ()

        def generate(seed: int) -> Iterator[torch.Tensor]:
            return self.motion(
                inputs.speech, seed=seed, intensity=request.intensity, controls=controls, guidance=guidance,
                portrait=portrait, denoise=request.denoise, style=request.style,
            )  # fmt: skip

        if request.motion_in:
            controlled = controls(read_motion(request.motion_in))
            motion, count = MotionTrack(lambda: [controlled]), len(controlled)
        elif request.best_of > 1 and not request.prune:
            seeds = self.display.progress(range(seed, seed + request.best_of), request.best_of, "generating")
            candidates = tuple(score_candidates(generate, seeds, inputs.speech, build_ranking_reward(request.by)))
            chosen = best_candidate(candidates)
            seed, motion = chosen.seed, MotionTrack(lambda: [chosen.motion])
        else:
            motion = MotionTrack(lambda: generate(seed))
        frames = LazyFrames.of_portrait(self.codec(portrait), motion, request.crop, count)
        return AnimatePipelineOutput(
            frames, inputs.sound, motion.tensor, seed, VideoOrigin("portrait"), candidates=candidates,
            notes=inputs.notes, display=self.display,
        )  # fmt: skip

    def _dub(self, inputs: AnimateInputs, request: AnimateRequest) -> AnimatePipelineOutput:
        assert inputs.video is not None
        dubbed = self.dubbed_video(
            inputs.video, inputs.speech, seed=request.seed, face=request.face, loop=request.loop,
            denoise=request.denoise, progress=self.display.progress,
        )  # fmt: skip
        notes = [*inputs.notes, *filter(None, [dubbed.summary()])]
        if len(inputs.speech) > (len(dubbed) + 1) * SAMPLE_RATE / dubbed.fps:
            notes.append(
                f"Warning: {inputs.sound_name} is longer than {inputs.video}; it was cut at the end of the video. "
                "--loop repeats it."
            )
        return AnimatePipelineOutput(
            LazyFrames(lambda: iter(dubbed), len(dubbed)), inputs.sound, lambda: torch.cat(list(dubbed.lips)),
            request.seed, VideoOrigin("footage"), frame_rate=dubbed.fps, undubbed_frames=dubbed.undubbed_frames,
            notes=tuple(notes), display=self.display,
        )  # fmt: skip

    def _converse(self, inputs: AnimateInputs, request: AnimateRequest) -> AnimatePipelineOutput:
        shared = inputs.photos[0] is inputs.photos[1]

        def speak(track: np.ndarray, seed: int) -> torch.Tensor:
            chunks = self.motion(
                track, seed=seed, intensity=request.intensity, controls=request.controls(), denoise=request.denoise,
                style=request.style,
            )  # fmt: skip
            return torch.cat(list(chunks))

        motions = generate_conversation_motion(speak, inputs.speech, request.seed)
        size = request.size if shared else request.size or 512
        codecs = [self.codec(portrait) for portrait in find_speaker_portraits(inputs.photos, inputs.photo_names, size)]
        draw = draw_in_one_photo if shared else draw_side_by_side
        return AnimatePipelineOutput(
            LazyFrames(lambda: draw(codecs, motions), len(motions[0])), inputs.sound, lambda: torch.stack(motions),
            request.seed, VideoOrigin("portrait"), notes=inputs.notes, display=self.display,
        )  # fmt: skip

    def _guidance(self, request: AnimateRequest) -> RewardSteering | None:
        candidates = request.best_of if request.prune else 1
        return build_guidance(self.generator, request.guide, candidates, request.by, self.name, self.dtype)
