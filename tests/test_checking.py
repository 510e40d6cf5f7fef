"""`check`: a correct folder passes, and every fault fails with its own message."""

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from checkpoints import assert_same, build_flashvid_folder, build_upstream_folder, once, state, upstream_class
from safetensors.torch import load_file, save_file

from flashvid_hf import FAMILIES, FlashVIDQwen2_5_VLForConditionalGeneration
from flashvid_hf.publishing import check_card, check_config, check_model
from flashvid_hf.publishing.check_code import check_generated_code, check_isolation
from flashvid_hf.publishing.checking import CHECKS, CheckResult, check_folder, run_check
from flashvid_hf.publishing.clean_probe import load_reference
from flashvid_hf.publishing.code_audit import EXECUTION, IMPORTS, NETWORK, RELATIVE, WRITING, find_faults
from flashvid_hf.publishing.hub_folder import FULL, RECIPE, WEIGHTLESS, HubFolder
from flashvid_hf.publishing.published_code import published_files
from flashvid_hf.publishing.remote_code import find_model_names
from flashvid_hf.publishing.versions import INSTALLATION, TESTED_SENTENCE, TESTED_TRANSFORMERS, check_versions

VERSIONS, EVALUATION, ISOLATION = (
    next(check.title for check in CHECKS if check.find_faults is find)
    for find in (check_versions, check_card.check_eval_results, check_isolation)
)
RECIPES = sorted(path.parent for path in Path(__file__).parents[1].glob("hub_configs/*/config.json"))


def build_right_folder(folder: Path, family: str) -> Path:
    """A folder whose card has a snippet for each door."""
    build_flashvid_folder(folder, family)
    with (folder / "README.md").open("a") as card:
        card.write(
            "\n```python\nfrom flashvid_hf import find_family\n\n"
            'model_id = "acme/flashvid-tiny-0.1B"\n'
            "assert find_family(model_id).generative_model.from_pretrained(model_id).config.retention_ratio == 0.25\n"
            "```\n"
        )
    return folder


@pytest.fixture(scope="session")
def right_folder(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "check-qwen2_5_vl", lambda folder: build_right_folder(folder, "qwen2_5_vl"))


@pytest.fixture
def broken_folder(right_folder, tmp_path) -> Path:
    return Path(shutil.copytree(right_folder, tmp_path / right_folder.name))


def run(find: Callable, folder: Path | HubFolder) -> CheckResult:
    """The result of the check that this function does."""
    check = next(check for check in CHECKS if check.find_faults == find)
    return run_check(check, folder if isinstance(folder, HubFolder) else HubFolder(folder))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} has no {old!r} to edit"
    path.write_text(text.replace(old, new))


