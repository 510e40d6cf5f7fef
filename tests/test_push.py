"""`push`: what would be uploaded, what is refused, and that nothing is sent without `--upload`."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import build_upstream_folder, once, run_program
from hub_cache import PINNED, base_of, change_config, recipe_of
from huggingface_hub import CommitOperationAdd
from typer.testing import CliRunner

from flashvid_hf.cli import app
from flashvid_hf.publishing import push
from flashvid_hf.publishing.export import export_model
from flashvid_hf.publishing.push import plan_upload

REPOSITORY = "acme/FlashVID-tiny"


class Hub:
    """Takes the place of `HfApi`, and records its calls."""

    def __init__(self):
        self.calls = []
        self.sent = {}

    def create_repo(self, repository, **kwargs):
        self.calls.append(("create_repo", repository, kwargs))

    def create_commit(self, repository, operations, **kwargs):
        self.calls.append(("create_commit", repository, kwargs))
        assert all(isinstance(operation, CommitOperationAdd) for operation in operations)
        self.sent = {operation.path_in_repo: Path(operation.path_or_fileobj).read_bytes() for operation in operations}
        return SimpleNamespace(commit_url="https://huggingface.co/the/commit")


@pytest.fixture
def hub(monkeypatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(push, "HfApi", lambda: hub)
    return hub


def build_full_folder(folder: Path) -> None:
    upstream = build_upstream_folder(folder.with_name("push-upstream"))
    export_model(upstream, folder, weights="included", repository=REPOSITORY)


@pytest.fixture(scope="module")
def full_folder(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "push-full", build_full_folder)


@pytest.fixture
def folder(full_folder, tmp_path) -> Path:
    """A full folder, with other files beside those that are published."""
    folder = Path(shutil.copytree(full_folder, tmp_path / "full"))
    published = (".gitattributes", ".eval_results/mvbench.yaml")
    for name in (*published, ".git/config", ".cache/huggingface/download/x.lock"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("[]")
    shutil.copy(recipe_results(), folder / ".eval_results" / "mvbench.yaml")
    return folder


def recipe_results() -> Path:
    return next((recipe_of("qwen2_5_vl") / ".eval_results").glob("*.yaml"))


def invoke(*arguments):
    return CliRunner().invoke(app, ["push", *map(str, arguments)])


def test_the_plan_is_the_folder(folder, full_folder, hub):
    expected = {file.relative_to(full_folder).as_posix() for file in full_folder.rglob("*") if file.is_file()}
    expected |= {".gitattributes", ".eval_results/mvbench.yaml"}
    with plan_upload(folder, REPOSITORY) as plan:
        planned = {file.path: (file.size, file.file) for file in plan.files}
    assert planned == {path: ((folder / path).stat().st_size, folder / path) for path in expected}
    assert {"config.json", "model.safetensors", "README.md", "modeling_flashvid_qwen2_5_vl.py"} < expected
    assert (plan.repository, plan.base, plan.base_revision) == (REPOSITORY, None, None)
    assert hub.calls == []


def test_a_dry_run_shows_all_and_sends_nothing(folder, hub):
    before = sorted(folder.rglob("*"))
    shown = invoke(folder, REPOSITORY)
    assert shown.exit_code == 0, shown.output
    assert hub.calls == [] and sorted(folder.rglob("*")) == before
    listed = {path: int(size.replace(",", "")) for size, path in re.findall(r"(?m)^ *([\d,]+)  (\S+)$", shown.stdout)}
    with plan_upload(folder, REPOSITORY) as plan:
        assert listed == {file.path: file.size for file in plan.files}
    assert f"{len(listed)} files, {sum(listed.values()):,} bytes to upload." in shown.stdout
    assert "Nothing was sent. Add `--upload` to do it." in shown.stdout


@pytest.mark.parametrize("private", [True, False])
def test_an_upload_creates_the_repository_and_commits_once(folder, hub, private):
    shown = invoke(folder, REPOSITORY, "--upload", *(["--private"] if private else []))
    assert shown.exit_code == 0, shown.output
    assert [call[:2] for call in hub.calls] == [("create_repo", REPOSITORY), ("create_commit", REPOSITORY)]
    assert hub.calls[0][2] == {"private": private, "exist_ok": True}
    with plan_upload(folder, REPOSITORY) as plan:
        assert hub.sent == {file.path: file.file.read_bytes() for file in plan.files}
    assert shown.stdout.splitlines()[-1] == "https://huggingface.co/the/commit"


# What is refused


def break_code(folder: Path) -> None:
    (folder / "packing.py").write_text("import os\n\nos.system('true')\n")


def break_metadata(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("pipeline_tag: video-text-to-text", "pipeline_tag: text-generation"))


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no `config.json`"),
        (lambda folder: (folder / "README.md").unlink(), "does not speak of 'acme/FlashVID-tiny'"),
        (break_code, r"packing.py:3: uses `os.system` \(execution\): do without it. `flashvid-hf check .*full` says"),
        (break_metadata, "README.md: `pipeline_tag` is 'text-generation'.* `flashvid-hf check"),
        (remove_weights, "neither weights nor a base"),
    ],
    ids=["no model", "no card", "code", "metadata", "no weights"],
)
def test_broken_folders_are_refused(change, said, folder, hub):
    change(folder)
    refused = invoke(folder, REPOSITORY, "--upload")
    assert isinstance(refused.exception, ValueError) and re.search(said, str(refused.exception)), refused.exception
    assert hub.calls == []


def write(name: str, content: bytes = b"x") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).symlink_to(target)


STRAY_FILES = {
    ".env": (write(".env"), r"\.env: is no file of a model's folder: move it out"),
    "token": (write("token"), "token: is no file of a model's folder"),
    ".netrc": (write(".netrc"), r"\.netrc: is no file"),
    "private key": (write(".ssh/id_rsa"), r"\.ssh: only `.eval_results` and `assets` are folders inside"),
    "hidden file in an allowed folder": (write(".eval_results/.env"), r"\.eval_results/\.env: is no file"),
    "other file in an allowed folder": (write(".eval_results/token.txt"), r"\.eval_results/token\.txt: is no file"),
    "nested folder": (write("assets/more/x.png"), "assets/more: only "),
    "secrets in JSON": (write("credentials.json"), r"credentials\.json: is no file"),
    "notebook": (write("notes.ipynb"), r"notes\.ipynb: is no file"),
    "pickle": (write("training_args.bin"), r"training_args\.bin: is a pickle, .* safetensors"),
    "checkpoint of torch": (write("optimizer.pt"), r"optimizer\.pt: is a pickle"),
    "byte code": (write("__pycache__/module.pyc"), "__pycache__: only "),
    "byte code at the top": (write("modeling.pyc"), r"modeling\.pyc: is byte code"),
    "package": (write("__init__.py"), r"__init__\.py: is no file"),
    "homoglyph": (write("m\N{CYRILLIC SMALL LETTER O}deling.py"), r"m\\u043edeling\.py: its name has other characters"),
    "line break": (write("con\nfig.json"), r"con\\nfig\.json: its name has other characters"),
    "link to a system file": (link("LICENSE", "/etc/passwd"), "LICENSE: is a link"),
    "link that leads nowhere": (link("NOTICE", "missing"), "NOTICE: is a link"),
    "link to a folder": (link("assets", "/etc"), "assets: is a link"),
    "link in place of bookkeeping": (
        lambda f: (shutil.rmtree(f / ".git"), link(".git", "/etc")(f)),
        r"\.git: is a link",
    ),
    "pipe": (lambda folder: os.mkfifo(folder / "NOTICE"), r"NOTICE: is no file \(p"),
    "code of absurd size": (lambda folder: (folder / "big.py").write_bytes(b"#" * 1_000_001), "at most 1,000,000 are"),
    # What else counts as another content: test_file_contents.py.
    "weights that are text": (write("model.safetensors"), r"model\.safetensors: is no file of safetensors \("),
    "pointer in place of weights": (
        write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        r"model\.safetensors: is a pointer of Git LFS .* `git lfs pull` .* Nothing was sent",
    ),
    "text as JSON": (write("vocab.json"), r"vocab\.json: is no JSON \("),
    "a program as text": (write("merges.txt", b"\x7fELF\0"), r"merges\.txt: is no text \("),
    "text as picture": (write("assets/x.png"), r"assets/x\.png: does not begin as `\.png` files do"),
}


@pytest.mark.parametrize("name", STRAY_FILES)
def test_files_that_are_no_part_of_a_model_are_refused(name, folder, hub):
    change, said = STRAY_FILES[name]
    change(folder)
    refused = invoke(folder, REPOSITORY, "--upload")
    assert isinstance(refused.exception, ValueError) and re.search(said, str(refused.exception)), refused.exception
    assert hub.calls == []


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("acme/FlashVID-other", "does not speak of 'acme/FlashVID-other'"),
        ("acme/FlashVID", "does not speak of 'acme/FlashVID'"),  # a part of the right name
        ("cme/FlashVID-tiny", "does not speak of"),
        ("FlashVID-tiny", "must be 'name/of-it'"),
        ("acme/Flash VID", "Repo id must use alphanumeric chars"),
    ],
)
def test_other_repositories_are_refused(repository, said, folder, hub):
    with pytest.raises(ValueError, match=said), plan_upload(folder, repository):
        pass
    assert hub.calls == []


def test_copied_weights_need_a_base(folder, hub):
    refused = invoke(folder, REPOSITORY, "--copy-weights", "--upload")
    assert "names no base" in str(refused.exception) and hub.calls == []


@pytest.mark.parametrize("revision", [None, PINNED])
def test_recipes_are_refused(revision, hub, tmp_path):
    recipe = Path(shutil.copytree(recipe_of("qwen2_5_vl"), tmp_path / "recipe"))
    change_config(recipe, base_model_revision=revision)
    with (recipe / "README.md").open("a") as card:
        card.write(f"\n{REPOSITORY}\n")
    refused = invoke(recipe, REPOSITORY, "--upload")
    assert isinstance(refused.exception, ValueError) and "is a recipe" in str(refused.exception), refused.exception
    assert hub.calls == []


def test_an_unpinned_base_is_refused(exports, hub, tmp_path):
    folder = Path(shutil.copytree(exports / "qwen2_5_vl-base", tmp_path / "qwen2_5_vl-base"))
    change_config(folder, base_model_revision=None)
    refused = invoke(folder, REPOSITORY, "--upload")
    assert "its base is not pinned" in str(refused.exception) and hub.calls == []


# A full repository from a weightless folder, with the base in the cache.

COPY = """
import json
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import CommitOperationCopy
from typer.testing import CliRunner

