"""The results that FlashVID's authors published (arXiv 2602.08024).

The authors measured all numbers with their code (`behavior="released"`); this project has measured none of them.
"""

from typing import NamedTuple

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

PAPER_NAME = "FlashVID, arXiv 2602.08024"
PAPER_URL = "https://arxiv.org/abs/2602.08024"


class Accuracy(NamedTuple):
    """One row of the paper's tables: accuracies in percent.

    Args:
        percent: share of the video tokens that a layer sees on average; 100 is the model without FlashVID.
        video_mme: the overall accuracy.
        ego_schema: accuracies on the subset and on all questions.
        relative: `average` in percent of the average without FlashVID.
    """

    percent: int
    video_mme: float
    ego_schema: tuple[float, float]
    long_video_bench: float
    mv_bench: float
    average: float
    relative: float


class Speed(NamedTuple):
    """Speed with 10 percent of the tokens, and without FlashVID: every field but `table` is this pair.

    Args:
        table: the table of the paper.
        tflops: computation of the language model's prefill in TFLOPs.
        prefill: milliseconds of the language model on the prompt, with the compression before it.
        first_token: milliseconds of the vision tower and the prefill.
    """

    table: str
    tflops: tuple[float, float]
    prefill: tuple[float, float]
    first_token: tuple[float, float]


class Published(NamedTuple):
    """The paper's results for one model.

    Args:
        model: its name in the paper.
        tables: the tables of the paper with these results.
        frames: number of frames in the accuracy measurements, and tokens a frame.
        speed: on one A100 at 64 frames of VideoMME.
    """

    model: str
    tables: str
    frames: str
    accuracies: tuple[Accuracy, ...]
    speed: Speed | None = None


# The paper's results, by the base's id on the Hub.
PUBLISHED: dict[str, Published] = {
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": Published(
        "LLaVA-OneVision-7B",
        "Table 1",
        "32 frames of 196 tokens",
        (
            Accuracy(100, 58.5, (62.2, 60.3), 56.6, 58.3, 58.4, 100),
            Accuracy(25, 59.2, (63.4, 60.4), 56.8, 58.0, 58.6, 100.3),
            Accuracy(20, 58.2, (63.0, 60.1), 58.5, 58.2, 58.7, 100.5),
            Accuracy(15, 58.2, (62.8, 60.4), 57.5, 57.9, 58.5, 100.2),
            Accuracy(10, 57.8, (62.4, 60.0), 56.5, 57.4, 57.9, 99.1),
        ),
        Speed("Table 6", (8.6, 113.4), (193.3, 1220.8), (978.3, 2005.8)),
    ),
    "lmms-lab/LLaVA-Video-7B-Qwen2": Published(
        "LLaVA-Video-7B",
        "Tables 1 and 9",
        "64 frames of 169 tokens",
        (
            Accuracy(100, 64.2, (59.4, 57.3), 59.5, 61.9, 60.7, 100),
            Accuracy(25, 62.4, (59.2, 56.6), 59.1, 60.2, 59.6, 98.2),
            Accuracy(20, 62.2, (58.4, 56.4), 58.7, 59.8, 59.3, 97.7),
            Accuracy(15, 61.8, (57.8, 55.8), 58.3, 60.4, 59.1, 97.4),
            Accuracy(10, 60.9, (57.2, 54.9), 57.7, 59.3, 58.2, 95.9),
        ),
        Speed("Table 10", (8.0, 94.8), (193.3, 1016.8), (878.3, 1701.8)),
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": Published(
        "Qwen2.5-VL-7B",
        "Tables 2 and 7",
        "32 frames",  # the authors' scripts; tokens by resolution
        (
            Accuracy(100, 61.3, (60.2, 58.3), 58.9, 68.0, 61.6, 100),
            Accuracy(25, 59.6, (59.4, 57.2), 58.1, 67.1, 60.5, 98.2),
            Accuracy(20, 59.6, (59.2, 56.8), 58.1, 66.5, 60.2, 97.7),
            Accuracy(15, 58.7, (57.6, 56.4), 56.8, 66.6, 59.6, 96.8),
            Accuracy(10, 57.3, (57.4, 55.9), 57.1, 65.5, 58.9, 95.6),
        ),
    ),
}

# File of `.eval_results`, data set on the Hub, field of `Accuracy`. EgoSchema is left out because its data set has had
# more than one id. Each benchmark has a file of its own, so that the Hub can refuse one and take the others.
BENCHMARKS = (
    ("video-mme", "lmms-lab/Video-MME", "video_mme"),
    ("longvideobench", "longvideobench/LongVideoBench", "long_video_bench"),
    ("mvbench", "OpenGVLab/MVBench", "mv_bench"),
)


def render_eval_results(base: str | None, retention_ratio: float) -> dict[str, str]:
    """The published accuracies of a base model as files in the Hub's format for evaluation results.

    Args:
        base: the base's id on the Hub.
        retention_ratio: of the repository. Only accuracies at this ratio are results of the repository.

    Returns:
        Text by path in the repository (`.eval_results/NAME.yaml`); empty if the paper has no such result.
    """
    published = PUBLISHED.get(base or "")
    if published is None:
        return {}
    percent = round(100 * retention_ratio, 6)  # 100 * 0.07 is 7.000000000000001
    row = next((row for row in published.accuracies if row.percent == percent < 100), None)
    if row is None:
        return {}
    notes = (
        f"Published by FlashVID's authors ({published.tables}): accuracy in %, measured with their code and LMMs-Eval "
        f"at retention_ratio {retention_ratio:g}, {published.frames}. Not measured with this repository."
    )
    files = {}
    for name, dataset, field in BENCHMARKS:
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id="default",
            value=getattr(row, field),
            source_url=PAPER_URL,
            source_name=PAPER_NAME,
            notes=notes,
        )
        text = yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, width=float("inf"))
        files[f".eval_results/{name}.yaml"] = text
    return files
