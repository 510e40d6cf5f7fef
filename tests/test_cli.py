"""The command line: what it prints, what it passes to the package, and what it refuses."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
import typer
from checkpoints import (
    CLIP,
    build_flashvid_folder,
    build_pipeline,
    build_upstream_folder,
    count_clip_tokens,
    once,
    upstream_class,
)
from hub_cache import RECIPES, change_config, recipe_of
from originals import original_weights, write_original
from packaging.version import Version
from transformers import AutoConfig, pipeline
from typer.testing import CliRunner

import flashvid_hf
from flashvid_hf import CompressionConfig, load_processor
from flashvid_hf.cli import app, main
from flashvid_hf.publishing import clean_process
from flashvid_hf.publishing.checking import CHECKS
from flashvid_hf.publishing.clean_process import shared_interpreter
from flashvid_hf.publishing.hub_folder import RECIPE, WEIGHTLESS
from flashvid_hf.publishing.prepared_interpreter import Ended
from flashvid_hf.publishing.versions import TESTED_TRANSFORMERS
from flashvid_hf.serving import server as serving
from flashvid_hf.serving.request_limits import RequestLimits
from flashvid_hf.video.limits import MediaLimits

COMMANDS = ("run", "trace", "serve", "evaluate", "reproduce", "export", "convert", "check", "push")
NUM_FRAMES = 8
SHORT = ("--num-frames", NUM_FRAMES, "--max-new-tokens", 8)


def invoke(*arguments, **environment):
    """Runs the command line in this process; gives its output and exit status."""
    return CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments])


def run_cli(*arguments, home: Path) -> Ended:
    """Runs the program in a separate process, without a network."""
    package = str(Path(flashvid_hf.__file__).parents[1])
    return shared_interpreter().run(
        f"import sys; sys.path.insert(0, {package!r}); from flashvid_hf.cli import main; main()",
        *map(str, arguments),
        home=home,
        directory=Path.cwd(),
    )


def call_main(monkeypatch, *arguments) -> None:
    """Runs the program in this process."""
    monkeypatch.setattr(sys, "argv", ["flashvid-hf", *arguments])
    main()


def answers_of(output: str) -> list[str]:
    """The lines after each horizontal rule that `run` prints: answers of demo models have one line."""
    lines = output.splitlines()
    return [lines[i + 1] for i, line in enumerate(lines) if line.startswith("─")]


def tokens_of(output: str) -> list[dict[str, int]]:
    """The token counts in the table of `run`, for each column."""
    rows = {name: numbers.split("│") for name, numbers in re.findall(r"│ (\w+) tokens *│(.*)│", output)}
    columns = zip(*([int(number.replace(",", "")) for number in numbers] for numbers in rows.values()), strict=True)
    return [dict(zip(rows, column, strict=True)) for column in columns]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return build_pipeline(tmp_path_factory, "qwen2_5_vl")


@pytest.fixture(scope="module")
def demo(pipe) -> Path:
    return Path(pipe.model.name_or_path)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "cli-upstream", build_upstream_folder)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "cli-original", lambda folder: write_original(folder, original_weights()))


# Help


def test_help_names_the_commands():
    shown = invoke("--help", COLUMNS="120")
    assert shown.exit_code == 0
    assert set(re.findall(r"^│ (\w+) ", shown.stdout, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_options_and_an_example(command):
    shown = invoke(command, "--help", COLUMNS="120")
    assert shown.exit_code == 0
    assert f"flashvid-hf {command} " in shown.stdout.replace("\n", " ")
    parameters = typer.main.get_command(app).commands[command].params
    names = [name for parameter in parameters for name in parameter.opts if name.startswith("--")]
    assert [name for name in names if name not in shown.stdout] == []


# run


def test_run(pipe, demo):
    asked = {"text": "What happens?", "num_frames": NUM_FRAMES, "max_new_tokens": 8}
    (compressed,) = pipe(str(CLIP), **asked)
    upstream = upstream_class(type(pipe.model))
    fields = {"model_type": upstream.config_class.model_type}
    reference = upstream(upstream.config_class.from_dict({**pipe.model.config.to_dict(), **fields}))
    reference.load_state_dict(pipe.model.state_dict())
    reference.generation_config = pipe.model.generation_config
    (whole,) = pipeline("video-text-to-text", model=reference.eval(), processor=pipe.processor)(str(CLIP), **asked)
    assert compressed["generated_text"] != whole["generated_text"], "they can be told apart"

    shown = invoke("run", CLIP, "What happens?", "-m", demo, *SHORT, "--baseline")
    assert shown.exit_code == 0, shown.output
    assert answers_of(shown.stdout) == [compressed["generated_text"], whole["generated_text"]]
    counts = count_clip_tokens(pipe.model.config, NUM_FRAMES)
    assert tokens_of(shown.stdout) == [counts, dict.fromkeys(counts, counts["total"])]
    assert re.search(r"generate +│ +\d+\.\d\d s +│ +\d+\.\d\d s", shown.stdout)


def test_run_passes_settings_on(pipe, demo):
    settings = ("-r", 0.5, "--set", "llm_retention_ratio=0.4", "--set", "token_selection_method=attn_div")
    shown = invoke("run", CLIP, "What happens?", "-m", demo, *SHORT, *settings)
    assert shown.exit_code == 0, shown.output
    changed = {"retention_ratio": 0.5, "llm_retention_ratio": 0.4, "token_selection_method": "attn_div"}
    (answer,) = pipe(str(CLIP), text="What happens?", num_frames=NUM_FRAMES, max_new_tokens=8, **changed)
    assert answers_of(shown.stdout) == [answer["generated_text"]]
    assert tokens_of(shown.stdout) == [count_clip_tokens(pipe.model.config.override(**changed), NUM_FRAMES)]


def test_run_compresses_upstream_checkpoints(upstream):
    shown = invoke("run", CLIP, "What happens?", "-m", upstream, *SHORT)
    assert shown.exit_code == 0, shown.output
    (counts,) = tokens_of(shown.stdout)
    assert counts["total"] > counts["entered"] > counts["remained"] > 0


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_video"])  # a processor of upstream's, and one of the package's
def test_code_of_a_folder_does_not_run(tmp_path, family):
    folder = build_flashvid_folder(tmp_path / "folder", family)
    modules = sorted(folder.glob("*.py"))
    assert modules
    for module in modules:
        module.write_text("raise SystemExit('the code of the folder runs')\n" + module.read_text())
    shown = invoke("run", CLIP, "What happens?", "-m", folder, *SHORT)
    assert shown.exit_code == 0, shown.output
    assert tokens_of(shown.stdout) == [count_clip_tokens(AutoConfig.from_pretrained(folder), NUM_FRAMES)]
    assert type(load_processor(folder)).__module__.startswith(("transformers.", "flashvid_hf."))


# What is refused


@pytest.mark.parametrize("command", ["run", "trace", "export", "convert"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("alpha", "`--set` is 'alpha': it must be FIELD=VALUE"),
        ("alhpa=0.6", "there is no field 'alhpa', choose from alpha, .*mm_newline_position.*retention_ratio"),
        ("model_type=x", "there is no field 'model_type'"),
    ],
)
def test_wrong_fields(command, given, said, tmp_path):
    arguments = {"run": (CLIP, "What?", "-m", "missing"), "trace": (CLIP, "-m", "missing")}
    refused = invoke(command, *arguments.get(command, ("missing", tmp_path / "target")), "--set", given)
    assert isinstance(refused.exception, ValueError) and re.search(said, str(refused.exception)), refused.exception


@pytest.mark.parametrize("field", ["mm_newline_position=grid", "retention_ratio=2", "alpha=high"])
def test_fields_that_the_model_refuses(field, demo):
    refused = invoke("run", CLIP, "What?", "-m", demo, "--set", field)
    name = field.partition("=")[0]
    assert isinstance(refused.exception, ValueError) and f"`{name}` is" in str(refused.exception), refused.exception


def test_wrong_videos_are_refused_before_the_model_is_read(tmp_path):
    for command, arguments in {"run": ("What?",), "trace": ()}.items():
        refused = invoke(command, tmp_path / "missing.mp4", *arguments, "-m", tmp_path / "no model")
        assert "missing.mp4' does not exist" in str(refused.exception)


def test_errors_are_one_line(tmp_path):
    """Also errors that transformers writes as a paragraph. The exit status shows that there was an error."""
    ended = run_cli("run", CLIP, "What?", "-m", "acme/missing", home=tmp_path)
    assert (ended.status, ended.output) == (1, "")
    (line,) = ended.errors.splitlines()
    assert re.match("Error: .*huggingface", line)


def test_a_missing_video_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        call_main(monkeypatch, "run", "missing.mp4", "What?", "-m", "acme/model")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "Error: `video` must be a video file, but 'missing.mp4' does not exist\n"


def test_errors_of_the_program_are_not_hidden(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(serving, "serve", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        call_main(monkeypatch, "serve", "-m", "model")


def test_a_hub_out_of_reach_is_one_line(monkeypatch, capsys):
    """huggingface_hub passes on errors of its HTTP library, which are not of the class `OSError`."""
    unreachable = type("ConnectError", (Exception,), {"__module__": "httpx"})

    def fail(*args, **kwargs):
        raise unreachable("[Errno 111]\nConnection refused")

    monkeypatch.setattr(serving, "serve", fail)
    with pytest.raises(SystemExit) as ended:
        call_main(monkeypatch, "serve", "-m", "model")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "Error: [Errno 111] Connection refused\n"


# trace


def test_trace_writes_every_kind_of_file(demo, tmp_path):
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"trace{suffix}" for suffix in (".png", ".svg", ".json", ".npz")]
    outputs = [argument for file in files for argument in ("-o", file)]
    shown = invoke("trace", CLIP, "-m", demo, "--num-frames", NUM_FRAMES, *outputs)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [str(file) for file in files]
    starts = [file.read_bytes()[:4] for file in files]
    assert starts[0] == b"\x89PNG" and starts[1] == b"<?xm" and starts[2][:1] == b"{" and starts[3][:2] == b"PK"


def test_trace_refuses_other_files_before_the_model_is_read(tmp_path):
    refused = invoke("trace", CLIP, "-m", tmp_path / "no model", "-o", "trace.gif")
    assert str(refused.exception) == "`--output` is 'trace.gif': it must end with one of .png, .svg, .json, .npz."


# serve


def test_serve_passes_its_options_on(monkeypatch):
    calls = []
    monkeypatch.setattr(serving, "serve", lambda *args, **kwargs: calls.append((args, kwargs)))
    given = {
        "host": "0.0.0.0",
        "port": 0,
        "num_frames": 16,
        "retention_ratio": 0.2,
        "max_num_seqs": 2,
        "max_queue": 3,
        "max_body_bytes": 10,
        "max_download_bytes": 20,
        "download_timeout": 2.5,
        "step_timeout": 1.5,
        "shutdown_timeout": 4,
        "attn_implementation": "sdpa",
        "revision": "v1",
        "device": "cpu",
        "dtype": "float32",
        "log_level": "debug",
    }
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)]
    lists = {"api_key": ["a", "b"], "allowed_hosts": ["box"], "allowed_media_domains": ["x.org", "y.org"]}
    # As of vLLM, several values may follow a flag.
    options += [text for name, values in lists.items() for text in (f"--{name.replace('_', '-')}", *values)]
    limits = {name: 2 + place for place, name in enumerate(vars(RequestLimits()))}
    options += [text for name, value in limits.items() for text in (f"--{name.replace('_', '-')}", value)]
    media = {"max_frame_pixels": 100, "max_image_pixels": 200, "max_file_frames": 300, "max_seconds": 1.5}
    media |= {"max_file_bytes": 400, "max_decoded_bytes": 500}
    assert media.keys() == vars(MediaLimits()).keys()
    options += [text for name, value in media.items() for text in (f"--{name.replace('_', '-')}", value)]
    flags = ("--allowed-local-media-path", "media", "--allow-private-networks")
    assert invoke("serve", "-m", "acme/model", *options, *flags).exit_code == 0
    flagged = {"allowed_local_media_path": Path("media"), "allow_private_networks": True}
    flagged |= {"request_limits": RequestLimits(**limits), "limits": MediaLimits(**media)}
    assert calls == [(("acme/model",), {**given, **lists, **flagged})]
    assert invoke("serve", "-m", "acme/model").exit_code == 0
    defaults = calls[1][1]
    assert (defaults["host"], defaults["allowed_local_media_path"]) == ("localhost", None)
    assert (defaults["retention_ratio"], defaults["request_limits"]) == (None, RequestLimits())
    assert defaults["limits"] == MediaLimits(max_decoded_bytes=2**31)


# export and convert


def test_export(upstream, tmp_path):
    refused = invoke("export", upstream, tmp_path / "target")
    assert "Choose `weights='included'`" in str(refused.exception)
    assert not (tmp_path / "target").exists()

    options = ("--weights", "included", "--repository", "acme/FlashVID-tiny", "-r", 0.2, "--set", "alpha=0.6")
    shown = invoke("export", upstream, tmp_path / "target", *options)
    assert shown.exit_code == 0, shown.output
    assert f"Next: `flashvid-hf check {tmp_path / 'target'}`." in shown.stdout
    config = AutoConfig.from_pretrained(tmp_path / "target")
    assert (config.retention_ratio, config.alpha) == (0.2, 0.6)
    assert 'model="acme/FlashVID-tiny"' in (tmp_path / "target" / "README.md").read_text()
    copied = (tmp_path / "target" / "model.safetensors").read_bytes()
    assert copied == (upstream / "model.safetensors").read_bytes()


def test_convert(original, tmp_path):
    options = ("--set", "mm_newline_position=grid", "--dtype", "float32", "-r", 0.5)
    shown = invoke("convert", original, tmp_path / "converted", *options)
    assert shown.exit_code == 0, shown.output
    config = AutoConfig.from_pretrained(tmp_path / "converted")
    assert (config.model_type, config.mm_newline_position) == ("flashvid_llava_video", "grid")
    assert (config.retention_ratio, config.dtype) == (0.5, torch.float32)
    assert f"Next: `flashvid-hf check {tmp_path / 'converted'}`." in shown.stdout


# check


def marks_of(output: str) -> dict[str, str]:
    """The mark of each check of one folder, by its title."""
    return {line[2:]: line[0] for line in output.splitlines() if line[:2] in ("✓ ", "✗ ", "- ")}


def test_check(tmp_path):
    right = recipe_of("qwen2_5_vl")
    shown = invoke("check", right)
    assert shown.exit_code == 0, shown.output
    titles = [check.title for check in CHECKS if RECIPE in check.kinds]
    assert list(marks_of(shown.stdout)) == titles and "✗" not in shown.stdout

    broken = Path(shutil.copytree(right, tmp_path / "broken"))
    change_config(broken, retention_ratio=1.0)
    shown = invoke("check", broken, right)
    assert shown.exit_code == 1
    rules = [line for line in shown.stdout.splitlines() if line.startswith("─")]
    assert len(rules) == 2 and right.name in shown.stdout, "both are checked"
    ours = shown.stdout[: shown.stdout.index(rules[1])]
    assert [title for title, mark in marks_of(ours).items() if mark == "✗"] == ["the settings compress and prune"]
    most = 1 / CompressionConfig().expansion
    assert f"it compresses nothing, choose a `retention_ratio` below {most:g}" in ours


@pytest.mark.parametrize("family", RECIPES)
def test_exported_recipes_pass_every_check(family, exports, monkeypatch):
    """The user's cache has the base. The folder and the snippets of its card run in separate processes."""
    monkeypatch.setattr(clean_process, "HF_HUB_CACHE", str(exports / "home" / "hub"))
    shown = invoke("check", exports / f"{family}-base")
    assert shown.exit_code == 0, shown.output
    marks = marks_of(shown.stdout)
    assert list(marks) == [check.title for check in CHECKS if WEIGHTLESS in check.kinds]
    has_results = (exports / f"{family}-base" / ".eval_results").exists()
    expected = [] if has_results else ["the evaluation results can be read"]
    if Version(transformers.__version__) < Version(max(TESTED_TRANSFORMERS, key=Version)):
        expected.insert(0, "the installed transformers is the newest that the card was tested with")
    assert [title for title, mark in marks.items() if mark != "✓"] == expected, shown.stdout
