"""Claims about run files: what stages take from each other, and the sentence and the line of every mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flowportrait.commands.posttrain import PostTrainOptions
from flowportrait.commands.prepare import PrepareOptions
from flowportrait.commands.pretrain import PretrainOptions
from flowportrait.errors import BadInput
from flowportrait.workflow.run_file import RunFile, read_run_file
from flowportrait.workflow.stages import STAGES

ALL = """\
output: out
prepare:
  inputs: [footage, more -- videos]
  hold-out: 0.25
  set: {sync: -2}
pretrain:
  set:
    steps: 5
    windows: [12, 16]
    generator:
      hidden: 32
      layers: 1
posttrain:
  recipe: nft
  prompts: mine
  held_out: other
  bf16: yes
  set: {groups: 4}
control:
distil:
evaluate:
  workers: 2
"""


def read(text: str, folder: Path) -> RunFile:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return read_run_file(path)


def refused(text: str, folder: Path) -> str:
    """The sentence about a run file, from the line on."""
    with pytest.raises(BadInput) as error:
        read(text, folder)
    sentence = str(error.value)
    assert sentence.startswith(f"{folder / 'run.yaml'}, line ")
    assert sentence.endswith((".", "'"))
    return sentence.partition(", line ")[2]


def test_every_stage_takes_what_the_stages_before_it_made(tmp_path: Path) -> None:
    stages = {stage.name: stage for stage in read(ALL, tmp_path).stages}
    assert list(stages) == [kind.name for kind in STAGES]
    prepare, pretrain, posttrain, control, distil, evaluate = (stage.options for stage in stages.values())
    assert isinstance(prepare, PrepareOptions)
    assert prepare.inputs == (Path("footage"), Path("more -- videos"))
    assert (prepare.hold_out, prepare.set, prepare.output) == (0.25, ("sync=-2",), Path("out/prepare"))
    assert isinstance(pretrain, PretrainOptions)
    assert pretrain.corpus == Path("out/prepare")
    assert pretrain.set == ("steps=5", "windows=12,16", "generator.hidden=32", "generator.layers=1")
    assert isinstance(posttrain, PostTrainOptions)
    assert (posttrain.start, posttrain.recipe, posttrain.bf16) == ("out/pretrain", "nft", True)
    assert control == replace(posttrain, random_rewards=True, output=Path("out/control"))
    assert (distil.start, distil.recipe, distil.prompts) == ("out/posttrain", "distil", Path("mine"))
    assert evaluate.system == ("pretrain=out/pretrain", "posttrain=out/posttrain", "control=out/control",
                               "distil=out/distil")  # fmt: skip
    assert (evaluate.against, evaluate.prompts, evaluate.workers) == ("pretrain", Path("other"), 2)


def test_what_a_run_file_gives_is_not_filled_in(tmp_path: Path) -> None:
    text = """\
