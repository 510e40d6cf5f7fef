"""lmms-eval's own command line with the model `flashvid`, on local tasks: the demo clip, and videos of MovingShapes.

Runs where lmms-eval is installed: `make test-lmms-eval`, in an environment of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import CLIP, build_flashvid_folder, once
from PIL import Image
from transformers import Pipeline

pytest.importorskip("lmms_eval", reason="needs lmms-eval, which `make test-lmms-eval` installs apart")

from flashvid_hf.evaluation import moving_shapes as ms
from flashvid_hf.evaluation.lmms_eval_model import FlashVIDForLmmsEval, _cut, _read_generation
from flashvid_hf.families import FAMILIES_BY_NAME
from flashvid_hf.loading import load_pipeline

QUESTIONS = ("What rolls?", "Which colour has the square?", "What follows the night?", "Who passes whom?", "Why?")
NUM_FRAMES = 8
UNTIL = "m"  # a character that many answers of a model with random weights contain
TRAINED = CLIP.parents[1] / "hub_configs" / "flashvid-demo"
TASK = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: answer
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: 6
  temperature: 0
  top_p: 1.0
  do_sample: false
  until: ["{until}"]
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
"""
UTILS = """\
def doc_to_visual(doc):
    return [doc["video"]]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    return {"exact": float(results[0] == doc["answer"])}
"""


def build_work(folder: Path) -> None:
    (folder / "tasks").mkdir(parents=True)
    for family in ("qwen2_5_vl", "llava_video"):
        build_flashvid_folder(folder / family, family)
    shapes = []
    for scene in map(ms.make_scene, ms.video_seeds("test", 3)):
        video = str(ms.write_clip(scene, folder / f"{scene.seed}.mp4"))
        prompts = [prompt for prompt in ms.make_prompts(scene) if prompt.form == "open"]
        shapes += [{"video": video, "question": prompt.text, "answer": prompt.answer} for prompt in prompts]
    clip = [{"video": str(CLIP), "question": question, "answer": "A"} for question in QUESTIONS]
    for task, rows, until in (("flashvid_clip", clip, UNTIL), ("shapes", shapes, "\\n")):
        data = folder / f"{task}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "tasks" / f"{task}.yaml").write_text(TASK.format(task=task, data=data, until=until))
    (folder / "tasks" / "utils.py").write_text(UTILS)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "lmms-eval", build_work)


