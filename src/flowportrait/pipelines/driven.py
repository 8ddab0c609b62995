"""A video of a portrait that a person in a clip drives: motion, frame rate and sound of the clip, face of the photo."""

from __future__ import annotations

from pathlib import Path

from flowportrait.pipelines.inputs import AnimateInputs, ProgressDisplay
from flowportrait.pipelines.output import AnimatePipelineOutput, LazyFrames, MotionTrack
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.provenance.manifest import VideoOrigin
from flowportrait.rendering.driver_motion import read_driver_motion
from flowportrait.rendering.renderer import MotionCodec


def drive_portrait(
    codec: MotionCodec, clip: Path, inputs: AnimateInputs, request: AnimateRequest, display: ProgressDisplay
) -> AnimatePipelineOutput:
    """Track the person in a clip, and return the video of the portrait that moves in the same way.

    Args:
        codec: draws the portrait.
        clip: video of the person.
        inputs: with the sound that the video plays.
        request: with the controls that are applied to the motion.
        display: shows the progress.

    Raises:
        BadInput: the clip is unreadable or shows no face, or a control is out of range.
    """
    controls = request.controls()
    driver = read_driver_motion(clip, progress=display.progress)
    motion = MotionTrack(lambda: [controls(driver.motion)])
    notes = (*inputs.notes, *filter(None, [driver.summary()]))
    return AnimatePipelineOutput(
        LazyFrames.of_portrait(codec, motion, request.crop, len(driver)), inputs.sound,
        lambda: controls(driver.at_25_fps()), request.seed, VideoOrigin("driven"), frame_rate=driver.fps,
        frames_without_face=driver.missing, notes=notes, display=display,
    )  # fmt: skip
