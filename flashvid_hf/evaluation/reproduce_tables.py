"""The commands that measure the paper's tables, and the published figures beside them: `flashvid-hf reproduce`.

    flashvid-hf reproduce --family qwen2_5_vl                    # for `flashvid-hf evaluate`
    flashvid-hf reproduce --family qwen2_5_vl --tool lmms_eval   # for lmms-eval, with the model `flashvid`
    flashvid-hf reproduce --family qwen2_5_vl | bash

None of the commands has been run on the real weights and data. Expect differences of a few tenths of a point: here the
checkpoint's own processor reads and resizes the frames, and the chat template is the checkpoint's, while the paper used
those of lmms-eval's model classes.
"""

import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..compression.validation import check_choice
from ..families import FAMILIES
from ..publishing.published_accuracy import PAPER_NAME, PUBLISHED

RATIOS = (0.1, 0.15, 0.2, 0.25)  # of the paper's tables
BEHAVIORS = ("released", "paper")


class Table(NamedTuple):
    """A column of the tables: the task of lmms-eval, its longest answer in tokens, and the field of `Accuracy`."""

    task: str
    max_new_tokens: int
    field: str


SETUPS = {family.name: family.paper_setup for family in FAMILIES if family.paper_setup}
TABLES = {
    "videomme": Table("videomme", 16, "video_mme"),
    "egoschema": Table("egoschema_subset", 16, "ego_schema"),
    "longvideobench": Table("longvideobench_val_v", 32, "long_video_bench"),
    "mvbench": Table("mvbench", 16, "mv_bench"),
}


def evaluate_commands(family: str, behavior: str, output: str) -> Iterator[list[str]]:
    """One command for each benchmark. Each measures the model without FlashVID and at all ratios."""
    setup = SETUPS[family]
    for name, table in TABLES.items():
        yield [
            *("flashvid-hf", "evaluate", setup.model),
            *("--benchmark", setup.videomme if name == "videomme" else name),
            *("--study", "behaviors", "--methods", behavior, "--ratios", *map(str, RATIOS)),
            *("--num-frames", str(setup.num_frames), "--max-new-tokens", str(table.max_new_tokens)),
            *("--output", f"{output}/{family}/{name}"),
        ]


def lmms_eval_commands(family: str, behavior: str, output: str) -> Iterator[list[str]]:
    """One command without FlashVID, and one for each ratio. Each measures all benchmarks."""
    setup = SETUPS[family]
    settings = {"vanilla": "compression_method=none"}
    settings |= {f"{ratio}": f"retention_ratio={ratio},behavior={behavior}" for ratio in RATIOS}
    for name, setting in settings.items():
        yield [
            *("python", "-m", "lmms_eval", "--model", "flashvid"),
            *("--model_args", f"pretrained={setup.model},num_frames={setup.num_frames},{setting}"),
            *("--tasks", ",".join(table.task for table in TABLES.values())),
            *("--batch_size", "1", "--log_samples", "--output_path", f"{output}/{family}/lmms_eval/{name}"),
        ]


COMMANDS = {"evaluate": evaluate_commands, "lmms_eval": lmms_eval_commands}


def published_lines(family: str) -> Iterator[str]:
    """The paper's figures, as comments."""
    published = PUBLISHED.get(SETUPS[family].model)
    if published is None:
        yield f"# {PAPER_NAME} has no table of this model."
        return
    yield f"# Published, {PAPER_NAME}, {published.tables}, {published.frames}; EgoSchema: subset / total."
    for row in published.accuracies:
        values = [getattr(row, table.field) for table in TABLES.values()]
        texts = [" / ".join(map(str, value if isinstance(value, tuple) else (value,))) for value in values]
        figures = ", ".join(f"{name} {text}" for name, text in zip(TABLES, texts, strict=True))
        yield f"# {row.percent:3} %: {figures}"


def reproduction_lines(
    families: Sequence[str] | None = None,
    tool: str = "evaluate",
    behavior: str = "released",
    output: str = "build/tables",
) -> Iterator[str]:
    """The commands that measure the tables of each family, and the published figures as comments.

    Args:
        families: names in `SETUPS`; `None` takes all.
        tool: the tool that measures, one of `COMMANDS`.
        behavior: "released" for that of the released code, which the paper's figures come from, or "paper".
        output: folder of the results.

    Raises:
        ValueError: a family, the tool or the behavior is not one of these.
    """
    for family in families or ():
        check_choice("family", family, tuple(SETUPS))
    check_choice("tool", tool, tuple(COMMANDS))
    check_choice("behavior", behavior, BEHAVIORS)
    return (line for family in families or SETUPS for line in _family_lines(family, tool, behavior, output))


def _family_lines(family: str, tool: str, behavior: str, output: str) -> Iterator[str]:
    yield f"# {family}"
    if tool == "lmms_eval" and SETUPS[family].videomme != "videomme":
        yield "# lmms-eval has words of its own for this family on VideoMME; `flashvid` is asked in the default ones."
    for command in COMMANDS[tool](family, behavior, output):
        yield shlex.join(command)
    yield from published_lines(family)
    yield ""
