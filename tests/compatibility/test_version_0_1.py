"""Files that version 0.1 wrote at its end are read as they were meant: checkpoints, run folders of every kind, recipes,
preference pairs of every kind, judges' replies, a prepared corpus. They lie in ``tests/data/v0.1-end``.

    python -m tests.compatibility.test_version_0_1        writes ``expected`` anew, not the files

Numbers are compared to a tolerance, since processors round differently. Runs are started from the command line, so that
nothing here depends on where a function lies; the few functions that read files are in ``readers``.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flowportrait.cli import main
from flowportrait.config import override
from flowportrait.rl.doctor import current_metrics
from tests import ROOT
from tests import version_0_1_readers as readers
from tests.golden_inputs import AS_IN_VERSION_0_1, DATA, FEW, RECIPES, training_words

EXPECTED = DATA / "expected"
KILLED = ("flow-grpo", "nft", "flow-dpo", "awm")
WAITING = {"flow-grpo": ["stale=1"]}
"""A killed run with a rollout that waits to be trained on."""
WEIGHTS_TOLERANCE = 0.02
"""Of the way that a tensor went; another seed goes another way altogether."""


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA)
    monkeypatch.syspath_prepend(ROOT)


def weights(run: Path, role: str = "live") -> dict[str, torch.Tensor]:
    """The weights of a role, by default those that learn, from a run's last state."""
    state = max((run / "state").iterdir())
    found = {}
    for file in (state / "weights").glob("*.safetensors"):
        found |= {
            name.removeprefix(f"{role}/"): w for name, w in load_file(file).items() if name.startswith(f"{role}/")
        }
    return found


