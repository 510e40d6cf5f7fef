"""The public benchmarks on small local data sets in their formats, and `flashvid-hf evaluate` on one of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import PartialState
from checkpoints import build_flashvid_folder, once
from public_formats import FORMATS, write_videomme
from typer.testing import CliRunner

import flashvid_hf
from flashvid_hf.cli import app
from flashvid_hf.evaluation.benchmarks import BENCHMARKS, load_benchmark
from flashvid_hf.evaluation.mvbench import FOLDERS
from flashvid_hf.evaluation.videomme import load_videomme

datasets = pytest.importorskip("datasets", reason="`pip install flashvid-hf[eval]` provides it")

RUNS = {"no compression", "flashvid 0.1", "flashvid 0.25"}


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path):
    """Give the test its own cache of `datasets`, and its own folder where lmms-eval would unpack videos."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", FORMATS)
def test_questions_are_those_of_the_protocol(name, tmp_path):
    write, expected, num_videos, num_questions = FORMATS[name]
    write(tmp_path / "data")
    items = load_benchmark(name, str(tmp_path / "data"))

    assert len(items) == len({item.id for item in items}) == num_videos  # each video once, with all its questions
    questions = {question.id: (item, question) for item in items for question in item.questions}
    assert len(questions) == num_questions
    item, question = questions[expected.id]
    assert (item.id, question.type, question.form) == (expected.video, expected.type, "choice")
    assert question.prompt == expected.prompt
    assert all(map(question.is_correct, expected.right))
    assert not any(map(question.is_correct, expected.wrong))

    clip = item.load(4)
    assert clip.frames.shape == (4, 252, 336, 3) and clip.metadata.frames_indices[0] == 0
    assert [item.id for item in load_benchmark(name, str(tmp_path / "data"), 1)] == [items[0].id]


@pytest.mark.parametrize(
    ("prompt", "end"),
    [("llava_vid", "\nD. Fog.\nThe best answer is:"), ("qwen3_vl", "\nD. Fog.\nAnswer with the option letter only.")],
)
def test_videomme_asks_two_models_in_their_own_words(prompt, end, tmp_path):
    write_videomme(tmp_path)
    (_, item) = load_benchmark(f"videomme_{prompt}", str(tmp_path))
    assert item.questions[0].prompt.endswith(end)
    begin = "Question: What follows?\nOptions:\nA. Rain." if prompt == "qwen3_vl" else "Select the best answer"
    assert item.questions[0].prompt.startswith(begin)
    with pytest.raises(ValueError, match="`prompt` is 'mine'"):
        load_videomme(str(tmp_path), prompt="mine")


def test_every_public_benchmark_is_tested():
    own = {"moving_shapes", "videomme_llava_vid", "videomme_qwen3_vl"}
    assert BENCHMARKS.keys() == FORMATS.keys() | own
    assert len(FOLDERS) == 20


def test_a_missing_video_is_told_before_anything_runs(tmp_path):
    write_videomme(tmp_path / "data")
    (tmp_path / "data" / "data" / "N1cdUjctpG8.mkv").unlink()
    with pytest.raises(ValueError, match="1 of 2 videos are missing: 'N1cdUjctpG8.mp4'") as error:
        load_benchmark("videomme", str(tmp_path / "data"))
    assert str(tmp_path / "data") in str(error.value)
    assert "hf download lmms-lab/Video-MME --repo-type dataset --local-dir DIR" in str(error.value)
    assert str(tmp_path / "home" / "videomme") in str(error.value)
    assert len(load_benchmark("videomme", str(tmp_path / "data"), limit=1)) == 1  # the missing one is not needed


def test_videos_of_a_repository_are_found_where_lmms_eval_unpacks_them(tmp_path, monkeypatch):
    write_videomme(tmp_path / "home" / "videomme")
    rows = datasets.load_dataset(str(tmp_path / "home" / "videomme"), split="test")
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or rows)
    assert len(load_benchmark("videomme")) == 2
    assert asked == [(("lmms-lab/Video-MME", None), {"split": "test", "revision": None})]


def test_what_is_no_such_data_set_is_refused(tmp_path):
    write_videomme(tmp_path / "data")
    with pytest.raises(ValueError, match=r"`source` .* has no columns \['video_name'\]"):
        load_benchmark("mlvu_dev", str(tmp_path / "data"))
    with pytest.raises(ValueError, match="cannot be read: .*hf download OpenGVLab/MVBench .*--revision video"):
        load_benchmark("mvbench", str(tmp_path / "data"))
    with pytest.raises(ValueError, match="`limit`"):
        load_benchmark("videomme", str(tmp_path / "data"), 0)


def build_work(folder: Path) -> None:
    folder.mkdir()
    build_flashvid_folder(folder / "model")
    write_videomme(folder / "data")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "evaluation", build_work)


def arguments(work: Path, output: Path, *more: str) -> list[str]:
    return [
        *(str(work / "model"), "--benchmark", "videomme", "--source", str(work / "data"), "--limit", "2"),
        *("--methods", "flashvid", "--ratios", "0.1", "0.25", "--num-frames", "4", "--max-new-tokens", "2"),
        *("--output", str(output), *more),
    ]


def run(work: Path, output: Path, *launcher: str) -> None:
    """Evaluate in a separate process, or in the processes that a launcher starts."""
    caches = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    package = {"PYTHONPATH": str(Path(flashvid_hf.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "flashvid_hf.cli", "evaluate", *arguments(work, output)],
        env={**os.environ, **caches, **package},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def again(work):
    """Evaluate in this process."""

    def evaluate(output: Path, *more: str) -> None:
        done = CliRunner().invoke(app, ["evaluate", *arguments(work, output, *more)])
        if done.exception is not None:
            raise done.exception

    yield evaluate
    PartialState._reset_state()


def texts(output: Path) -> dict[tuple[str, str], str]:
    lines = [line for path in output.glob("answers/*.jsonl") for line in path.read_text().splitlines()]
    answers = [answer for line in lines for answer in json.loads(line)]
    assert len(answers) == len({(answer["run"], answer["question"]) for answer in answers})  # none twice
    return {(answer["run"], answer["question"]): answer["text"] for answer in answers}


def test_evaluation_end_to_end(work, again, tmp_path):
    output = tmp_path / "one"
    run(work, output)
    found = texts(output)
    assert {run for run, _ in found} == RUNS and len(found) == 3 * 3
    results = json.loads((output / "results.json").read_text())["results"]
    totals = {group: of_group["total"] for group, of_group in results["flashvid 0.1"]["accuracy"].items()}
    assert totals == {"all": 3, "choice": 3, "short": 2, "long": 1}
    assert results["flashvid 0.1"]["retained"] < results["flashvid 0.25"]["retained"] < 1

    path = output / "answers" / "0.jsonl"
    whole = path.read_text()
    again(output)
    assert path.read_text() == whole  # there was nothing left to answer

    # Interrupted within the last line: only the video of that line is asked again.
    *lines, last = whole.splitlines(keepends=True)
    broken = "".join(lines) + last[:40]
    path.write_text(broken)
    again(output)
    assert path.read_text() == f"{broken}\n{last}"
    assert json.loads((output / "results.json").read_text())["results"] == results

    with pytest.raises(ValueError, match="has answers with `max_new_tokens` 2, not 3"):
        again(output, "--max-new-tokens", "3")
    assert path.read_text() == f"{broken}\n{last}"

    run(work, tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert len(list((tmp_path / "two" / "answers").glob("*.jsonl"))) == 2
    assert texts(tmp_path / "two") == found
    assert json.loads((tmp_path / "two" / "results.json").read_text())["results"] == results