def lmms_eval(
    work: Path, output: Path, model_args: str, *arguments: str, processes: int = 1, task: str = "flashvid_clip"
) -> str:
    """Run the command line, and return what it wrote."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    home = {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            *(sys.executable, *(launcher if processes > 1 else ()), "-m", "lmms_eval", "--model", "flashvid"),
            *("--model_args", model_args, "--tasks", task, "--include_path", str(work / "tasks")),
            *("--device", "cpu", "--log_samples", "--output_path", str(output), *arguments),
        ],
        env={**os.environ, **home},
        cwd=work,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def answers(output: Path) -> dict[str, str]:
    """The logged answers, by their questions."""
    (path,) = output.rglob("*_samples_flashvid_clip.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(samples) == len(QUESTIONS)
    return {QUESTIONS[sample["doc_id"]]: sample["filtered_resps"] for sample in samples}


def throughput(output: Path) -> dict[str, Any]:
    (path,) = output.rglob("*_results.json")
    return json.loads(path.read_text())["throughput"]


def ask(pipe: Pipeline) -> dict[str, dict[str, Any]]:
    generation = {"num_frames": NUM_FRAMES, "max_new_tokens": 6, "do_sample": False}
    return {question: pipe(str(CLIP), text=question, **generation)[0] for question in QUESTIONS}


@pytest.mark.parametrize(
    ("family", "ratio", "arguments", "processes"),
    [
        ("qwen2_5_vl", 0.25, (), 1),
        ("qwen2_5_vl", 0.1, ("--batch_size", "2"), 1),
        ("llava_video", 0.1, (), 2),
    ],
)
def test_answers_are_those_of_the_pipeline(family, ratio, arguments, processes, work, tmp_path):
    model_args = f"pretrained={work / family},num_frames={NUM_FRAMES},retention_ratio={ratio},alpha=0.5"
    written = lmms_eval(work, tmp_path, model_args, *arguments, processes=processes)
    expected = ask(load_pipeline(str(work / family), device="cpu", retention_ratio=ratio, alpha=0.5))
    found = answers(tmp_path)
    whole = {question: answer["generated_text"] for question, answer in expected.items()}
    assert found == {question: text.partition(UNTIL)[0] for question, text in whole.items()}, written[-3000:]
    assert len(set(found.values())) > 1  # not all answers are equal, so comparing them means something
    # The settings reach the model: all answers have the same counts, and another ratio gives other counts.
    counts = next(iter(expected.values()))["video_tokens"]
    logged = throughput(tmp_path)
    assert {stage: logged[f"avg_video_tokens_{stage}"] for stage in counts} == counts
    if processes > 1:
        assert "rank 1" in written.lower(), written[-3000:]


def test_the_trained_model_sees(work, tmp_path):
    model_args = f"pretrained={TRAINED},num_frames={ms.NUM_FRAMES},retention_ratio=0.1"
    written = lmms_eval(work, tmp_path, model_args, task="shapes")
    (path,) = tmp_path.rglob("*_results.json")
    results = json.loads(path.read_text())
    assert results["results"]["shapes"]["exact,none"] > 0.5, written[-3000:]  # guessing gives at most a quarter
    assert results["throughput"]["avg_video_tokens_entered"] == 64


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ("retention=0.1", "`retention` is no argument of the model `flashvid`: choose from alpha, attn_implementation"),
        ("retention_ratio=2", "`retention_ratio`"),
        ("num_frames=0", "`num_frames`"),
    ],
)
def test_wrong_arguments_are_refused(model_args, message, work, tmp_path):
    given = dict([argument.split("=") for argument in model_args.split(",")])
    with pytest.raises(ValueError, match=message):
        FlashVIDForLmmsEval.create_from_arg_string(f"pretrained={work / 'qwen2_5_vl'},{model_args}", {"device": "cpu"})
    if "retention" in given:  # the command line sets it too
        written = lmms_eval(work, tmp_path, f"pretrained={work / 'qwen2_5_vl'},{model_args}")
        assert message in written and not list(tmp_path.rglob("*.jsonl"))


def test_every_argument_reaches_the_model(work):
    settings = 'compression_method=fastv,method_settings={"pruning_layer": 3, "pruning_layer": 2}'
    model = FlashVIDForLmmsEval.create_from_arg_string(
        f"pretrained={work / 'qwen2_5_vl'},dtype=bfloat16,attn_implementation=eager,device_map=cpu,"
        f"vision_chunk_size=None,retention_ratio=0.5,{settings}",
        {"device": "meta", "batch_size": "3"},
    )
    config = model.pipe.model.config
    assert (config.compression_method, config.method_settings) == ("fastv", {"pruning_layer": 2})
    assert (config.vision_chunk_size, config.retention_ratio) == (None, 0.5)
    assert config._attn_implementation == "eager" and str(model.pipe.model.dtype) == "torch.bfloat16"
    assert (model.batch_size, str(model.device), model.rank, model.world_size) == (3, "cpu", 0, 1)
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="`method_settings` is .* no JSON"):
        FlashVIDForLmmsEval(str(work / "qwen2_5_vl"), method_settings="{1")
    with pytest.raises(ValueError, match="`pretrained` is missing"):
        FlashVIDForLmmsEval()


@pytest.mark.parametrize("family", FAMILIES_BY_NAME)
def test_every_family_reads_text_images_and_videos(family, tmp_path):
    folder = build_flashvid_folder(tmp_path / family, family)
    text = {"type": "text", "text": "What rolls?"}
    docs = [
        [{"type": "video", "url": str(CLIP)}, text],
        [text],
        [{"type": "image", "url": Image.new("RGB", (112, 84), "red")}, text],
        [{"type": "video", "url": str(CLIP)}, {"type": "text", "text": "Why?"}],
    ]
    model = FlashVIDForLmmsEval(str(folder), num_frames=4, device="cpu", batch_size="2")
    model.task_dict = {"task": {"test": docs}}

    def request(number: int, max_new_tokens: int) -> SimpleNamespace:
        def to_messages(doc):
            return [{"role": "user", "content": doc}]

        return SimpleNamespace(args=("", to_messages, {"max_new_tokens": max_new_tokens}, number, "task", "test"))

    # The lengths alternate, so that the batches and the order of the answers differ from the order of the requests.
    found = model.generate_until([request(i, 2 + i % 2) for i in range(len(docs))])
    for i, (answer, doc) in enumerate(zip(found, docs, strict=True)):
        parts = [{part["type"]: part.get("url"), **part} for part in doc]
        expected = model.pipe(
            [{"role": "user", "content": parts}], num_frames=4, max_new_tokens=2 + i % 2, do_sample=False
        )
        assert answer == expected[0]["generated_text"].strip() != ""

    for part, message in (
        ({"type": "audio", "url": "a.wav"}, "'audio'"),
        ({"type": "video", "url": str(CLIP), "start_time": 1.0}, "a part of a video"),
    ):
        docs[0] = [part]
        with pytest.raises(ValueError, match=message):
            model.generate_until([request(0, 2)])


def test_generation_arguments():
    assert _read_generation({"temperature": 0, "top_p": 1.0, "max_new_tokens": 4, "until": "\n\n"}) == (
        ("\n\n",),
        {"max_new_tokens": 4, "do_sample": False},
    )
    assert _read_generation({"temperature": 0.7, "until": None}) == ((), {"temperature": 0.7, "do_sample": True})
    assert _read_generation({"image_aspect_ratio": "pad", "num_beams": 2}) == ((), {"num_beams": 2, "do_sample": False})
    assert _cut("one\n\ntwo. three", (".", "\n\n")) == "one"
