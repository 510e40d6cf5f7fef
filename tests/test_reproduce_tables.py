"""The commands that measure the paper's tables: they parse, and measure what the paper measured."""

import shlex

import pytest
import typer
from typer.testing import CliRunner

from flashvid_hf.cli import app
from flashvid_hf.evaluation.benchmarks import BENCHMARKS
from flashvid_hf.evaluation.evaluate import EvaluationOptions
from flashvid_hf.evaluation.reproduce_tables import RATIOS, SETUPS, TABLES, reproduction_lines
from flashvid_hf.families import FAMILIES_BY_NAME
from flashvid_hf.publishing.published_accuracy import PUBLISHED


def commands(*arguments: str) -> tuple[list[list[str]], list[str]]:
    """The printed commands, split into words, and the comments."""
    shown = CliRunner().invoke(app, ["reproduce", *arguments])
    assert shown.exit_code == 0, shown.exception
    lines = shown.stdout.splitlines()
    return [shlex.split(line) for line in lines if line and line[0] != "#"], [x for x in lines if x.startswith("#")]


@pytest.mark.parametrize("behavior", ["released", "paper"])
@pytest.mark.parametrize("family", SETUPS)
def test_commands_of_evaluate_parse(family, behavior):
    printed, _ = commands("--family", family, "--behavior", behavior)
    assert len(printed) == len(TABLES)
    evaluate = typer.main.get_command(app).commands["evaluate"]
    for program, command, *arguments in printed:
        assert (program, command) == ("flashvid-hf", "evaluate")
        params = evaluate.make_context(command, arguments).params
        given = EvaluationOptions(**{name: value for name, value in params.items() if value is not None})
        assert given.model == SETUPS[family].model and given.benchmark in BENCHMARKS
        assert given.num_frames == (64 if family == "llava_video" else 32)
        assert (given.study, given.methods, tuple(given.ratios)) == ("behaviors", [behavior], RATIOS)


@pytest.mark.parametrize("family", SETUPS)
def test_commands_of_lmms_eval_name_fields_and_tasks(family):
    printed, _ = commands("--family", family, "--tool", "lmms_eval")
    assert len(printed) == 1 + len(RATIOS)
    known = FAMILIES_BY_NAME[family].config.method_fields | {"pretrained", "num_frames"}
    for command in printed:
        assert command[:5] == ["python", "-m", "lmms_eval", "--model", "flashvid"]
        options = dict(zip(command[5::2], command[6::2], strict=False))
        given = dict(argument.split("=") for argument in options["--model_args"].split(","))
        assert given.keys() <= known and given["pretrained"] == SETUPS[family].model
        assert options["--tasks"] == "videomme,egoschema_subset,longvideobench_val_v,mvbench"


def test_published_figures_stand_beside():
    _, comments = commands()
    published = {family: setup.model in PUBLISHED for family, setup in SETUPS.items()}
    assert published == {"llava_onevision": True, "llava_video": True, "qwen2_5_vl": True, "qwen3_vl": False}
    assert "#  10 %: videomme 57.3, egoschema 57.4 / 55.9, longvideobench 57.1, mvbench 65.5" in comments
    assert sum("has no table of this model" in line for line in comments) == 1


@pytest.mark.parametrize("field", ["family", "tool", "behavior"])
def test_wrong_choices_are_refused(field):
    value = ["nothing"] if field == "family" else "nothing"
    with pytest.raises(ValueError, match=f"`{field}` is 'nothing': it must be one of '"):
        reproduction_lines(**{"families" if field == "family" else field: value})
