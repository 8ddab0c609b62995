"""Post-training from prompts on disk to a run folder: set-up, and resuming what is there.

recipe.json     the resolved recipe                    metrics.jsonl   one line per iteration
run.json        versions, seed, hashes of all inputs   samples/        held-out videos every k iterations
state/          to resume from                         checkpoint/     what to use: ``animate --checkpoint RUN``
events.jsonl    what happened to the run               latest/         the last averaged weights, where the
                                                       held-out evaluation chose an earlier ``checkpoint``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from flowportrait.checkpoints import load_generator
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.config import override, save, to_dict
from flowportrait.corpus.motion_set import TRAINING_SPLITS, load_motion
from flowportrait.errors import BadInput
from flowportrait.generator.portrait_tokens import encode_portraits
from flowportrait.media.audio import read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.posttrain.checkpoint import latest, read
from flowportrait.posttrain.drawing import Drawing
from flowportrait.posttrain.given import Given, GivenTask
from flowportrait.posttrain.given_clips import given_task
from flowportrait.posttrain.items import Item, sound, speech
from flowportrait.posttrain.loop import Job, Loop
from flowportrait.posttrain.manifest import flat, manifest, write_or_compare
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes import CARDS, named, read_recipe
from flowportrait.posttrain.task import TalkingTask
from flowportrait.posttrain.trainer import Trainer
from flowportrait.prompts import Prompt, read_prompts
from flowportrait.reward.composite import Composite
from flowportrait.terminal import say
from flowportrait.training.processes import on_main, one_voice, roll_call, tracking


def resolve(recipe: str, iterations: int | None, overrides: Sequence[str]) -> Recipe:
    """A recipe by name, or by the folder of a run that used it, with command-line changes applied.

    Raises:
        BadInput: unknown recipe, key or value.
    """
    path = Path(recipe)
    found = read_recipe(path / "recipe.json" if path.is_dir() else path) if path.exists() else named(recipe)
    return override(found, list(overrides) + ([f"iterations={iterations}"] if iterations is not None else []))


def from_pairs(recipe: Recipe) -> Recipe:
    """The recipe, learning from stated pairs, or from single rated clips if it compares with the whole batch.

    Raises:
        BadInput: it makes its own pairs, or needs the way to a sample, which a given clip does not have.
    """
    if not _needs_ends_alone(recipe):
        able = [name for name in CARDS if _needs_ends_alone(named(name))]
        raise BadInput(f"The recipe {recipe.name} does not go with --pairs: choose one of {', '.join(able)}.")
    given = replace(recipe.given or Given(), clips="rated" if recipe.credit.among == "batch" else "pairs")
    return replace(recipe, given=given, group_size=given.group_size)


def _needs_ends_alone(recipe: Recipe) -> bool:
    drawn_without_path = isinstance(recipe.plan, NoNoise) and not recipe.plan.keep_path
    makes_its_own = recipe.exemplars or recipe.explore or (recipe.given and recipe.given.clips == "damaged")
    return drawn_without_path and not makes_its_own


def posttrain(
    recipe: str, prompts: Path | None, job: Job, iterations: int | None = None, overrides: Sequence[str] = ()
) -> Path:
    """Post-train on the prompts of a folder, or on given clips; returns the checkpoint's folder.

    Raises:
        BadInput: bad prompts or settings, or a run already in the output folder that differs from what is asked.
    """
    resolved = resolve(recipe, iterations, overrides)
    if job.pairs:
        resolved = from_pairs(resolved)
    if resolved.given:
        return train(resolved, (), job)
    if prompts is None:
        raise BadInput(f"The recipe {resolved.name} speaks prompts: give a folder of images and audio with --prompts.")
    return train(resolved, read_prompts(prompts), job)


def train(recipe: Recipe, prompts: Sequence[Prompt], job: Job) -> Path:
    """Run a resolved recipe on prompts; see ``posttrain``."""
    accelerator = tracking(job.track, job.output)
    with one_voice(accelerator, job.output):
        _train(recipe, prompts, job, accelerator)
    return job.output / "checkpoint"


def _train(recipe: Recipe, prompts: Sequence[Prompt], job: Job, accelerator: Accelerator) -> None:
    output, state = job.output, job.output / "state"
    if any(roll_call(accelerator, latest(state) is not None)) and not job.resume:
        raise BadInput(f"{output} already holds a run: add --resume to continue it or choose another --output.")
    policy = load_generator(job.start)
    task: TalkingTask | GivenTask
    files: list[Path] = []
    if recipe.given:
        task, files = given_task(recipe.given, recipe.frames, job.pairs, job.exemplars, policy.config.chunk)
        rewards = Composite((), recipe.given.weights)
    else:
        items, codecs = stage(prompts, recipe, job.exemplars)

        def draw_for(rows: Sequence[int]) -> Drawing:
            return Drawing(codecs, rows, recipe.render_size)

        looks = encode_portraits(policy, [codec.portrait for codec in codecs])
        task = TalkingTask(items, recipe.frames, draw_for, policy.config.chunk, looks)
        rewards = Composite.default(recipe.rewards)
    trainer = Trainer(policy, task, recipe, rewards, accelerator)
    for change in on_main(accelerator, lambda: _open(job, recipe, prompts, files)):
        if accelerator.is_main_process:
            say(f"Warning: {change}; a resumed run may differ in its last bits.")
    if latest(state):
        read(trainer, state)
    on_main(accelerator, lambda: save(trainer.recipe, output / "recipe.json"))
    if job.track:
        accelerator.init_trackers("flowportrait", flat(to_dict(recipe)))
    Loop(trainer, job).run()
    accelerator.end_training()


def _open(job: Job, recipe: Recipe, prompts: Sequence[Prompt], given: Sequence[Path]) -> list[str]:
    """Make the run folder, or see that it is this run's; returns what differs harmlessly."""
    job.output.mkdir(parents=True, exist_ok=True)
    return write_or_compare(job.output / "run.json", manifest(job.start, prompts, recipe.seed, given))