from flashvid_hf.publishing import push
from flashvid_hf.cli import app

folder, repository, base, written = arguments
record = {"infos": [], "calls": [], "added": {}, "copied": []}


class Hub:
    def model_info(self, repository, **kwargs):
        record["infos"].append([repository, kwargs])
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=7) for n in [*names, "README.md", "x.bin"]])

    def create_repo(self, repository, **kwargs):
        record["calls"].append(["create_repo", repository, kwargs])

    def create_commit(self, repository, operations, **kwargs):
        record["calls"].append(["create_commit", repository, kwargs])
        for operation in operations:
            if isinstance(operation, CommitOperationCopy):
                record["copied"].append({k: v for k, v in vars(operation).items() if not k.startswith("_")})
            else:
                record["added"][operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes().decode()
        return SimpleNamespace(commit_url="https://huggingface.co/the/commit")


push.HfApi = Hub
for options in ([], ["--upload"]):
    shown = CliRunner().invoke(app, ["push", folder, repository, "--copy-weights", *options])
    assert shown.exit_code == 0, shown.output + repr(shown.exception)
    record["calls"].append(["shown", shown.stdout])
Path(written).write_text(json.dumps(record))
"""


def test_the_hub_copies_weights(exports, tmp_path):
    base = base_of("qwen2_5_vl")
    folder = Path(shutil.copytree(exports / "qwen2_5_vl-base", tmp_path / "folder"))
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace('model="qwen2_5_vl-base"', f'model="{REPOSITORY}"'))
    run_program(COPY, folder, REPOSITORY, base, tmp_path / "record", home=exports / "home", with_package=True)
    record = json.loads((tmp_path / "record").read_text())

    (_, dry), (_, *created), (_, *committed), (_, shown) = record["calls"]
    assert created == [REPOSITORY, {"private": False, "exist_ok": True}]
    assert committed == [REPOSITORY, {"commit_message": "Upload FlashVID model"}]
    assert record["infos"] == [[base, {"revision": PINNED, "files_metadata": True}]] * 2
    weights = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert record["copied"] == [
        {
            "src_path_in_repo": name,
            "path_in_repo": name,
            "src_revision": PINNED,
            "src_repo_id": base,
            "src_repo_type": "model",
        }
        for name in weights
    ]
    for name in weights:
        assert f"               7  {name}  copied by the Hub from {base} at {PINNED}\n" in dry
    assert "Nothing was sent." in dry and "Nothing was sent." not in shown

    added = record["added"]
    config = json.loads(added["config.json"])
    assert config["model_type"] == "flashvid_qwen2_5_vl"
    assert not {"base_model_name_or_path", "base_model_revision"} & config.keys()
    assert {"tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"} <= added.keys()
    processor = json.loads(added["processor_config.json"])
    assert "image_processor" in processor, "it needs no base"
    assert processor["auto_map"]["AutoProcessor"].partition(".")[0] + ".py" in added
    assert f'model="{REPOSITORY}"' in added["README.md"] and "The weights are in this repository." in added["README.md"]
    for path, text in added.items():
        assert re.search(rf"(?m)^ *{len(text.encode()):,}  {re.escape(path)}$", dry), path


def test_a_card_that_trusts_another_repository_is_refused(folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace(f'model="{REPOSITORY}"', 'model="another/model"'))
    assert REPOSITORY in card.read_text()
    with (
        pytest.raises(ValueError, match="loads 'another/model' with `trust_remote_code=True`"),
        plan_upload(folder, REPOSITORY),
    ):
        pass


def test_a_file_of_code_that_is_missing_is_a_fault(folder):
    (folder / "modeling_flashvid.py").unlink()
    with pytest.raises(ValueError, match=r"no `modeling_flashvid.py`"), plan_upload(folder, REPOSITORY):
        pass
