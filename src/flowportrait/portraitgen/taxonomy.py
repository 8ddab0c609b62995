"""This module holds the prompts of the portrait benchmark and the taxonomy that they are made from.

    eight dimensions · all values of a dimension equally often · impossible pairs exchanged, not dropped

The set of prompts is a function of its seed; ``prompts_1.jsonl`` holds the set of version 1.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowportrait.errors import BadInput

PROMPT_SET_VERSION, PROMPT_SET_SEED, PROMPT_SET_SIZE = "1", 2606, 240
PROMPT_SET_FILE = Path(__file__).with_name(f"prompts_{PROMPT_SET_VERSION}.jsonl")

TAXONOMY: dict[str, dict[str, str]] = {
    "age": {
        "child": "a child of about eight",
        "young adult": "a person in their twenties",
        "middle-aged": "a middle-aged person",
        "old": "a person of about eighty",
    },
    "skin_tone": {
        "very light": "very light skin",
        "light": "light skin",
        "tan": "tan skin",
        "brown": "brown skin",
        "dark": "dark skin",
    },
    "light": {
        "soft daylight": "soft daylight from a window",
        "hard sun": "hard midday sun",
        "golden hour": "low evening sun",
        "studio": "a large studio softbox",
        "neon": "coloured neon light at night",
        "dim indoor": "a dim lamp indoors",
    },
    "pose": {
        "frontal": "facing the camera",
        "three-quarter": "head turned a little aside",
        "profile": "in profile",
        "tilted": "head tilted",
    },
    "framing": {
        "close-up": "close-up of the face",
        "head and shoulders": "head and shoulders",
        "half-length": "half-length with both hands visible",
    },
    "occupation": {
        "none": "in everyday clothes",
        "nurse": "dressed as a nurse",
        "welder": "dressed as a welder",
        "office": "in a business suit",
        "farmer": "dressed for farm work",
        "musician": "holding a violin",
        "athlete": "in sportswear",
        "cook": "in a cook's jacket",
    },
    "expression": {
        "neutral": "neutral expression",
        "closed smile": "smiling with closed lips",
        "open smile": "laughing with visible teeth",
        "surprised": "surprised, mouth open",
        "serious": "serious and concentrated",
    },
    "camera": {
        "85 mm": "85 mm lens, f/2",
        "phone": "phone camera",
        "35 mm film": "35 mm film",
        "wide angle": "24 mm lens from nearby",
    },
}
"""The words of a prompt, by dimension and value."""

IMPOSSIBLE_PAIRS: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = (
    (("age", "child"), ("occupation", "nurse")),
    (("age", "child"), ("occupation", "welder")),
    (("age", "child"), ("occupation", "office")),
    (("age", "child"), ("occupation", "farmer")),
    (("age", "child"), ("occupation", "cook")),
    (("framing", "close-up"), ("occupation", "musician")),
)


"""Pairs of values that no prompt has together."""


@dataclass(frozen=True)
class BenchPrompt:
    """A prompt of the benchmark.

    Args:
        id: name of the prompt, used in file names.
        text: the text for the generator.
        terms: the value of every dimension.
    """

    id: str
    text: str
    terms: dict[str, str]


def make_bench_prompts(count: int = PROMPT_SET_SIZE, seed: int = PROMPT_SET_SEED) -> list[BenchPrompt]:
    """Return a set of prompts; the default arguments give the set of this version."""
    rng = np.random.default_rng(seed)
    columns = {
        name: [str(v) for v in rng.permutation((list(values) * (-(-count // len(values))))[:count])]
        for name, values in TAXONOMY.items()
    }
    for row in range(count):
        for (one, first), (other, second) in IMPOSSIBLE_PAIRS:
            if columns[one][row] == first and columns[other][row] == second:
                _exchange(columns, other, row, rng.permutation(count))
    return [
        BenchPrompt(f"pb{PROMPT_SET_VERSION}-{row:03d}", prompt_sentence(terms), terms)
        for row, terms in ((row, _terms(columns, row)) for row in range(count))
    ]


def _exchange(columns: dict[str, list[str]], name: str, row: int, partners: np.ndarray) -> None:
    """Exchange a value with that of the first row in ``partners`` for which both rows become possible."""
    column = columns[name]
    for partner in partners.tolist():
        column[row], column[partner] = column[partner], column[row]
        if is_possible(_terms(columns, row)) and is_possible(_terms(columns, partner)):
            return
        column[row], column[partner] = column[partner], column[row]


def _terms(columns: dict[str, list[str]], row: int) -> dict[str, str]:
    return {name: columns[name][row] for name in TAXONOMY}


def prompt_sentence(terms: dict[str, str]) -> str:
    """Return the text of a prompt with these values."""
    words = {name: TAXONOMY[name][value] for name, value in terms.items()}
    return (
        f"Photo portrait of {words['age']} with {words['skin_tone']}, {words['occupation']}, {words['expression']}, "
        f"{words['pose']}, {words['framing']}, {words['light']}, {words['camera']}."
    )


def is_possible(terms: dict[str, str]) -> bool:
    """Return whether no two values contradict each other."""
    return not any(terms[one] == first and terms[other] == second for (one, first), (other, second) in IMPOSSIBLE_PAIRS)


def write_bench_prompts(prompt_set: list[BenchPrompt], path: Path = PROMPT_SET_FILE) -> None:
    """Write prompts to a file, one JSON object per line."""
    path.write_text("".join(json.dumps(vars(prompt)) + "\n" for prompt in prompt_set), encoding="utf-8")


def read_bench_prompts(path: Path | None = None) -> list[BenchPrompt]:
    """Return the prompts of a file; without a file those of this version.

    Raises:
        BadInput: the file is missing or empty, or a line is broken (the message names it).
    """
    path = path or PROMPT_SET_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as prompts: give a file with one JSON object a line.") from error
    found = [_prompt(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise BadInput(f"{path} has no prompts: give a file with one JSON object a line.")
    ids: set[str] = set()
    for prompt in found:
        if prompt.id in ids:
            raise BadInput(f"{path} has the id {prompt.id!r} twice: ids name picture files and must differ.")
        ids.add(prompt.id)
    return found


def _prompt(line: str, where: str) -> BenchPrompt:
    try:
        data = json.loads(line)
        prompt = BenchPrompt(str(data["id"]), str(data["text"]), dict(data.get("terms", {})))
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else "it is no JSON object"
        raise BadInput(f"{where} is no prompt, {reason}: it needs an id and a text.") from error
    if not prompt.id or "/" in prompt.id or not prompt.text.strip():
        raise BadInput(f"{where} is no prompt, its id or text cannot be used: ids name files, texts are not empty.")
    for name, value in prompt.terms.items():
        if name not in TAXONOMY or value not in TAXONOMY[name]:
            raise BadInput(f"{where} has {name}={value!r}, which the taxonomy does not know: see portraitgen.taxonomy.")
    return prompt


def prompts_digest(prompt_set: list[BenchPrompt]) -> str:
    """Return a hash of a set of prompts, 12 hexadecimal digits; results on different sets are not compared."""
    return hashlib.sha256("".join(prompt.id + prompt.text for prompt in prompt_set).encode()).hexdigest()[:12]