def stage(
    prompts: Sequence[Prompt], recipe: Recipe, exemplars: Path | None = None
) -> tuple[list[Item], list[MotionCodec]]:
    """Load every portrait once and every recording once; with a corpus of exemplars, its clips are the recordings.

    Raises:
        BadInput: the recipe needs exemplars and there are none, or none long enough; or clips are to be disturbed.
    """
    if recipe.exemplars and exemplars is None:
        raise BadInput(f"The recipe {recipe.name} needs real clips: give a prepared corpus with --exemplars.")
    images = sorted({prompt.image for prompt in prompts})
    # Rewards ask what the motion does to a face; a network's touch-up costs five times the drawing itself.
    portraits = [Portrait.from_image(read_image(image), name=str(image)) for image in images]
    codecs = [MotionCodec(portrait, recipe.render_size, retouch=False) for portrait in portraits]
    if exemplars is not None:
        if recipe.disturbance:
            raise BadInput("A disturbance is of the speech of prompts: leave out --exemplars.")
        clips = [c for c in load_motion(exemplars, TRAINING_SPLITS) if len(c.motion) > recipe.frames]
        if not clips:
            raise BadInput(f"{exemplars} has no clip of more than {recipe.frames} frames: lower --set frames.")
        return [Item(c.mel, number % len(images), c.motion) for number, c in enumerate(clips)], codecs
    waves = {path: read_audio(path) for path in sorted({prompt.audio for prompt in prompts})}
    said = {path: (speech(wave, recipe.frames), sound(wave, recipe.frames)) for path, wave in waves.items()}
    disturbed = dict(recipe.disturbance.heard(waves, recipe.frames, recipe.seed)) if recipe.disturbance else {}
    return [
        Item(said[audio][0], images.index(image), audio=said[audio][1], disturbed=disturbed.get(audio, ()))
        for image, audio in ((prompt.image, prompt.audio) for prompt in prompts)
    ], codecs
