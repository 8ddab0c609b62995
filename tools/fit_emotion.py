"""Learn what a smile is in the 30 numbers: the mean difference between two photos of the same person.

    python -m tools.fit_emotion FOOTAGE weights/flowportrait_weights/emotion

FOOTAGE holds ``london/NNN_neutral.jpg`` and ``london/NNN_smiling.jpg`` (Face Research Lab London Set, DeBruine and
Jones, CC-BY 4.0) and ``split.tsv``; the people of the split ``renderer`` are learned from. The command prints how much
of the landmarks' displacement of the people of ``dev`` their mean smile explains, beside a control: the same smile
upside down (its sign changed), which should explain less than nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from flowportrait.files import write_weights
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.rendering.motion_basis import EXPRESSION, MotionBasis, fit_pose
from flowportrait.terminal import progress


def smile_displacement(folder: Path, person: str, basis: MotionBasis) -> torch.Tensor:
    """Return how far the landmarks of a person move for a smile, without the head pose, ``[478, 3]``."""
    shapes = []
    for expression in ("neutral", "smiling"):
        portrait = Portrait.from_image(read_image(folder / f"{person}_{expression}.jpg"), 512)
        points = torch.as_tensor(np.asarray(portrait.landmarks), dtype=torch.float32)[None]
        shapes.append(fit_pose(points, basis.canonical).remove(points)[0])
    return shapes[1] - shapes[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    basis = MotionBasis.load()
    rows = [line.split("\t") for line in (options.footage / "split.tsv").read_text().splitlines()]
    people = {file.split("/")[1]: split for file, _, split in rows if file.startswith("london/")}
    displacements: dict[str, list[torch.Tensor]] = {"renderer": [], "dev": []}
    for person, split in progress(people.items(), len(people), "measuring smiles"):
        displacements[split].append(smile_displacement(options.footage / "london", person, basis))
    smiles = torch.stack(displacements["renderer"])
    happy = (smiles.flatten(1) @ basis.readout.T).mean(0)
    write_weights(options.output / "model.safetensors", {"happy": happy})
    predicted = torch.einsum("e,enc->nc", happy[EXPRESSION], basis.directions)
    unseen = torch.stack(displacements["dev"])
    total = unseen.square().sum()
    for name, sign in (("the mean smile", 1), ("control: upside down", -1)):
        explained = 1 - (unseen - sign * predicted).square().sum() / total
        print(f"{name} of {len(smiles)} people explains {explained:.2f} of the smiles of {len(unseen)} others")


if __name__ == "__main__":
    main()
