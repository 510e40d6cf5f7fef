"""The parts of an evaluation: judging answers, sharing a video between questions, statistics, studies, the picture."""

import argparse
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import once
from typer.testing import CliRunner

from flashvid_hf import FlashVIDQwen2_5_VLConfig, read_video
from flashvid_hf.cli import app
from flashvid_hf.evaluation import answer_files, studies, tables
from flashvid_hf.evaluation.arguments import COUNT, SHARE, number
from flashvid_hf.evaluation.benchmarks import BENCHMARKS, load_benchmark
from flashvid_hf.evaluation.evaluate import RATIOS, EvaluationOptions, evaluate_model
from flashvid_hf.evaluation.fingerprint import fingerprint_model, fingerprint_questions
from flashvid_hf.evaluation.items import Question, VideoItem
from flashvid_hf.evaluation.plot import plot_accuracy
from flashvid_hf.evaluation.runner import Answer, Run, answer_items
from flashvid_hf.evaluation.statistics import summarize
from flashvid_hf.evaluation.studies import REFERENCE, STUDIES
from flashvid_hf.evaluation.whole_files import replacing, write_whole
from flashvid_hf.loading import load_model
from flashvid_hf.tiny_models import build_small_folder

CLIP = Path(__file__).resolve().parent.parent / "examples" / "clip.mp4"


# Judging answers


@pytest.mark.parametrize(
    ("text", "right"),
    [("B", True), ("B.", True), ("(B) a dog", True), ("The answer is B.", True), ("A", False), ("b", False),
     ("", False), ("X, no, B", True), ("Because C", False)],
)  # fmt: skip
def test_the_first_letter_of_an_option_counts(text, right):
    assert Question("q", "?", "B", "type").is_correct(text) is right


@pytest.mark.parametrize(
    ("text", "right"), [("red", True), ("Red.", True), (" the red ", True), ("red circle", False), ("", False)]
)
def test_an_open_answer_counts_as_a_whole(text, right):
    assert Question("q", "?", "red", "type", form="open").is_correct(text) is right


# Asking a model

QUESTIONS = tuple(Question(f"v-{i}", prompt, "A", "what") for i, prompt in enumerate(["What?", "Who is it?", "Where?"]))
ITEM = VideoItem("v", lambda num_frames: read_video(CLIP, num_frames=num_frames), QUESTIONS)
RUNS = [
    Run("off", {"retention_ratio": 1.0}),
    Run("flashvid", {"retention_ratio": 0.25}),
    Run("random", {"compression_method": "random", "retention_ratio": 0.25}),
]