output: out
posttrain: {prompts: mine, start: rl, output: elsewhere}
distil: {prompts: theirs}
evaluate: {prompts: other, checkpoint: "${posttrain.output}", baseline: "${posttrain.start}", title: "In ${output}"}
"""
    posttrain, distil, evaluate = (stage.options for stage in read(text, tmp_path).stages)
    assert (posttrain.start, posttrain.output) == ("rl", Path("elsewhere"))
    assert (distil.start, distil.prompts) == ("elsewhere", Path("theirs"))
    assert (evaluate.checkpoint, evaluate.baseline, evaluate.system) == ("elsewhere", "rl", ())
    assert evaluate.title == "In out"


def test_a_cluster_is_for_the_stages_that_can_use_one_and_name_none(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(ALL.replace("workers: 2", "ray: other:6379"))
    stages = {stage.name: stage.options for stage in read_run_file(tmp_path / "run.yaml", "auto").stages}
    clusters = {name: getattr(options, "ray", "none") for name, options in stages.items()}
    post_training = dict.fromkeys(("posttrain", "control", "distil"), "auto")
    assert clusters == {"prepare": "auto", "pretrain": "none", **post_training, "evaluate": "other:6379"}


def test_post_training_alone_is_compared_with_where_it_starts(tmp_path: Path) -> None:
    (_, evaluate) = read("output: out\nposttrain: {prompts: mine}\nevaluate: {prompts: other}", tmp_path).stages
    assert evaluate.options.system == ("start=sft", "posttrain=out/posttrain")
    assert evaluate.options.against == "start"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "1: the file is empty"),
        ("- a", "1: the file must have keys"),
        ("output: [a", "1: this is no YAML"),
        ("output: a: b", "1: this is no YAML"),
        ("prepare:\n  inputs: a", "1: 'output' is missing"),
        ("output: out", "1: there is no stage"),
        ("output: out\npostrain:\n  prompts: a", "2: there is no stage 'postrain'; did you mean posttrain?"),
        ("output: out\npretrain: {corpus: a}\nprepare: {inputs: b}", "3: prepare stands after pretrain"),
        ("output: out\noutput: in", "2: 'output' is given a second time: the first is in line 1."),
        ("output: out\nposttrain:\n  prompts: a\n  iteration: 3", "4: posttrain has no option 'iteration'; did you "
         "mean iterations?"),
        ("output: out\nposttrain:\n  prompts: a\n  iterations: many", "4: posttrain: argument --iterations: 'many' is "
         "not a whole number"),
        ("output: out\nposttrain:\n  prompts: a\n  iterations:", "4: iterations has no value"),
        ("output: out\nposttrain:\n  prompts: a\n  iterations: [1, 2]", "4: iterations takes one value, not 2."),
        ("output: out\nposttrain:\n  prompts: a\n  bf16: maybe", "4: bf16 takes true or false, not maybe."),
        ("output: out\nposttrain:\n  prompts: a\n  resume: true", "4: posttrain cannot set resume"),
        ("output: out\nposttrain:\n  prompts: {a: b}", "3: prompts takes no keys"),
        ("output: out\npretrain:\n  output: x", "2: pretrain: the following arguments are required: --corpus"),
        ("output: out\npretrain:\n  corpus: a\n  set:\n    step: 5", "4: pretrain: Unknown key 'step': did you mean "
         "'steps'?"),
        ("output: out\nposttrain:\n  prompts: a\n  recipe: nftt", "4: posttrain: No recipe"),
        ("output: out\nprepare: {inputs: a}\npretrain:\n  corpus: ${prepar.output}", "4: ${prepar.output} names no "
         "earlier stage; what can be named is ${prepare.output}."),
        ("output: out\nprepare: {inputs: a}\npretrain:\n  held_out: ${prepare.layout}", "4: ${prepare.layout} has no "
         "single value"),
        ("output: out\nprepare: {inputs: a}\npretrain:\n  output: out/prepare", "4: pretrain would write into the "
         "folder of prepare"),
        ("output: out\nprepare: {inputs: a, output: out}", "2: prepare would write into the folder of the run"),
        ("output: out\nlaunch: no-such-launcher 2\nprepare: {inputs: a}", "2: the launcher 'no-such-launcher 2' is not "
         "installed"),
        ("output: out\nprepare: {inputs: [--help]}", "2: '--help' is no value of inputs"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_its_line(text: str, sentence: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path).startswith(sentence)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.yaml cannot be read \(No such file or directory\)"):
        read_run_file(tmp_path / "none.yaml")


def test_every_option_that_a_stage_fills_in_is_one_of_its_command() -> None:
    earlier = {kind.name: {"output": kind.name, "held_out": "other", "prompts": "mine"} for kind in STAGES[:-1]}
    for kind in STAGES:
        filled = kind.fill_in(earlier, {})
        assert filled.keys() <= kind.load_options_class().__dataclass_fields__.keys()