def set_fields(folder: Path, **fields) -> None:
    """Set fields of `config.json`, or remove those that are `None`."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


# Right folders


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_video"])
@pytest.mark.process
def test_right_folder_passes(tmp_path_factory, family):
    folder = once(tmp_path_factory, f"check-{family}", lambda folder: build_right_folder(folder, family))
    results = check_folder(folder)
    assert [result.title for result in results] == [check.title for check in CHECKS if FULL in check.kinds]
    skipped = {result.title: result.message for result in results if result.status == "skipped"}
    if transformers.__version__ != TESTED_TRANSFORMERS[-1]:
        assert f"install {TESTED_TRANSFORMERS[-1]}" in skipped.pop(VERSIONS)
    skipped.pop(ISOLATION, None)  # not every system can
    assert skipped == {"the evaluation results can be read": "the folder has no `.eval_results`"}
    assert [result for result in results if result.status == "failed"] == []


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.config.model_type)
def test_published_files_keep_the_rules(family, tmp_path):
    files = published_files(family)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert len(files) == 6
    assert [str(fault) for fault in find_faults(tmp_path)] == []


def test_code_that_breaks_the_rules_is_not_run(broken_folder, tmp_path):
    proof = tmp_path / "it ran"
    edit(
        broken_folder / "compression_flashvid.py",
        "import torch\n",
        f"import torch\n\nopen({str(proof)!r}, 'w').close()\n",
    )
    results = {result.title: result for result in check_folder(broken_folder)}
    assert results["the code writes no file"].status == "failed"
    for check in CHECKS:
        if check.runs_code:
            assert results[check.title].status == "skipped" and "was not run" in results[check.title].message
    assert sum(check.runs_code for check in CHECKS) == 8
    assert not proof.exists()


def test_code_is_compared_with_what_the_package_generates(broken_folder):
    def result() -> CheckResult:
        return run(check_generated_code, broken_folder)

    assert result().status == "passed"
    code = broken_folder / "compression_flashvid.py"
    edit(code, "import math\n", "import math\n\n")
    assert result().status == "failed"
    assert re.search(r"^compression_flashvid.py: is not what flashvid_hf [\d.]+ generates: export", result().message)
    edit(code, "Generated from", "Derived from")  # a file of the user's own is not compared; the others are
    assert result().status == "passed"
    for path in broken_folder.glob("*.py"):
        path.write_text(path.read_text().replace("Generated from flashvid_hf ", "Generated from flashvid_hf 9"))
    assert result().status == "skipped" and "install that version" in result().message
    for path in broken_folder.glob("*.py"):
        path.write_text(path.read_text().replace("Generated from", "Derived from"))
    assert result().status == "skipped" and "no file says" in result().message


@pytest.mark.parametrize(
    "folder",
    # The code runs in separate interpreters.
    [pytest.param(path, marks=[pytest.mark.process] if any(path.glob("*.py")) else []) for path in RECIPES],
    ids=lambda folder: folder.name,
)
def test_published_recipes_pass(folder):
    assert [result for result in check_folder(folder) if result.status == "failed"] == []


def test_kinds(right_folder, tmp_path):
    assert HubFolder(right_folder).kind == FULL
    assert HubFolder(tmp_path).kind == RECIPE
    (tmp_path / "module.py").touch()
    assert HubFolder(tmp_path).kind == WEIGHTLESS
    with pytest.raises(ValueError, match="`folder` is .*missing.*, which is no folder"):
        HubFolder(tmp_path / "missing")


# Rules for code


def faults_of(folder: Path, code: str) -> list[tuple[str, str]]:
    (folder / "helper.py").write_text("value = 1\n")
    (folder / "module.py").write_text(code)
    return [(fault.rule, str(fault)) for fault in find_faults(folder)]


@pytest.mark.parametrize(
    "code",
    [
        "import os, torch\nfrom transformers.utils import logging\nfrom huggingface_hub.dataclasses import strict\n",
        "from .helper import value\n",
        '"""`from .helper import value` inside of a line."""\nfrom .helper import value\n',
        "import importlib\nav = importlib.import_module('av')\n",
        "import importlib\nT = {'a': 'decord'}\nfound = [importlib.util.find_spec(T[x]) for x in T]\n",
        "import re, torch\nre.compile('x')\ntorch.compile(print)\nmodel.eval()\n",
        "with open('x', 'rb') as file:\n    file.read()\nopen('x')\nav.open('film', mode='r')\n",
        "import os\nos.path.join('a', 'b'.replace('a', 'b'))\n",
        "def from_pretrained(cls, name):\n    return cls.from_pretrained(name)\n",
    ],
)
def test_allowed_code(tmp_path, code):
    assert faults_of(tmp_path, code) == []


@pytest.mark.parametrize(
    ("code", "rule", "message"),
    [
        ("x = 1\nimport numpy as np\n", IMPORTS, "module.py:2: imports `numpy`"),
        ("def f():\n    import av\n", IMPORTS, "module.py:2: imports `av`"),
        ("import flashvid_hf\n", IMPORTS, "imports `flashvid_hf`, which is not installed there"),
        ("from os import *\n", IMPORTS, "hides what is used"),
        ("import importlib\nimportlib.import_module('numpy')\n", IMPORTS, "module.py:2: `importlib.import_module` of"),
        ("import importlib\nimportlib.import_module('cv2')\n", IMPORTS, "but the name of a decoder (av, decord, PIL)"),
        ("import importlib\nimportlib.import_module(name)\n", IMPORTS, "of anything but the name of a decoder"),
        ("import importlib as i\nT = {'a': 'os'}\ni.import_module(T['a'])\n", IMPORTS, "module.py:3: `importlib.imp"),
        (
            "import importlib\nT = {'a': 'av'}\nT['b'] = 'os'\nimportlib.import_module(T['b'])\n",
            IMPORTS,
            "module.py:4: `importlib.import_module` of",
        ),
        ("from importlib import import_module as load\nf = load\n", IMPORTS, "under another name"),
        ("__import__('os')\n", IMPORTS, "`__import__` of anything"),
        ("def broken(:\n", IMPORTS, "module.py:1: is no Python module"),
        ("from . import helper\n", RELATIVE, "module.py:1: `from . import helper` is not flat"),
        ("from ..helper import value\n", RELATIVE, "`from ..helper import value` is not flat"),
        ("from .helper.part import value\n", RELATIVE, "is not flat"),
        ("from .missing import value\n", RELATIVE, "the folder has no `missing.py`"),
        ('"""Use it:\n\n    from .other import value\n"""\n', RELATIVE, "module.py:3: the loader takes this text"),
        ("x = 1; from .helper import value\n", RELATIVE, "the loader does not find the import of `.helper`"),
        ("from urllib.request import urlopen\n", NETWORK, "module.py:1: uses `urllib.request"),
        ("import urllib\nurllib.request.urlopen('x')\n", NETWORK, "module.py:2: uses `urllib.request"),
        ("import socket\n", NETWORK, "uses `socket`"),
        ("import torch\ntorch.hub.load('a', 'b')\n", NETWORK, "uses `torch.hub"),
        ("from huggingface_hub import snapshot_download\n", NETWORK, "uses `huggingface_hub.snapshot_download`"),
        ("import huggingface_hub as h\nh.utils.get_session()\n", NETWORK, "uses `huggingface_hub.utils.get_session`"),
        ("model.push_to_hub('a/b')\n", NETWORK, "calls `.push_to_hub`"),
        ("import subprocess\n", EXECUTION, "module.py:1: uses `subprocess`"),
        ("from os import system as run\nrun('ls')\n", EXECUTION, "module.py:1: uses `os.system`"),
        ("import os\nf = os.execvp\n", EXECUTION, "module.py:2: uses `os.execvp`"),
        ("import os\ngetattr(os, 'sys' + 'tem')('ls')\n", EXECUTION, "with a computed name"),
        ("import os\ngetattr(os, 'popen')('ls')\n", EXECUTION, "uses `os.popen`"),
        ("exec('x = 1')\n", EXECUTION, "uses `exec`"),
        ("f = eval\n", EXECUTION, "uses `eval`"),
        ("compile('1', 'a', 'eval')\n", EXECUTION, "uses `compile`"),
        ("import torch\ntorch.load('x')\n", EXECUTION, "uses `torch.load`"),
        ("import pickle\n", EXECUTION, "uses `pickle`"),
        ("open('x', 'w')\n", WRITING, "module.py:1: opens a file in another mode"),
        ("open('x', mode='rb+')\n", WRITING, "opens a file in another mode"),
        ("open('x', mode)\n", WRITING, "with a constant mode"),
        ("path.open('a')\n", WRITING, "opens a file in another mode"),
        ("path.write_text('x')\n", WRITING, "calls `.write_text`"),
        ("import shutil\n", WRITING, "uses `shutil`"),
        ("import os\nos.makedirs('x')\n", WRITING, "uses `os.makedirs`"),
        ("import torch\ntorch.save({}, 'x')\n", WRITING, "uses `torch.save`"),
    ],
)
def test_forbidden_code(tmp_path, code, rule, message):
    """Each code has one fault, which breaks this rule."""
    ((found_rule, found),) = faults_of(tmp_path, code)
    assert (found_rule, message in found) == (rule, True), found


def test_code_in_a_sub_folder(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "module.py").write_text("value = 1\n")
    assert [str(fault) for fault in find_faults(tmp_path)] == [
        "part/module.py: lies in a sub-folder, which the loader does not read: move it to the top of the folder"
    ]


# Broken configurations and cards, which are found without loading a model


class Edit(NamedTuple):
    """How a correct folder is broken, which check then fails, and with which message."""

    apply: Callable[[Path], object]
    find: Callable
    message: str


def edit_card(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "README.md", old, new)


STATIC_EDITS = {
    "compresses nothing": Edit(
        lambda folder: set_fields(folder, retention_ratio=1.0),
        check_config.check_compressing_settings,
        r"config.json: `retention_ratio` is 1.0 and `expansion` is 1.25: it compresses nothing, .* below 0.8",
    ),
    "keeps all when pruning": Edit(
        lambda folder: set_fields(folder, llm_retention_ratio=1.0),
        check_config.check_compressing_settings,
        r"config.json: `llm_retention_ratio` is 1.0: it prunes nothing",
    ),
    "prunes behind the last layer": Edit(
        lambda folder: set_fields(folder, pruning_layer=14),
        check_config.check_compressing_settings,
        r"config.json: `pruning_layer` is 14 of 14 layers: it prunes nothing, choose one below 14",
    ),
    "another method": Edit(
        lambda folder: set_fields(folder, compression_method="random"),
        check_config.check_compressing_settings,
        r"config.json: `compression_method` is 'random': other methods than 'flashvid' are for comparisons",
    ),
    "setting out of range": Edit(
        lambda folder: set_fields(folder, alpha=2.0), check_config.check_settings, r"config.json: `alpha` is 2.0"
    ),
    "unknown model type": Edit(
        lambda folder: set_fields(folder, model_type="llama"),
        check_config.check_settings,
        r"config.json: `model_type` is 'llama', choose one of flashvid_qwen2_5_vl, ",
    ),
    "no configuration": Edit(
        lambda folder: (folder / "config.json").unlink(), check_config.check_settings, r"config.json: is missing"
    ),
    "wrong class": Edit(
        lambda folder: edit(folder / "config.json", ".FlashVIDQwen2_5_VLModel", ".FlashVIDModel"),
        check_config.check_classes,
        r"`auto_map` names 'modeling_flashvid_qwen2_5_vl.FlashVIDModel' for AutoModel, set it to .*\n"
        r"`modeling_flashvid_qwen2_5_vl.FlashVIDModel` is named, but the folder has no such class",
    ),
    "missing module that is named": Edit(
        lambda folder: (folder / "pipeline_flashvid.py").unlink(),
        check_config.check_classes,
        r"`pipeline_flashvid.VideoTextToTextPipeline` is named, but the folder has no such class",
    ),
    "no card": Edit(
        lambda folder: (folder / "README.md").unlink(),
        check_card.check_card_metadata,
        r"README.md: is missing or empty",
    ),
    "no pipeline tag": Edit(
        edit_card("pipeline_tag: video-text-to-text\n", ""),
        check_card.check_card_metadata,
        r"README.md: `pipeline_tag` is None, set it to 'video-text-to-text'",
    ),
    "wrong library": Edit(
        edit_card("library_name: transformers", "library_name: timm"),
        check_card.check_card_metadata,
        r"README.md: `library_name` is 'timm', set it to 'transformers'",
    ),
    "metadata that is no YAML": Edit(
        edit_card("tags: [video,", "tags: [[video,"),
        check_card.check_card_metadata,
        r"README.md:\d+: the metadata is no YAML",
    ),
    "base model that the card does not name": Edit(
        lambda folder: set_fields(folder, base_model_name_or_path="acme/base"),
        check_card.check_card_metadata,
        r"README.md: `base_model` is None, set it to 'acme/base'",
    ),
    "base model without a licence": Edit(
        edit_card("pipeline_tag:", "base_model: acme/base\npipeline_tag:"),
        check_card.check_card_metadata,
        r"README.md: `license` is missing, set it to that of the base model",
    ),
    "snippet that is no Python": Edit(
        edit_card("print(pipe(", "print(pipe(("),
        check_card.check_snippets_compile,
        r"README.md:\d+: block 1 is no Python",
    ),
    "evaluation results that are none": Edit(
        lambda folder: write_results(folder, "- value: 1.0\n"),
        check_card.check_eval_results,
        r"\.eval_results/results.yaml: cannot be read as evaluation results",
    ),
}


def write_results(folder: Path, text: str) -> None:
    (folder / ".eval_results").mkdir(exist_ok=True)
    (folder / ".eval_results" / "results.yaml").write_text(text)


@pytest.mark.parametrize("name", STATIC_EDITS)
def test_broken_configuration_or_card(broken_folder, name):
    write_results(broken_folder, "- dataset: {id: acme/benchmark, task_id: default}\n  value: 61.5\n")
    assert run(STATIC_EDITS[name].find, broken_folder).status == "passed"
    STATIC_EDITS[name].apply(broken_folder)
    result = run(STATIC_EDITS[name].find, broken_folder)
    assert result.status == "failed"
    assert re.search(STATIC_EDITS[name].message, result.message), result.message


# Models that load or compute what they should not


def edit_code(module: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / f"{module}.py", old, new)


def change_weights(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


WEIGHT = "model.language_model.norm.weight"
RUNTIME_EDITS = {
    "missing weight": Edit(
        lambda folder: change_weights(folder, lambda weights: weights.pop(WEIGHT)),
        check_model.check_keys,
        rf"the weights have 1 missing keys, first {WEIGHT}",
    ),
    "weight too many": Edit(
        lambda folder: change_weights(folder, lambda weights: weights.update({"model.extra": torch.ones(2)})),
        check_model.check_keys,
        r"the weights have 1 unexpected keys, first .*extra",
    ),
    "compression that does nothing": Edit(
        edit_code("configuration_flashvid_qwen2_5_vl", "return self.method.compresses", "return False"),
        check_model.check_differs_from_upstream,
        r"with `retention_ratio` 0.25 the output is that of the upstream model: the compression does nothing",
    ),
    "pruning that does nothing": Edit(
        edit_code("configuration_flashvid_qwen2_5_vl", "method.pruning if method.compresses else None", "None"),
        check_model.check_counts,
        r"(\d+) of \1 video tokens remained in the upper layers: it prunes nothing",
    ),
    "other logits": Edit(
        edit_code("modeling_flashvid", "self.lm_head(", "1.001 * self.lm_head("),
        check_model.check_equals_upstream,
        r"the logits differ from upstream's by up to",
    ),
    "missing module": Edit(
        lambda folder: (folder / "compression_flashvid.py").unlink(),
        check_model.check_loads_from_path,
        r"the folder does not load: .*compression_flashvid",
    ),
}


@pytest.mark.parametrize("name", RUNTIME_EDITS)
@pytest.mark.process
def test_broken_model(broken_folder, name):
    RUNTIME_EDITS[name].apply(broken_folder)
    folder = HubFolder(broken_folder)
    result = run(RUNTIME_EDITS[name].find, folder)
    assert result.status == "failed"
    assert re.search(RUNTIME_EDITS[name].message, result.message), result.message
    if name == "missing module":  # a check that cannot tell must not pass
        assert {run(find, folder).status for find in (check_model.check_keys, check_model.check_counts)} == {"skipped"}
    else:
        assert run(check_model.check_loads_from_path, folder).status == "passed"


def test_counts_are_those_of_the_configuration(right_folder):
    """Counted by hand: 8 grids of 6 x 8 tokens; 1.25 times a quarter of them enters, and 30 % of that remains."""
    folder = HubFolder(right_folder)
    config, inputs = folder.full_config, {"video_grid_thw": torch.tensor([[8, 12, 16]])}
    assert config.llm_retention_ratio == 0.3
    assert check_model.expect_counts(folder.family.geometry, config, inputs, 0) == (384, 120, 36)


def judge(find: Callable, folder: Path, **changes) -> str:
    """The result of a check for findings that are right except for the given changes."""
    hub_folder = HubFolder(folder)
    observed = {"counts": [[384], [120], [36]], "prompt_columns": [136] * 10 + [52] * 4}
    hub_folder.findings = {
        "inputs": {"video_grid_thw": torch.tensor([[8, 12, 16]])},
        "prompt_length": 400,
        "loading": {"dtype": "float32"},
        "compressed": {**observed, "logits": torch.tensor([1.0, -3.0])},
        "whole": {"logits": torch.tensor([1.0, -4.0])},
        "upstream": {"logits": torch.tensor([1.0, -4.0])},
    }
    for name, change in changes.items():
        hub_folder.findings[name] = {**hub_folder.findings[name], **change}
    return run(find, hub_folder).message


@pytest.mark.parametrize(
    ("find", "changes", "message"),
    [
        (check_model.check_counts, {}, ""),
        (check_model.check_counts, {"compressed": {"counts": None}}, "has no `report`"),
        (check_model.check_counts, {"compressed": {"counts": [[384], [384], [36]]}}, "it compresses nothing"),
        (check_model.check_counts, {"compressed": {"counts": [[384], [130], [36]]}}, "384, 120, 36"),
        # The report does not describe what the model does.
        (
            check_model.check_counts,
            {"compressed": {"prompt_columns": [136] * 14}},
            "layer 10 caches 136 columns of the prompt; by config.json they are 52",
        ),
        (check_model.check_equals_upstream, {}, ""),
        (check_model.check_equals_upstream, {"whole": {"logits": torch.tensor([1.0, -4.00001])}}, "at most 0 is"),
        (check_model.check_equals_upstream, {"whole": {"logits": torch.tensor([1.0, torch.nan])}}, "by up to nan"),
        (check_model.check_differs_from_upstream, {}, ""),
        (
            check_model.check_differs_from_upstream,
            {"compressed": {"logits": torch.tensor([1.0, -4.00001])}},
            "does nothing",
        ),
    ],
)
def test_judgement(right_folder, find, changes, message):
    found = judge(find, right_folder, **changes)
    assert message in found and bool(message) == bool(found)


@pytest.mark.parametrize("base", [True, False], ids=["from the base", "from the weights"])
def test_reference(tmp_path, base):
    """Upstream's class with the weights of the base model."""
    model = FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(build_upstream_folder(tmp_path))
    reference = load_reference(model, str(tmp_path) if base else None, None)
    assert type(reference) is upstream_class(type(model))
    assert_same(state(reference), state(model))


