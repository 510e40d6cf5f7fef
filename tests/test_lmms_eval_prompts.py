"""The prompts of the public benchmarks equal those of lmms-eval's tasks, and both judge right answers as right."""

import importlib
from pathlib import Path

import pytest
import yaml
from public_formats import FORMATS

lmms_eval = pytest.importorskip("lmms_eval", reason="needs lmms-eval, which `make test-lmms-eval` installs apart")
datasets = pytest.importorskip("datasets")

from flashvid_hf.evaluation.benchmarks import load_benchmark  # noqa: E402

# For each benchmark: the file of the task, its function for the prompt, and the model that the prompt is for.
TASKS = {
    "videomme": ("videomme/videomme.yaml", "videomme_doc_to_text", "default"),
    "videomme_llava_vid": ("videomme/videomme.yaml", "videomme_doc_to_text", "llava_vid"),
    "videomme_qwen3_vl": ("videomme/videomme.yaml", "videomme_doc_to_text", "qwen3_vl"),
    "mvbench": ("mvbench/mvbench_moving_count.yaml", "mvbench_doc_to_text", "default"),
    "longvideobench": ("longvideobench/longvideobench_val_v.yaml", "longvideobench_doc_to_text", "default"),
    "egoschema": ("egoschema/egoschema_subset.yaml", "egoschema_doc_to_text", "default"),
    "mlvu_dev": ("mlvu/mlvu_dev.yaml", "mlvu_doc_to_text", "default"),
    "mlvu_test": ("mlvu/mlvu_test.yaml", "mlvu_doc_to_text", "default"),
}
JUDGES = {
    "videomme": ("videomme_process_results", lambda result: result["videomme_perception_score"]["score"]),
    "mvbench": ("mvbench_process_results", lambda result: result["mvbench_accuracy"]["score"]),
    "longvideobench": (
        "longvideobench_process_results",
        lambda result: result["lvb_acc"]["parsed_pred"] == result["lvb_acc"]["answer"],
    ),
    "egoschema": (
        "egoschema_process_results_generation",
        lambda result: str(result["score"]["pred"]) == result["score"]["ground_truth"],
    ),
    "mlvu_dev": (
        "mlvu_process_results",
        lambda result: result["mlvu_percetion_score"]["pred_answer"] == result["mlvu_percetion_score"]["answer"],
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_prompts_and_right_answers_are_those_of_lmms_eval(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write, expected, *_ = FORMATS["videomme" if name.startswith("videomme") else name]
    write(tmp_path / "data")
    file, function, model = TASKS[name]
    folder = file.partition("/")[0]
    lines = (Path(lmms_eval.__file__).parent / "tasks" / file).read_text().splitlines()
    task = yaml.safe_load("\n".join(line for line in lines if "!function" not in line))
    utils = importlib.import_module(f"lmms_eval.tasks.{folder}.utils")
    words = task.get("lmms_eval_specific_kwargs", {}).get(model, {})

    rows = datasets.load_dataset(str(tmp_path / "data"), task.get("dataset_name"), split=task["test_split"])
    theirs = {getattr(utils, function)(row, words) for row in rows}
    questions = [q for item in load_benchmark(name, str(tmp_path / "data")) for q in item.questions]
    ours = {q.prompt for q in questions if name != "mvbench" or q.type == task["dataset_name"]}
    assert ours == theirs

    if name in JUDGES:
        judge, is_right = JUDGES[name]
        row = next(row for row in rows if getattr(utils, function)(row, words) == expected.prompt)
        assert all(is_right(getattr(utils, judge)(row, [text])) for text in expected.right)