def sampled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Up to 64 evenly spaced numbers of each tensor."""
    return {name: w.flatten()[:: max(1, w.numel() // 64)][:64].clone() for name, w in tensors.items()}


def distances(found: dict[str, torch.Tensor], known: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """The largest distance of a tensor from the known one, as a share of the way that one went from the start."""
    assert found.keys() == known.keys()
    shares = [
        float((found[name] - value).norm() / (value - start[name].float()).norm())
        for name, value in known.items()
        if (value - start[name].float()).norm() > 1e-3
    ]
    assert len(shares) > 5
    return max(shares)


def distance_of_all(
    found: dict[str, torch.Tensor], known: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> float:
    """The distance of all tensors together from the known ones, as a share of the way that those went."""
    flat = [torch.cat([part[name].float().ravel() for name in known]) for part in (found, known, start)]
    return float((flat[0] - flat[1]).norm() / (flat[1] - flat[2]).norm())


def same_records(found: Path, known: Path) -> None:
    """Every number of the known records is in the found ones; correlations of rewards need more rollouts than a resumed
    process has seen."""
    for one, other in zip(records(found), records(known), strict=True):
        numbers = {
            key: value
            for key, value in current_metrics(other).items()
            if not key.startswith(("seconds", "correlation"))
        }
        assert {key: current_metrics(one).get(key) for key in numbers} == pytest.approx(numbers, rel=1e-2, abs=1e-3)


def records(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_one_update_is_what_it_was(recipe: str, tmp_path: Path) -> None:
    assert main(training_words(recipe, tmp_path)) == 0
    same_records(tmp_path / "metrics.jsonl", DATA / "runs" / recipe / "one_update.jsonl")
    found, known = weights(tmp_path), load_file(DATA / "runs" / recipe / "one_update.safetensors")
    start = weights(tmp_path, "ref") if recipe == "kvpo" else load_file(DATA / "generator" / "model.safetensors")
    if recipe == "kvpo":  # of the shipped weights a part is kept
        found, start = sampled(found), sampled(start)
    # Gradients near zero change their sign with the processor, and Adam turns that into whole steps of single weights:
    # all tensors are compared together. Another seed is at .2 and more.
    assert distance_of_all(found, known, start) < (5 if recipe == "kvpo" else 1) * WEIGHTS_TOLERANCE


@pytest.mark.slow
def test_another_seed_is_another_update(tmp_path: Path) -> None:
    """The tolerance can fail."""
    assert main([*training_words("nft", tmp_path), "seed=4"]) == 0
    known = load_file(DATA / "runs" / "nft" / "one_update.safetensors")
    start = load_file(DATA / "generator" / "model.safetensors")
    assert distance_of_all(weights(tmp_path), known, start) > 10 * WEIGHTS_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "by"), [(recipe, by) for recipe in KILLED for by in ("its folder", "the recipe's name")]
)
def test_a_killed_run_ends_where_it_would_have_ended(recipe: str, by: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(DATA / "runs" / recipe / "killed", run)
    words = [*training_words(recipe, run, 4), *WAITING.get(recipe, [])]
    if by == "its folder":
        words = [*words[: words.index("--set")], "--recipe", str(run)]
    assert main([*words, "--resume"]) == 0
    same_records(run / "metrics.jsonl", DATA / "runs" / recipe / "uninterrupted.jsonl")
    known = load_file(DATA / "runs" / recipe / "uninterrupted.safetensors")
    start = load_file(DATA / "generator" / "model.safetensors")
    assert distances(weights(run), known, start) < WEIGHTS_TOLERANCE
    assert main(["doctor", str(run)]) == 0


@pytest.mark.slow
def test_a_killed_run_is_not_another_recipes_and_not_begun_anew(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(DATA / "runs" / "nft" / "killed", run)
    words = ["posttrain", "--start", "generator", "--prompts", "prompts", "--output", str(run)]
    assert main([*words, "--recipe", "nft"]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*words, "--recipe", "awm", "--resume", "--set", *FEW]) == 2
    assert "was begun with the recipe nft" in capsys.readouterr().err
    assert main([*words[:2], "rl", *words[3:], "--recipe", str(run), "--resume"]) == 2
    assert "was begun with" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_of_another_generator_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    run, kept = tmp_path / "run", DATA / "runs" / "own-generator"
    shutil.copytree(kept / "killed", run)
    words = ["posttrain", "--policy", "examples.own_generator:Murmur", "--policy-set", "width=4"]
    assert main([*words, "--prompts", "prompts", "--recipe", str(run), "--output", str(run), "--resume"]) == 0
    same_records(run / "metrics.jsonl", kept / "uninterrupted.jsonl")
    known, found = load_file(kept / "uninterrupted.safetensors"), weights(run)
    state = load_file(next((kept / "killed" / "state" / "000002" / "weights").glob("*.safetensors")))
    reference = {name: state.get(f"ref/{name}", torch.zeros_like(value)) for name, value in known.items()}
    assert distances(found, known, reference) < WEIGHTS_TOLERANCE


@pytest.mark.slow
def test_a_killed_supervised_run_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    run, kept = tmp_path / "run", DATA / "runs" / "pretrain"
    shutil.copytree(kept / "killed", run)
    config = json.loads((run / "config.json").read_text())
    changes = [f"{key}={_word(value)}" for key, value in readers.flat(config).items() if value not in ("", None)]
    assert main(["pretrain", "--corpus", "corpus", "--output", str(run), "--resume", "--set", *changes]) == 0
    losses = {record["step"]: record["loss"] for record in records(run / "history.jsonl")}
    assert losses == pytest.approx(
        {one["step"]: one["loss"] for one in records(kept / "uninterrupted.jsonl")}, rel=1e-2
    )
    known = load_file(kept / "uninterrupted" / "model.safetensors")
    found = load_file(run / "checkpoint" / "model.safetensors")
    assert found.keys() == known.keys()
    for name, value in known.items():
        assert (found[name].float() - value.float()).norm() < WEIGHTS_TOLERANCE * (1e-3 + value.float().norm()), name


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("name", sorted(path.stem for path in (DATA / "recipes").glob("*.json")))
def test_a_resolved_recipe_is_read_as_the_recipe_of_its_name(name: str) -> None:
    today = override(readers.recipe_named(name), AS_IN_VERSION_0_1.get(name, ()))
    assert readers.recipe(DATA / "recipes" / f"{name}.json") == today


def test_every_recipe_of_version_0_1_is_kept() -> None:
    assert len(list((DATA / "recipes").glob("*.json"))) == 27


def test_a_recipe_of_version_0_1_with_a_change_keeps_it(tmp_path: Path) -> None:
    changed = json.loads((DATA / "recipes" / "flow-grpo.json").read_text()) | {"groups": 3, "learning_rate": 1e-3}
    (tmp_path / "recipe.json").write_text(json.dumps(changed))
    found, plain = readers.recipe(tmp_path / "recipe.json"), readers.recipe_named("flow-grpo")
    assert found != plain
    assert (found.groups, found.learning_rate) == (3, 1e-3)


def expected(name: str) -> Any:
    return json.loads((EXPECTED / f"{name}.json").read_text())


def close(found: Any, known: Any, tolerance: float = 1e-3) -> None:
    """Equal, numbers to a tolerance, through lists and dictionaries."""
    if isinstance(known, dict):
        assert found.keys() == known.keys()
        for key in known:
            close(found[key], known[key], tolerance)
    elif isinstance(known, list):
        assert len(found) == len(known)
        for one, other in zip(found, known, strict=True):
            close(one, other, tolerance)
    elif isinstance(known, float) and not isinstance(found, bool):
        assert found == pytest.approx(known, rel=tolerance, abs=tolerance, nan_ok=True)
    else:
        assert found == known


@pytest.mark.slow
def test_a_checkpoint_moves_as_it_did(tmp_path: Path) -> None:
    close(readers.checkpoint_motion(DATA / "generator", tmp_path), expected("checkpoint"), 0.02)


def test_the_corpus_is_read_with_its_index_and_shards() -> None:
    close(readers.corpus(DATA / "corpus"), expected("corpus"), 0.02)


@pytest.mark.slow
def test_the_corpus_is_inspected(tmp_path: Path) -> None:
    shutil.copytree(DATA / "corpus", tmp_path / "corpus")
    assert main(["prepare", "--inspect", str(tmp_path / "corpus")]) == 0


READERS: dict[str, tuple[str, ...]] = {
    "stated": ("lines", "inspection", "lesson", "rated", "stated"),
    "performances": ("lines", "inspection", "lesson", "rated"),
    "made": ("lines", "inspection", "lesson", "rated", "stated", "shown_to_judges"),
}
"""Who reads which pairs: motion files are not videos, and a pair of the stated ones names a clip that is not there."""


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "reader"), [(one, reader) for one, names in READERS.items() for reader in names])
def test_every_reader_makes_the_same_of_pairs(flavour: str, reader: str) -> None:
    found = getattr(readers, reader)(DATA / "preferences" / flavour / "pairs.jsonl")
    close(found, expected(f"pairs-{flavour}")[reader], 0.02)


def test_pairs_are_made_on_the_fly_as_before() -> None:
    close(readers.pairs_made_from(DATA / "corpus"), expected("pairs-on-the-fly"), 0.02)


def test_votes_of_a_study_are_counted_and_exported_as_before(tmp_path: Path) -> None:
    close(study(tmp_path), expected("study"))


def study(folder: Path) -> dict[str, Any]:
    """What is said of the answers, and the pairs that they become."""
    shutil.copytree(DATA / "preferences" / "study", folder / "study")
    assert main(["preferences", "study", "analyse", str(folder / "study"), "--output", str(folder / "out")]) == 0
    analysis = json.loads((folder / "out" / "analysis.json").read_text())
    del analysis["clustered"]  # intervals that version 0.1 did not have
    return {"analysis": analysis, "pairs": readers.lines_as_written(folder / "study" / "pairs.jsonl")}


@pytest.mark.parametrize("line", range(sum(1 for _ in (DATA / "judge" / "replies.jsonl").open())))
def test_a_judges_reply_is_read_as_before(line: int) -> None:
    record = json.loads((DATA / "judge" / "replies.jsonl").read_text().splitlines()[line])
    close(readers.reply(record), expected("replies")[line])


@contextmanager
def served(replies: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Address of a server that gives each aspect its replies in turn, the last one again and again."""
    asked: dict[str, int] = defaultdict(int)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            aspect = next(name for name in replies if f"Aspect: {name}" in text)
            reply = replies[aspect][min(asked[aspect], len(replies[aspect]) - 1)]
            asked[aspect] += 1
            data = json.dumps(reply["body"]).encode()
            self.send_response(reply["status"])
            for name, value in {"Content-Length": str(len(data)), **reply.get("headers", {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


CASES = tuple(json.loads((DATA / "judge" / "served.json").read_text()))


def verdict(case: str, folder: Path) -> dict[str, Any]:
    """What a panel of two samples makes of a server's replies about a clip."""
    replies = json.loads((DATA / "judge" / "served.json").read_text())[case]
    video = DATA / "preferences" / "stated" / "steady0.mp4"
    with served(replies) as url:
        settings = [f"endpoint.url={url}", "endpoint.model=test", "endpoint.concurrency=1", "endpoint.first_wait=0.01"]
        settings += ["by=server", "panel.samples=2", "endpoint.attempts=3", f"folder={folder / 'kept'}"]
        report = folder / "report.json"
        assert main(["judge", "score", str(video), "--output", str(report), "--set", *settings]) == 0
    found = json.loads(report.read_text())["verdicts"][0]
    for aspect in found["aspects"].values():
        aspect["samples"].sort()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_servers_replies_become_the_same_verdict(case: str, tmp_path: Path) -> None:
    close(verdict(case, tmp_path), expected("verdicts")[case])


def write_expected() -> None:
    """Keep what is made of the files now."""
    import os
    import tempfile

    os.chdir(DATA)
    EXPECTED.mkdir(exist_ok=True)
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values["checkpoint"] = readers.checkpoint_motion(DATA / "generator", folder)
        values["corpus"] = readers.corpus(DATA / "corpus")
        values["pairs-on-the-fly"] = readers.pairs_made_from(DATA / "corpus")
        for flavour, names in READERS.items():
            path = DATA / "preferences" / flavour / "pairs.jsonl"
            values[f"pairs-{flavour}"] = {reader: getattr(readers, reader)(path) for reader in names}
        (folder / "s").mkdir()
        values["study"] = study(folder / "s")
        lines = (DATA / "judge" / "replies.jsonl").read_text().splitlines()
        values["replies"] = [readers.reply(json.loads(line)) for line in lines]
        values["verdicts"] = {}
        for case in CASES:
            (folder / case).mkdir()
            values["verdicts"][case] = verdict(case, folder / case)
    for key, value in values.items():
        (EXPECTED / f"{key}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_expected()
    sys.exit(0)