@pytest.fixture(scope="session", params=["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def loaded(request, tmp_path_factory):
    folder = once(tmp_path_factory, f"evaluation-{request.param}", lambda path: build_small_folder(path, request.param))
    return load_model(str(folder), device="cpu")


def ask(loaded, runs=RUNS, **kwargs) -> dict[tuple[str, str], Answer]:
    answers = answer_items(*loaded, [ITEM], runs, num_frames=8, max_new_tokens=4, **kwargs)
    return {(answer.run, answer.question): answer for of_video in answers for answer in of_video}


def test_answers_are_those_of_the_model_alone(loaded):
    """Answers do not depend on what shares the video: other questions, other settings, a batch."""
    model, processor = loaded
    singles = ask(loaded)
    assert set(singles) == {(run.name, question.id) for run in RUNS for question in QUESTIONS}
    assert ask(loaded, batch_size=2) == singles
    assert singles["off", "v-0"].retained == 1
    for run in RUNS[1:]:
        answer = singles[run.name, "v-1"]
        assert answer.tokens > answer.entered >= answer.remained > 0
        assert answer.retained == pytest.approx(0.25, rel=0.2)  # newlines and rounding in so small a video

    clip = read_video(CLIP, num_frames=8)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who is it?"}]}]
    inputs = processor(
        text=[processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)],
        videos=[clip.frames],
        video_metadata=[clip.metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    for run in RUNS:
        sequence = model.generate(**inputs, do_sample=False, max_new_tokens=4, **run.settings)
        text = processor.batch_decode(sequence[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        assert singles[run.name, "v-1"].text == text.strip()


def test_what_is_done_is_not_asked_again(loaded):
    done = frozenset({("off", "v"), ("random", "v")})
    assert {run for run, _ in ask(loaded, done=done)} == {"flashvid"}
    never = replace(ITEM, load=lambda num_frames: pytest.fail("the video is not needed"))
    done |= {("flashvid", "v")}
    assert not list(answer_items(*loaded, [never], RUNS, num_frames=8, done=done))


# Statistics


def make_answers(run: str, right: np.ndarray, retained: float = 0.1) -> list[Answer]:
    """Answers with the given correctness (videos, questions); the first question of every video has another type."""
    counts = dict(text="", tokens=100, entered=20, remained=5, retained=retained)
    kinds = ["first", *["other"] * (right.shape[1] - 1)]
    return [
        Answer(run, f"{v}", f"{v}-{q}", kinds[q], "choice", correct=bool(is_right), **counts)
        for v, of_video in enumerate(right)
        for q, is_right in enumerate(of_video)
    ]


def test_accuracy_by_type_with_intervals():
    right = np.random.default_rng(0).random((50, 4)) < 0.7
    summary = summarize(make_answers("run", right))["run"]
    assert (summary["entered"], summary["remained"]) == pytest.approx((0.2, 0.05))
    for group, part in {"all": right, "choice": right, "first": right[:, :1], "other": right[:, 1:]}.items():
        found = summary["accuracy"][group]
        assert (found["correct"], found["total"]) == (part.sum(), part.size)
        assert found["low"] < found["value"] == part.mean() < found["high"]
        # With independent questions, the bootstrap over videos is close to the normal approximation.
        error = 1.96 * np.sqrt(part.mean() * (1 - part.mean()) / part.size)
        assert found["high"] - found["low"] == pytest.approx(2 * error, rel=0.25)
    assert summarize(make_answers("run", right)) == summarize(make_answers("run", right)[::-1])


def test_questions_about_one_video_are_no_independent_evidence():
    of_videos = np.random.default_rng(0).random((50, 1)) < 0.6
    same, single = (summarize(make_answers("run", np.repeat(of_videos, n, 1)))["run"]["accuracy"] for n in (8, 1))
    assert same["all"]["low"] == single["all"]["low"] and same["all"]["high"] == single["all"]["high"]


def test_differences_are_paired():
    """If two runs fail on different questions, their difference is less certain than their own intervals suggest."""
    base = np.random.default_rng(1).random((60, 4)) < 0.6
    better = base.copy()
    better[:12, 1] = True
    summary = summarize(make_answers("base", base) + make_answers("better", better), {"better": "base"})
    found = summary["better"]["accuracy"]["all"]
    assert found["difference"] == pytest.approx(better.mean() - base.mean())
    assert 0 <= found["difference_low"] < found["difference"] < found["difference_high"]
    assert found["difference_high"] - found["difference_low"] < found["high"] - found["low"]
    assert summary["better"]["reference"] == "base"
    assert "difference" not in summary["base"]["accuracy"]["all"] and "reference" not in summary["base"]


def test_runs_that_cannot_be_compared():
    right = np.ones((3, 2))
    answers = make_answers("a", right) + make_answers("b", right[:2])
    with pytest.raises(ValueError, match="'b' has other 'all' questions than 'a'"):
        summarize(answers, {"b": "a"})
    with pytest.raises(ValueError, match="`references` has 'c': it must be one of 'a', 'b'"):
        summarize(answers, {"a": "c"})


def test_picture(tmp_path):
    answers = make_answers("off", np.ones((9, 4)), 1.0)
    for ratio in (0.05, 0.1):
        answers += make_answers(f"flashvid {ratio}", np.random.default_rng(3).random((9, 4)) < 0.7, ratio)
    lines = {"flashvid": ["flashvid 0.05", "flashvid 0.1"]}
    pictures = []
    for name in ("a.png", "b.png"):
        plot_accuracy(summarize(answers), tmp_path / name, lines=lines, reference="off")
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1] and len(pictures[0]) > 10_000


# Benchmarks and studies


def test_unknown_benchmark():
    with pytest.raises(ValueError, match="`benchmark` is 'nothing': it must be one of 'moving_shapes'"):
        load_benchmark("nothing")


def test_moving_shapes():
    items = load_benchmark("moving_shapes", limit=3)
    assert len({question.id for item in items for question in item.questions}) >= 40
    clip = items[0].load(BENCHMARKS["moving_shapes"].num_frames)
    assert clip.frames.shape == (16, 128, 128, 3) and clip.metadata.fps == 2
    questions = [question for item in items for question in item.questions]
    assert {question.form for question in questions} == {"choice", "open"}
    assert all(q.is_correct(f"{q.answer.title()}.") and not q.is_correct(f"not {q.answer}") for q in questions)


@pytest.mark.parametrize("name", STUDIES)
def test_studies_have_settings_that_exist(name):
    config = FlashVIDQwen2_5_VLConfig()
    planned = studies.plan_runs(config, STUDIES[name], None, [0.1, 0.25])
    assert list(planned) == list(STUDIES[name].lines)
    for of_line in planned.values():
        for run in of_line:
            assert config.override(**run.settings).compresses


def test_a_method_that_cannot_keep_so_little_is_left_out():
    config = FlashVIDQwen2_5_VLConfig(text_config={"num_hidden_layers": 28})
    said = []
    planned = studies.plan_runs(config, STUDIES["methods"], ["fastv"], [0.02, 0.1], said.append)
    assert [run.name for run in planned["fastv"]] == ["fastv 0.1"]
    (line,) = said
    assert line.startswith("left out: fastv 0.02: `retention_ratio` is 0.02")


def test_runs_are_compared_with_the_first_line_at_their_ratio():
    config = FlashVIDQwen2_5_VLConfig(text_config={"num_hidden_layers": 28})
    planned = studies.plan_runs(config, STUDIES["methods"], ["flashvid", "fastv", "evs"], [0.02, 0.1])
    references = studies.find_references(planned)
    assert references == {
        "flashvid 0.02": REFERENCE,
        "flashvid 0.1": REFERENCE,
        "fastv 0.1": "flashvid 0.1",
        "evs 0.02": "flashvid 0.02",
        "evs 0.1": "flashvid 0.1",
    }
    # If the first line cannot keep so few tokens, the comparison is with no compression.
    del planned["flashvid"]
    references = studies.find_references(planned)
    assert references["evs 0.02"] == REFERENCE and references["evs 0.1"] == "fastv 0.1"


def test_table():
    right = np.random.default_rng(0).random((20, 3)) < 0.5
    answers = make_answers(REFERENCE, np.ones((20, 3)), 1.0) + make_answers("a 0.1", right)
    results = summarize(answers, {"a 0.1": REFERENCE})
    lines = {"a": [Run("a 0.1", {"retention_ratio": 0.1})]}
    header, _, none, row = tables.make_table(results, lines).splitlines()
    assert header == "| run | entered / remained / average | all | difference | first | other |"
    assert none.startswith("| no compression | 20.0% / 5.0% / 100.0% | 100.0 (100.0 – 100.0) |  | 100.0 |")
    difference = 100 * right.mean() - 100
    whole, _, ratios, _, overview = tables.make_overview(results, lines).splitlines()
    assert (whole, ratios) == ("No compression: 100.0 (100.0 – 100.0)", "| | 10% |")
    assert overview == f"| a |{row.split('|')[3]}|"
    assert f"| {100 * right.mean():.1f} (" in row and f"| {difference:+.1f} (" in row


def test_a_broken_last_line_is_not_an_answer(tmp_path):
    answers = make_answers("run", np.ones((2, 2)))
    lines = [json.dumps([asdict(answer) for answer in answers[i : i + 2]]) for i in (0, 2)]
    (tmp_path / "0.jsonl").write_text(f"{lines[0]}\n{lines[1][:40]}")
    assert answer_files.read_answers(tmp_path) == answers[:2]


def options_of(monkeypatch, *arguments: str) -> EvaluationOptions:
    """The options that the command line passes on."""
    passed = []
    monkeypatch.setattr("flashvid_hf.evaluation.evaluate.evaluate_model", lambda options, say: passed.append(options))
    done = CliRunner().invoke(app, ["evaluate", *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return passed[0]


def test_arguments(monkeypatch):
    given = options_of(monkeypatch, "model", "--output", "out", "--methods", "evs", "flashvid")
    assert given.methods == ["evs", "flashvid"] and given.ratios == RATIOS
    given = options_of(monkeypatch, "--ratios", "0.1", "0.25", "--methods", "evs", "--output", "out", "model")
    assert (given.model, given.ratios, given.methods) == ("model", (0.1, 0.25), ["evs"])
    repeated = options_of(monkeypatch, "model", "--output", "out", "--ratios", "0.1", "--ratios", "0.25")
    assert repeated.ratios == (0.1, 0.25)
    assert given.command() == "flashvid-hf evaluate model --methods evs --ratios 0.1 0.25"
    assert options_of(monkeypatch, *given.command().split()[2:], "--output", "out") == given


def test_the_defaults_of_the_command_line_are_those_of_the_options(monkeypatch):
    assert options_of(monkeypatch, "model", "--output", "out") == EvaluationOptions("model", Path("out"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": ["nothing"]}, "`methods` has 'nothing': the study 'methods' has 'flashvid', "),
        ({"study": "nothing"}, "`study` is 'nothing': it must be one of 'methods', "),
        ({"benchmark": "nothing"}, "`benchmark` is 'nothing': it must be one of 'moving_shapes', "),
        ({"ratios": [0.1, 0]}, "`ratios` is 0: it must be a number above 0 and at most 1"),
        ({"ratios": [10]}, "`ratios` is 10: it must be a number above 0 and at most 1"),
        ({"ratios": [0.1, 0.2, 0.1]}, "`ratios` has two that are 0.1 when rounded to six digits"),
        ({"ratios": [0.12345678, 0.12345679]}, "`ratios` has two that are 0.123457"),
        ({"ratios": []}, "at least one entry each. Leave them out"),
        ({"limit": 0}, "`limit` is 0: it must be an integer at least 1"),
        ({"num_frames": 0}, "`num_frames` is 0: it must be an integer at least 1"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0: it must be an integer at least 1"),
        ({"batch_size": 1.5}, "`batch_size` is 1.5: it must be an integer at least 1"),
        ({"dtype": "nothing"}, "`dtype` is 'nothing': it must be 'auto' or a type of torch such as 'bfloat16'"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(ValueError, match=said):
        EvaluationOptions("model", Path("out"), **options)


def test_an_output_with_other_answers_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    for name in ("load_benchmark", "load_model"):
        monkeypatch.setattr(f"flashvid_hf.evaluation.evaluate.{name}", lambda *_, **__: pytest.fail("too early"))
    noted = answer_files.Evaluation(
        "other", "moving_shapes", None, None, 16, 16, 8, "torch.float32", {}, "sha256 1", "sha256 2"
    )
    answer_files.prepare_output(tmp_path / "out", noted)
    with pytest.raises(ValueError, match="has answers with `model` 'other', not 'model'. Choose another folder"):
        evaluate_model(EvaluationOptions("model", tmp_path / "out"))
    with pytest.raises(ValueError, match="which is a file: it must be a folder"):
        evaluate_model(EvaluationOptions("model", tmp_path / "out" / "evaluation.json"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'need scipy, which is missing: `pip install "flashvid-hf\[eval\]"`'):
        evaluate_model(EvaluationOptions("model", tmp_path / "new"))


# Results of two models or two sets of questions are never mixed


def write_model(folder: Path, **changes: bytes) -> Path:
    """A folder that is read as far as an evaluation needs before it loads the model."""
    folder.mkdir(exist_ok=True)
    files = {"config.json": b'{"alpha": 0.7}', "model.safetensors": bytes(100), "tokenizer.json": b"{}", **changes}
    for name, content in {**files, "README.md": b"# A card"}.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def evaluated(tmp_path, monkeypatch) -> EvaluationOptions:
    """The options of an evaluation that was begun; the model cannot be loaded."""
    folder = write_model(tmp_path / "model")
    monkeypatch.setattr("flashvid_hf.evaluation.evaluate.load_benchmark", lambda *_: [ITEM])
    monkeypatch.setattr("flashvid_hf.evaluation.evaluate.load_model", lambda *_, **__: pytest.fail("it goes on"))
    found = fingerprint_model(str(folder)), fingerprint_questions([ITEM])
    noted = answer_files.Evaluation(str(folder), "moving_shapes", None, None, 16, 16, 8, "torch.float32", {}, *found)
    answer_files.prepare_output(tmp_path / "out", noted)
    return EvaluationOptions(str(folder), tmp_path / "out")


def test_the_same_model_goes_on(evaluated):
    (Path(evaluated.model) / "README.md").write_text("# Another card")
    with pytest.raises(pytest.fail.Exception, match="it goes on"):
        evaluate_model(evaluated)


@pytest.mark.parametrize(
    "change",
    [
        {"model.safetensors": bytes(99) + b"1"},  # the last byte of the weights
        {"config.json": b'{"alpha": 0.6}'},
        {"tokenizer.json": b'{"a": 1}'},
        {"model-00002-of-00002.safetensors": b""},
        {"generation_config.json": b"{}"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_model_that_changed_under_its_name_is_refused(evaluated, change):
    write_model(Path(evaluated.model), **change)
    with pytest.raises(
        ValueError, match=r"answers with `model_fingerprint` 'sha256 \w+', not .* Choose another folder"
    ):
        evaluate_model(evaluated)


def test_the_base_of_a_weightless_folder_counts(tmp_path):
    base = write_model(tmp_path / "base")
    folder = write_model(tmp_path / "f", **{"config.json": json.dumps({"base_model_name_or_path": str(base)}).encode()})
    before = fingerprint_model(str(folder))
    write_model(base, **{"model.safetensors": b"other"})
    assert re.fullmatch(r"sha256 \w{64}, base sha256 \w{64}", before)
    assert fingerprint_model(str(folder)).partition(", ")[0] == before.partition(", ")[0] != before
    assert fingerprint_model(str(folder)) != before


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    commit = "c" * 40
    file = tmp_path / "models--acme--m" / "snapshots" / commit / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    monkeypatch.setattr("flashvid_hf.evaluation.fingerprint.hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", lambda name: ({}, {}))
    assert fingerprint_model("acme/m") == f"commit {commit}"


def test_other_questions_are_refused(evaluated, monkeypatch):
    other = replace(ITEM, questions=(replace(QUESTIONS[0], answer="B"), *QUESTIONS[1:]))
    monkeypatch.setattr("flashvid_hf.evaluation.evaluate.load_benchmark", lambda *_: [other])
    with pytest.raises(ValueError, match="answers with `questions_fingerprint`"):
        evaluate_model(evaluated)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"model": "a', "is no JSON"),
        (b"", "is no JSON"),
        (bytes(20), "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff\xfe{}", "cannot be read"),
        (b"[]", "is not of this version of `flashvid-hf evaluate` .it has no `batch_size`, "),
        (b'{"model": "a", "runs": {}}', "it has no `batch_size`, "),
        (b'{"model": "a", "runs": []}', "is not of this version"),
        (None, "has answers and no evaluation.json"),
    ],
)
def test_an_odd_evaluation_file_is_one_clear_line(evaluated, content, said):
    path = evaluated.output / "evaluation.json"
    (evaluated.output / "answers" / "0.jsonl").write_text("[]\n")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        evaluate_model(evaluated)
    assert re.search(said, str(caught.value)) and "Choose another folder" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


ANSWER = Answer("run", "v", "q", "type", "choice", "A", True, 100, 20, 5, 0.1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"run": 1}', r"0.jsonl:2: holds no answers"),
        (b"7", "holds no answers"),
        (b'[{"run": "a"}]', "holds no answers .*missing"),
        (json.dumps([{**asdict(ANSWER), "extra": 1}]).encode(), "unexpected keyword argument 'extra'"),
        (json.dumps([{**asdict(ANSWER), "correct": "yes"}]).encode(), "`correct` is 'yes', not of type bool"),
        (json.dumps([{**asdict(ANSWER), "tokens": None}]).encode(), "`tokens` is None, not of type int"),
        (b"[" * 100_000, "holds no answers"),
        (b"\xff", "cannot be read"),
    ],
)
def test_odd_answers_are_one_clear_line(tmp_path, line, said):
    (tmp_path / "0.jsonl").write_bytes(json.dumps([asdict(ANSWER)]).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=said):
        answer_files.read_answers(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    write_whole(path, "earlier")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    monkeypatch.setattr("os.replace", lambda *_: pytest.fail("killed here"))
    with pytest.raises(pytest.fail.Exception):
        write_whole(path, "later")
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_results_are_written_whole(tmp_path):
    """No writer of the evaluation opens a result under its final name."""
    sources = Path(answer_files.__file__).parent.glob("*.py")
    writing = {
        path.name for path in sources if re.search(r"\.write_(text|bytes)\(|open\([^)]*[\"']w", path.read_text())
    }
    assert writing == {"whole_files.py"}


# Numbers on command lines


@pytest.mark.parametrize(
    "options",
    [
        ("--num-frames", "0"), ("--num-frames", "-1"), ("--num-frames", "1.5"), ("--ratios", "2"), ("--ratios", "0"),
        ("--ratios", "nan"), ("--ratios", "-0.5"), ("--limit", "0"), ("--batch-size", "0"),
        ("--max-new-tokens", "0"),
    ],
)  # fmt: skip
def test_wrong_numbers_of_evaluate(options, tmp_path):
    done = CliRunner().invoke(app, ["evaluate", "model", "--output", str(tmp_path), *options])
    name = options[0].removeprefix("--").replace("-", ".")
    assert done.exit_code and re.search(name, done.output + str(done.exception)), (done.output, done.exception)
    assert not isinstance(done.exception, OSError), "the model was looked for"


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (COUNT, ["1", "32"], ["0", "-1", "1.5", "nan", "many", ""]),
        (SHARE, ["1", "0.1", "1e-3"], ["0", "-0.1", "2", "nan", "inf", "a tenth"]),
        (number(least=2, integer=True), ["2"], ["1"]),
    ],
)
def test_numbers_of_scripts(kind, right, wrong):
    assert [kind(text) for text in right] == [float(text) for text in right]
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match="it must be|is not an? "):
            kind(text)


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("bench_compression", ["--frames", "0"]),
        ("bench_compression", ["--retention-ratio", "2"]),
        ("bench_compression", ["--repeats", "0"]),
        ("bench_generation", ["--frames", "4", "0"]),
        ("bench_generation", ["--ratios", "2"]),
        ("bench_generation", ["--new-tokens", "1"]),
    ],
)
def test_wrong_numbers_of_benchmarks(script, options, capsys):
    module = pytest.importorskip(script)
    with pytest.raises(SystemExit):
        module.parse_arguments(options)
    assert options[0] in capsys.readouterr().err
