"""Write the page of the manual that lists every shipped weight, from the cards beside the weights.

    python -m tools.write_model_cards            # docs/reference/model-cards.md

The first lines of a card give licence, task and language; its first paragraph the intended use. Run it after a card has
changed: a test compares the page with the cards.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "model-cards.md"
CARDS = "https://github.com/flowportrait/flowportrait/blob/main/weights/flowportrait_weights"
_PAGE = """# Model cards

At the end of this page you know what each shipped file is for and what its licence allows. Every folder of the package
`flowportrait-weights` has a card in the format of the Hugging Face Hub: what the weights learned from, how well they do
it, and the command that makes them again. This table is made from the cards (`python -m tools.write_model_cards`).

**Weights that this project learned are for research only.** [Licences](licences.md) explains what that means for
videos and for what you train from them.

| card | task on the Hub | intended use | size | licence |
|---|---|---|---|---|
{rows}

## Your own models

`pretrain`, `posttrain` and `save_pretrained` write such a card beside a checkpoint. It takes over the licence of the
checkpoint that the training started from. `prepare` writes a note of the same format into a corpus. A model is uploaded
and loaded by its name:

```
trainer.push_to_hub("org/name", private=True)          # also AnimatePipeline and a generator
AnimatePipeline.from_pretrained("org/name@v1")         # or --checkpoint org/name@v1
```

This needs `pip install 'flowportrait[hub]'`. Settings, weights (safetensors) and texts are downloaded, nothing else.
"""

LICENCES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause"}


def read_card(folder: Path) -> tuple[dict[str, Any], str, str]:
    """Return the front matter, the title and the intended use of the card in a folder."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    match = re.match(r"---\n(.*?)\n---\n# (.*?)\n\n\*\*Intended use\*\*: (.*?)\.\n\n", text, re.S)
    if match is None:
        raise ValueError(f"{folder}/README.md needs front matter, a title, and a paragraph **Intended use**: …")
    return yaml.safe_load(match[1]), match[2], " ".join(match[3].split())


def model_cards_page(weights: Path) -> str:
    """Return the page in Markdown."""
    rows = []
    for folder in sorted(path for path in weights.iterdir() if (path / "README.md").is_file()):
        front, title, use = read_card(folder)
        named = front["license"] if isinstance(front["license"], list) else [front["license"]]
        licence = ", ".join("**research only**" if one == "other" else LICENCES[one] for one in named)
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"]
        size = sum(path.stat().st_size for path in files)
        shown = f"{size / 1e6:.1f} MB" if size > 1e6 else f"{size / 1e3:.1f} kB"
        task = f"`{front['pipeline_tag']}`" if "pipeline_tag" in front else "–"
        rows.append(f"| [{title}]({CARDS}/{folder.name}/README.md) | {task} | {use} | {shown} | {licence} |")
    return _PAGE.format(rows="\n".join(rows))


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(model_cards_page(ROOT / "weights" / "flowportrait_weights"), encoding="utf-8")
    print(PAGE)
