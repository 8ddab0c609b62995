"""Run one measurement.

    python -m benchmarks                                   list them
    python -m benchmarks NAME --help                       what it measures, and its options
    python -m benchmarks NAME [options] [--record FILE]    measure, print tables, keep the results as JSON

A measurement is a function ``(options, record)``; ``options`` is a dataclass, from which the command line is made.
``record.py`` describes the results.
"""

from __future__ import annotations

import importlib
import shlex
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import Record
from flowportrait.commands.options import parse_options
from flowportrait.errors import BadInput
from flowportrait.files import check_output_file
from flowportrait.terminal import log

MEASUREMENTS: dict[str, dict[str, str]] = {
    "speed": {
        "speed": "what a frame of video costs, stage by stage",
        "startup": "what the program costs before it works",
        "render": "what a drawn frame costs at every size",
    },
    "latency": {
        "stream": "latency and memory of streams",
        "speak": "from a text to the first frame and to video that can be played",
        "live-cost": "what a live avatar costs in its own process, without a client",
        "studio": "from a request in the studio to the first frame, and to the whole video",
    },
    "live": {
        "live": "the live server as a browser receives it: latency, late frames, sync, interruption, failures",
    },
    "engine": {
        "update-cost": "an update of post-training against the loop over denoising steps of published scripts",
        "memory": "memory of post-training, counted and measured",
        "checkpoint-cost": "saving a complete state against one torch.save",
    },
    "evaluation": {
        "corruptions": "whether every corruption moves its own metric and leaves the others alone",
        "throughput": "clips measured per minute, metric by metric",
    },
    "provenance": {
        "watermark": "survival, false detections and cost of the watermark",
    },
    "data": {
        "prepare": "how fast videos become a corpus, and which clips the sync gate rejects",
        "newcomer": "the time from a clone to a first video, by the commands of the first tutorial",
    },
    "picture": {
        "reenact": "self-reenactment of unseen speakers against the true frames",
        "likeness": "identity and the seam of the paste-back",
        "backdrop": "whether what is behind the person stays still",
        "contact-sheets": "every portrait in nine states, to look at",
    },
    "mouth_interior": {
        "mouth-interior": "the inside of drawn mouths: error, teeth, grey and flicker against the true frames",
    },
    "portraits": {
        "portraits": "closed lips and blinks of photos as people have them, by kind of photo and group of people",
    },
    "uncovered": {
        "uncovered": "what a turning head uncovers, against what is really behind it",
    },
    "emotion": {
        "emotion": "whether an emotion that is asked for is seen, and whether the lips still follow the speech",
    },
    "against_control": {
        "against-control": "rewards of motion of trained checkpoints beside their random-reward control",
    },
    "amplitude": {
        "amplitude": "whether lips open as far as the speaker's, and whether the face follows the voice",
    },
    "peers": {
        "peers": "published results of other systems beside ours on the same portraits and sound",
    },
    "dubbing": {
        "dubbing": "what redrawing a mouth in a video costs the picture",
        "occlusion": "hands and microphones before the mouth",
    },
    "generator": {
        "motion": "generators on unseen speakers: steps, guidance, noise, rooms, seeds",
        "eyes-and-head": "blinks, gaze and head against real motion",
        "intensity": "whether motion follows the intensity that is asked for",
        "chunk-borders": "whether chunks show where they meet",
        "noise-front-ends": "sync and speech features in babble, by method of noise reduction",
    },
    "videos": {
        "videos": "generators as the evaluation sees finished videos",
        "long-run": "ten minutes of talking: drift, colour, blinks, memory",
        "conversation": "whether the listener's lips stay closed",
        "noisy": "sync of finished videos from noisy sound",
    },
    "latents": {
        "picture-generator": "a generator over autoencoder latents",
        "picture-posttrain": "post-training of that generator",
        "autoencoder": "the picture quality that an autoencoder loses",
    },
    "portraitgen": {
        "portraitgen": "exemplars, dual reward and the portrait benchmark",
        "artefacts": "what the artefact detectors see in damaged and in real pictures",
        "inversion": "real samples inverted to noise and drawn again",
    },
    "published": {
        "published": "a published model post-trained with LoRA beside its random-reward control, in one command",
    },
    "recipes": {
        "recipes": "recipes and controls after equal processor time on held-out prompts and finished video",
    },
    "heldout": {
        "heldout": "sft against rl on unseen speakers, voices and portraits, beside controls and real motion",
        "shipped": "the runs that rl is the mean of, the random-reward control and ablations",
        "preferred": "in how many pairs a system is preferred to sft, and by which judge",
    },
    "room": {
        "room": "what the best of n samples gains under another expert, and rewards' agreement with experts",
    },
    "pair_judge": {
        "pair-judge": "how often the evaluation's judge of pairs names the better clip, by kind of damage",
    },
    "power": {
        "power": "systems on a set of unseen speakers, and the smallest difference that it can show",
    },
    "few_steps": {
        "few-steps": "one or two steps against the six guided ones of their teacher",
    },
    "rewards": {
        "reward-matrix": "what every reward notices in damaged footage, and what it costs",
        "sync-experts": "the two sync experts on speakers that neither learned from",
    },
    "sync_instruments": {
        "sync-instruments": "every instrument of lip sync on speakers and languages that it did not learn from",
    },
    "judges": {
        "judge": "what judging costs, and what the measured panel knows of damage and preferences",
        "judges": "judges that need no model: known damage, known preferences, cost",
    },
    "study": {
        "study-power-simulation": "simulated studies: how often each test finds a preference, and a false one",
    },
    "preferences": {
        "preferences": "reward models from preferences on unseen speakers",
    },
    "preference_methods": {
        "preference-methods": "learning from preferences, and choosing by them, on unseen speakers",
    },
}
"""Module of this folder → names of its measurements (functions with ``_`` for ``-``) → what each measures."""
REPLACED = {"proxy": "room"}
"""Earlier measurements → those that measure it now."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one measurement; returns the exit code: 0, 2 on bad input, 130 on Ctrl-C (what was measured is printed)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(f"{__doc__}\n{list_measurements()}")
        return 0
    try:
        return _run(words[0], words[1:])
    except BadInput as error:
        log(str(error))
        return 2


def _run(name: str, words: list[str]) -> int:
    module = next((module for module, names in MEASUREMENTS.items() if name in names), None)
    if name in REPLACED:
        raise BadInput(f"The measurement {name!r} is replaced by {REPLACED[name]!r}: see its --help.")
    if module is None:
        raise BadInput(f"There is no measurement {name!r}: 'python -m benchmarks' lists them.")
    target = _take_record(words)
    function = getattr(importlib.import_module(f"benchmarks.{module}"), name.replace("-", "_"))
    kind: type[Any] = typing.get_type_hints(function)["options"]
    options = parse_options(kind, words, f"python -m benchmarks {name}")
    record = Record(name, shlex.join(["python", "-m", "benchmarks", name, *words]))
    code = 0
    try:
        function(options, record)
    except KeyboardInterrupt:
        record.note("Interrupted: the figures are those measured until then.")
        code = 130
    except Exception as error:
        if record.rows:
            record.note(f"Ended early: {error}")
        raise
    finally:
        record.print()
        if target is not None and record.rows:
            record.save(target)
    return code


def _take_record(words: list[str]) -> Path | None:
    """Take ``--record FILE`` out of the words.

    Raises:
        BadInput: there is no file name, or the file cannot be written.
    """
    if "--record" not in words:
        return None
    place = words.index("--record")
    if place + 1 == len(words):
        raise BadInput("--record needs the name of a JSON file.")
    target = Path(words[place + 1])
    del words[place : place + 2]
    check_output_file(target, "json", "--record")
    return target


def list_measurements() -> str:
    """Return the names of all measurements with what each measures, a line each."""
    lines = []
    for module, names in MEASUREMENTS.items():
        lines.append(f"\n{module}")
        lines += [f"  {name:24} {sentence}" for name, sentence in names.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