# The card's snippets


def test_snippets_that_fail(broken_folder):
    """A wrong name, an error, and an import of the package, which is missing for remote code; correct snippets run."""
    blocks = ["pipelin('x')", "raise SystemExit('enough')", "import av\nav.open('video.mp4').close()"]
    (broken_folder / "README.md").write_text("\n".join(f"```python\n{block}\n```" for block in blocks))
    result = run(check_card.check_snippets_run, broken_folder)
    assert result.status == "failed"
    first, second = result.message.splitlines()
    assert first.startswith("README.md:2: block 1 ended with status 1: ") and "line 2" in first
    assert "NameError: name 'pipelin' is not defined" in first
    assert second == "README.md:5: block 2 ended with status 1: enough"


def test_no_snippet_is_no_success(broken_folder):
    (broken_folder / "README.md").write_text("# A card\n")
    assert run(check_card.check_snippets_run, broken_folder).status == "skipped"


def test_names_of_models_in_snippets():
    code = (
        'name = "a/b"\npipeline("task", model="c/d")\nX.from_pretrained(name, x="y")\nX.from_pretrained("e", other)\n'
    )
    assert find_model_names(ast.parse(code)) == {"a/b", "c/d", "e"}


# Recipes


@pytest.fixture
def recipe(tmp_path) -> Path:
    auto_classes = FlashVIDQwen2_5_VLForConditionalGeneration.config_class.auto_classes
    pipelines = {"impl": "pipeline_flashvid.VideoTextToTextPipeline", "pt": ["AutoModelForImageTextToText"]}
    config = {
        "model_type": "flashvid_qwen2_5_vl",
        "architectures": ["FlashVIDQwen2_5_VLForConditionalGeneration"],
        "auto_map": dict(auto_classes),
        "custom_pipelines": {"video-text-to-text": pipelines},
        "base_model_name_or_path": "acme/base",
        "retention_ratio": 0.1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "README.md").write_text(
        "---\nlibrary_name: transformers\npipeline_tag: video-text-to-text\nbase_model: acme/base\ntags: [flashvid]\n"
        f"---\n# A model\n\n{INSTALLATION}\n```python\nimport transformers\n```\n"
    )
    return tmp_path


def test_right_recipe_passes(recipe):
    results = check_folder(recipe)
    assert [result.title for result in results] == [check.title for check in CHECKS if RECIPE in check.kinds]
    assert {result.status for result in results if result.title not in (VERSIONS, EVALUATION)} == {"passed"}


@pytest.mark.parametrize(
    ("old", "new", "status", "message"),
    [
        (TESTED_SENTENCE, f"Tested with transformers {transformers.__version__}.", "passed", "^$"),
        (TESTED_SENTENCE, "Tested with transformers 4.0.0 and 5.1.0.", "passed", "^$"),
        (
            TESTED_SENTENCE,
            "Tested with transformers 4.0.0, 5.17.0 and 5.999.1.",
            "skipped",
            "install 5.999.1 and check",
        ),
        (TESTED_SENTENCE, "Tested.", "skipped", "does not say which versions were tested"),
        ("transformers>=5.17,<6", "transformers>=5.999", "skipped", r"states transformers>=5.999 and .* is installed"),
        ("transformers>=5.17,<6", "transformers", "skipped", "states no range"),
        ("transformers>=5.17,<6", "sentence-transformers>=2.0", "skipped", "states no range"),
        ("transformers>=5.17,<6", "transformers[torch]==5.*", "passed", "^$"),
        ('"transformers>=5.17,<6"', "transformers>=5.17,<6.\n", "passed", "^$"),
        (TESTED_SENTENCE, "Tested with transformers 5.", "skipped", "does not say which versions were tested"),
        (TESTED_SENTENCE, "Tested with transformers 5.17.0 and\n5.999.1.", "skipped", "install 5.999.1 and check"),
        ("transformers>=5.17,<6", "transformers>=5.17<6", "failed", "is no range of versions, correct it"),
    ],
)
def test_the_versions_that_a_card_states(recipe, old, new, status, message):
    """The versions that the range allows, the tested ones, and whether the checks run with the newest of these."""
    edit(recipe / "README.md", old, new)
    if status == "passed" and TESTED_SENTENCE in (recipe / "README.md").read_text():  # true for any installed version
        edit(recipe / "README.md", TESTED_SENTENCE, f"Tested with transformers {transformers.__version__}.")
    result = run(check_versions, recipe)
    assert result.status == status and re.search(message, result.message), result


@pytest.mark.parametrize(
    ("change", "find", "message"),
    [
        ({"retention_ration": 0.2}, check_config.check_settings, r"`retention_ration` is no field of a recipe"),
        ({"retention_ratio": 2}, check_config.check_settings, r"`retention_ratio` is 2"),
        ({"retention_ratio": 0.8}, check_config.check_compressing_settings, r"it compresses nothing"),
        ({"auto_map": {}}, check_config.check_classes, r"`auto_map` has no AutoConfig"),
        ({"architectures": ["Model"]}, check_config.check_classes, r"`architectures` is \['Model'\]"),
        ({"custom_pipelines": {}}, check_config.check_classes, r"`custom_pipelines` has no 'video-text-to-text'"),
        ({"base_model_name_or_path": None}, check_config.check_base_model, r"`base_model_name_or_path` is None"),
        ({"base_model_revision": "main"}, check_config.check_base_model, r"`base_model_revision` is 'main'"),
        ({"base_model_name_or_path": "a/b"}, check_card.check_card_metadata, r"`base_model` is 'acme/base', set .*a/b"),
    ],
)
def test_broken_recipe(recipe, change, find, message):
    set_fields(recipe, **change)
    result = run(find, recipe)
    assert result.status == "failed"
    assert re.search(message, result.message), result.message


def test_processor_of_a_recipe(recipe):
    (recipe / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "processing_x.Processor"}}))
    result = run(check_config.check_classes, recipe)
    assert result.message == (
        "`processing_x.Processor` is named, but the package has no such class: correct the name or add the module"
    )
