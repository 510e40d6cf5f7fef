"""The two doors to a model: the package, and remote code in an interpreter without the package. Both load and save."""

import ast
import importlib
import json
import shutil
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from checkpoints import (
    RETENTION_RATIO,
    assert_same,
    build_flashvid_folder,
    build_upstream_folder,
    observe,
    once,
    run_program,
    state,
    video_inputs,
)
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2VLConfig,
)
from transformers.dynamic_module_utils import get_relative_imports

from flashvid_hf import (
    CompressionConfig,
    FlashVIDQwen2_5_VLConfig,
    FlashVIDQwen2_5_VLForConditionalGeneration,
    FlashVIDQwen2_5_VLModel,
    exact_num_tokens,
)
from flashvid_hf.families import FAMILIES_BY_NAME, family_of_type
from flashvid_hf.publishing.published_code import published_files

# A module's name has no dots and hyphens, so transformers has to replace them.
HUB_ID = "acme/flashvid-tiny-0.1B"
HUB_FOLDER = "hub/models--acme--flashvid-tiny-0.1B"
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
# Folders that were saved by one door and must open through both.
SAVED_BY_PACKAGE = ("package-saved", "package-in-place")
SAVED_BY_REMOTE_CODE = ("remote-saved", "remote-in-place", "hub-saved")

# Runs where `flashvid_hf` cannot be imported. Loads every folder by remote code and writes the results.
REMOTE_DOOR = """
from pathlib import Path

import transformers
from checkpoints import observe, state, video_inputs
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

work, hub_id = Path(arguments[0]), arguments[1]
folder = str(work / "flashvid-tiny")
results = {"models": {}, "refusals": {}}

try:
    import flashvid_hf
except ImportError as error:
    results["import"] = str(error)

inputs = video_inputs(AutoProcessor.from_pretrained(folder, trust_remote_code=True))


def load(name, loader, source, **kwargs):
    model, info = loader.from_pretrained(source, output_loading_info=True, **kwargs)
    results["models"][name] = {
        "class": f"{type(model).__module__}.{type(model).__name__}",
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "retention_ratio": model.config.retention_ratio,
    }
    if model.can_generate():
        results["models"][name]["observed"] = observe(model.eval(), inputs)
    return model.eval()


for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    model = load(name, getattr(transformers, name), folder, trust_remote_code=True)
base = load("AutoModel", AutoModel, folder, trust_remote_code=True)
with torch.no_grad():
    results["last_hidden_state"] = base(**inputs).last_hidden_state
results["inputs"] = inputs
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
results["config"] = type(config).__name__, config.to_json_string()
load("ratio 0.5", AutoModelForImageTextToText, folder, trust_remote_code=True, retention_ratio=0.5)

model.save_pretrained(work / "remote-saved")
in_place = str(work / "remote-in-place")
load("before", AutoModelForImageTextToText, in_place, trust_remote_code=True).save_pretrained(in_place)

model = load("hub", AutoModelForImageTextToText, hub_id, trust_remote_code=True)
model.save_pretrained(work / "hub-saved")
load("hub revision", AutoModelForImageTextToText, hub_id, trust_remote_code=True, revision="v2")
load("hub revision, by class", type(model), hub_id, revision="v2")
results["hub inputs"] = video_inputs(AutoProcessor.from_pretrained(hub_id, trust_remote_code=True))

for name in ("package-saved", "package-in-place", "remote-saved", "remote-in-place", "hub-saved"):
    load(name, AutoModelForImageTextToText, work / name, trust_remote_code=True)

module = "modeling_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VL"
for name in ("ForConditionalGeneration", "Model"):
    loader = get_class_from_dynamic_module(module + name, folder)
    upstream = load(f"upstream {name}", loader, work / "upstream")
    results["models"][f"upstream {name}"]["state"] = state(upstream)


def refuse(name, loader, *args, **kwargs):
    try:
        answer = type(loader(*args, **kwargs)).__name__
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    results["refusals"][name] = answer


for source in (folder, hub_id):
    for name in ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        loader = getattr(transformers, name).from_pretrained
        refuse(f"{name}, False, {source}", loader, source, trust_remote_code=False)
        refuse(f"{name}, not given, {source}", loader, source)  # asks, and gets no answer from a closed input
    for task in ("video-text-to-text", None):
        refuse(f"pipeline({task}), {source}", transformers.pipeline, task, model=source, trust_remote_code=False)

torch.save(results, work / "results.pt")
"""

# Runs with the package, in an interpreter that has not imported it yet.
PACKAGE_IMPORT = """
import importlib
from pathlib import Path

from checkpoints import assert_same, observe, video_inputs
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers import AutoModelForMultimodalLM, Qwen2_5_VLModel, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

folder, upstream_folder = arguments
inputs = video_inputs(AutoProcessor.from_pretrained(upstream_folder))
upstream = Qwen2_5_VLForConditionalGeneration.from_pretrained(upstream_folder).eval()
expected = observe(upstream, inputs)
AutoModel.from_pretrained(upstream_folder)  # transformers notes things on a class when it first loads it
classes = {c for module in upstream.modules() for c in type(module).__mro__ if c.__module__.startswith("transformers.")}
untouched = {c: dict(vars(c)) for c in classes}


def check_upstream():
    changed = [(c, name) for c in classes for name, value in vars(c).items() if untouched[c].get(name) is not value]
    assert changed == []
    assert type(AutoModelForImageTextToText.from_pretrained(upstream_folder)) is Qwen2_5_VLForConditionalGeneration
    assert type(AutoModel.from_pretrained(upstream_folder)) is Qwen2_5_VLModel
    assert_same(observe(upstream, inputs), expected)


def check_package():
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert type(model) is flashvid_hf.FlashVIDQwen2_5_VLForConditionalGeneration
    assert type(model.config) is flashvid_hf.FlashVIDQwen2_5_VLConfig
    assert type(AutoModel.from_pretrained(folder)) is flashvid_hf.FlashVIDQwen2_5_VLModel
    assert type(AutoModelForMultimodalLM.from_pretrained(folder)) is type(model)
    task = PIPELINE_REGISTRY.supported_tasks["video-text-to-text"]
    assert task["impl"] is flashvid_hf.VideoTextToTextPipeline, task
    assert observe(model, inputs)["reports"]


import flashvid_hf

check_package()
check_upstream()

importlib.reload(flashvid_hf)
check_package()

first = flashvid_hf
for name in [name for name in sys.modules if name.partition(".")[0] == "flashvid_hf"]:
    del sys.modules[name]
import flashvid_hf

assert flashvid_hf is not first
check_package()
check_upstream()

# A folder with code beside the weights runs with the package's model where there is a package.
pipe = pipeline(model=folder, trust_remote_code=True)
assert type(pipe.model) is flashvid_hf.FlashVIDQwen2_5_VLForConditionalGeneration
"""


def build_doors(work: Path) -> None:
    """Build every folder, and the results of an interpreter without the package."""
    folder = build_flashvid_folder(work / "flashvid-tiny")
    build_upstream_folder(work / "upstream")
    for name in ("package-in-place", "remote-in-place"):
        shutil.copytree(folder, work / name)
    FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(folder).save_pretrained(work / "package-saved")
    in_place = work / "package-in-place"
    FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(in_place).save_pretrained(in_place)

    # The Hub's cache as a download leaves it.
    home = work / "home"
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        snapshot = home / HUB_FOLDER / "snapshots" / commit
        shutil.copytree(folder, snapshot)
        reference = home / HUB_FOLDER / "refs" / revision
        reference.parent.mkdir(exist_ok=True)
        reference.write_text(commit)
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps({**config, "retention_ratio": 0.75}))

    run_program(REMOTE_DOOR, work, HUB_ID, home=home)


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "doors", build_doors)


@pytest.fixture(scope="session")
def folder(work) -> Path:
    return work / "flashvid-tiny"


@pytest.fixture(scope="session")
def remote(work) -> dict:
    """The results of the remote-code door."""
    return torch.load(work / "results.pt")


@pytest.fixture(scope="session")
def inputs(folder) -> dict[str, torch.Tensor]:
    return video_inputs(AutoProcessor.from_pretrained(folder))


@pytest.fixture(scope="session")
def observed(folder, inputs) -> dict:
    """The results of the package door."""
    return observe(load(folder), inputs)


@pytest.fixture(scope="session")
def upstream(work) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(work / "upstream").eval()


def load(source, loader=AutoModelForImageTextToText, unexpected=frozenset(), **kwargs):
    """Load a model; no weight may be missing, and none left over except `unexpected`."""
    model, info = loader.from_pretrained(source, output_loading_info=True, **kwargs)
    assert info["missing_keys"] == set()
    assert info["mismatched_keys"] == set()
    assert info["unexpected_keys"] == set(unexpected)
    return model.eval()


def entered(retention_ratio: float) -> tuple[int, ...]:
    """Number of tokens of the video in `video_inputs` that enter; it has four temporal grids of six tokens."""
    return (exact_num_tokens(4, 6, CompressionConfig(retention_ratio=retention_ratio)),)


# The remote-code door


def test_remote_interpreter_has_no_package(remote):
    assert remote["import"] == "flashvid_hf is blocked"


@pytest.mark.parametrize("auto_class", ["AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModel"])
def test_remote_code_loads_every_weight(remote, auto_class):
    model = remote["models"][auto_class]
    head = "Model" if auto_class == "AutoModel" else "ForConditionalGeneration"
    assert model["class"].startswith("transformers_modules.flashvid")
    assert model["class"].endswith(f".modeling_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VL{head}")
    assert model["missing"] == []
    assert model["unexpected"] == (["lm_head.weight"] if auto_class == "AutoModel" else [])


def test_remote_code_reads_the_same_configuration(remote, folder):
    name, content = remote["config"]
    assert name == "FlashVIDQwen2_5_VLConfig"
    assert content == AutoConfig.from_pretrained(folder).to_json_string()


def test_remote_code_has_the_same_processor(remote, inputs):
    assert_same(remote["inputs"], inputs)


@pytest.mark.parametrize("name", ["AutoModelForImageTextToText", "AutoModelForMultimodalLM", "hub"])
def test_remote_code_computes_the_same(remote, observed, name):
    assert_same(remote["models"][name]["observed"], observed)


def test_the_compared_numbers_say_something(observed, inputs):
    """The video is compressed before and inside the language model, and the answer is not one token repeated."""
    assert observed["reports"] == [((24,), entered(RETENTION_RATIO), (3,), observed["reports"][0][3])]
    assert observed["logits"].shape[1] == inputs["input_ids"].shape[1] - 24 + 3
    new = observed["ids"][0, inputs["input_ids"].shape[1] :]
    assert len(new) > 1 and len(set(new.tolist())) > 1


def test_remote_base_model_computes_the_same(remote, folder, inputs):
    model = load(folder, AutoModel, unexpected={"lm_head.weight"})
    with torch.no_grad():
        assert_same(remote["last_hidden_state"], model(**inputs).last_hidden_state)


def test_setting_reaches_remote_code(remote, folder, inputs):
    model = remote["models"]["ratio 0.5"]
    assert model["retention_ratio"] == 0.5
    assert model["observed"]["reports"][0][1] == entered(0.5) != entered(RETENTION_RATIO)
    assert_same(model["observed"], observe(load(folder, retention_ratio=0.5), inputs))


def test_remote_code_from_the_hub(remote, inputs):
    model = remote["models"]["hub"]
    assert model["missing"] == model["unexpected"] == []
    # One module for each commit, so that its parts share their classes.
    assert f".{'a' * 40}.modeling_flashvid_qwen2_5_vl." in model["class"]
    assert_same(remote["hub inputs"], inputs)


@pytest.mark.parametrize("name", ["hub revision", "hub revision, by class"])
def test_remote_code_from_a_revision(remote, name):
    model = remote["models"][name]
    assert model["retention_ratio"] == 0.75
    assert model["observed"]["reports"][0][1] == entered(0.75) != entered(RETENTION_RATIO)


def test_nothing_loads_without_trust(remote, folder):
    """Not even upstream's model, which would run without compression."""
    assert len(remote["refusals"]) == 20
    for name, answer in remote["refusals"].items():
        assert answer.startswith("ValueError: "), f"{name}: {answer}"
        assert "trust_remote_code=True" in answer, f"{name}: {answer}"


# The package door


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (AutoModelForImageTextToText, FlashVIDQwen2_5_VLForConditionalGeneration),
        (AutoModelForMultimodalLM, FlashVIDQwen2_5_VLForConditionalGeneration),
        (AutoModel, FlashVIDQwen2_5_VLModel),
        (FlashVIDQwen2_5_VLForConditionalGeneration, FlashVIDQwen2_5_VLForConditionalGeneration),
        (FlashVIDQwen2_5_VLModel, FlashVIDQwen2_5_VLModel),
    ],
)
def test_package_needs_no_trust(folder, loader, expected):
    model = load(folder, loader, unexpected={"lm_head.weight"} if expected is FlashVIDQwen2_5_VLModel else ())
    assert type(model) is expected
    assert type(model.config) is FlashVIDQwen2_5_VLConfig
    assert model.config.retention_ratio == RETENTION_RATIO


@pytest.mark.parametrize("trust_remote_code", [True, False])
def test_package_is_preferred_to_the_code_in_the_folder(folder, trust_remote_code):
    model = load(folder, trust_remote_code=trust_remote_code)
    assert type(model) is FlashVIDQwen2_5_VLForConditionalGeneration


@pytest.mark.parametrize("loader", [AutoModelForImageTextToText, FlashVIDQwen2_5_VLForConditionalGeneration])
def test_where_to_find_the_files(work, observed, inputs, loader):
    """The arguments that say where the files are apply to the configuration and the weights."""
    model = load(work, loader, subfolder="flashvid-tiny")
    assert_same(observe(model, inputs), observed)
    cache = {"cache_dir": work / "home" / "hub", "local_files_only": True}
    assert_same(observe(load(HUB_ID, loader, **cache), inputs), observed)
    assert load(HUB_ID, loader, revision="v2", **cache).config.retention_ratio == 0.75


@pytest.mark.parametrize("loader", [AutoModelForImageTextToText, FlashVIDQwen2_5_VLForConditionalGeneration])
def test_settings_of_model_and_configuration_arrive(folder, loader):
    model = load(folder, loader, retention_ratio=0.5, dtype=torch.bfloat16, attn_implementation="eager")
    assert model.config.retention_ratio == 0.5
    assert model.dtype == model.lm_head.weight.dtype == torch.bfloat16
    assert model.config._attn_implementation == model.model.visual.config._attn_implementation == "eager"


def test_configuration_from_elsewhere(work, folder):
    """A configuration, or a folder with one, and the weights of another folder."""
    by_path = load(work / "upstream", FlashVIDQwen2_5_VLForConditionalGeneration, config=folder)
    config = AutoConfig.from_pretrained(folder, retention_ratio=0.5)
    by_object = load(work / "upstream", FlashVIDQwen2_5_VLForConditionalGeneration, config=config)
    assert by_path.config.retention_ratio == RETENTION_RATIO
    assert by_object.config.retention_ratio == 0.5


# Upstream's checkpoints


def test_upstream_folder_has_the_published_names(work):
    with safe_open(work / "upstream" / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert "lm_head.weight" in names
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "visual.blocks.0.attn.qkv.weight" in names
    assert {name.partition(".")[0] for name in names} == {"visual", "model", "lm_head"}
    assert {name.split(".")[1] for name in names if name.startswith("model.")} == {"embed_tokens", "layers", "norm"}
    assert json.loads((work / "upstream" / "config.json").read_text())["tie_word_embeddings"] is False


def test_upstream_checkpoint_by_the_package(work, upstream):
    model = load(work / "upstream", FlashVIDQwen2_5_VLForConditionalGeneration)
    assert_same(state(model), state(upstream))
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    base = load(work / "upstream", FlashVIDQwen2_5_VLModel, unexpected={"lm_head.weight"})
    assert_same(state(base), state(upstream.model))


def test_upstream_checkpoint_by_remote_code(remote, upstream):
    for name, expected, unexpected in (
        ("upstream ForConditionalGeneration", upstream, []),
        ("upstream Model", upstream.model, ["lm_head.weight"]),
    ):
        model = remote["models"][name]
        assert model["class"].startswith("transformers_modules.")
        assert model["missing"] == []
        assert model["unexpected"] == unexpected
        assert_same(model["state"], state(expected))


def test_upstream_checkpoint_with_tied_embeddings(tmp_path):
    build_upstream_folder(tmp_path, tie_word_embeddings=True)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in set(weights.keys())
    upstream = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    model = load(tmp_path, FlashVIDQwen2_5_VLForConditionalGeneration)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert_same(state(model), state(upstream))
    assert_same(state(load(tmp_path, FlashVIDQwen2_5_VLModel)), state(upstream.model))


def test_upstream_checkpoint_gets_the_family_defaults(work, upstream, inputs):
    """Loaded with ratio 1.0 it is upstream's model, bit for bit."""
    source = work / "upstream"
    model = load(source, FlashVIDQwen2_5_VLForConditionalGeneration)
    assert model.config.model_type == "flashvid_qwen2_5_vl"
    assert (model.config.retention_ratio, model.config.min_segment_num) == (0.25, 4)
    assert model.config.text_config.to_dict() == upstream.config.text_config.to_dict()
    assert model.generation_config.to_dict() == upstream.generation_config.to_dict()
    whole = load(source, FlashVIDQwen2_5_VLForConditionalGeneration, retention_ratio=1.0)
    assert_same(observe(whole, inputs), observe(upstream, inputs))


@pytest.mark.parametrize("loader", [FlashVIDQwen2_5_VLForConditionalGeneration, FlashVIDQwen2_5_VLModel])
def test_checkpoint_of_another_family_is_refused(tmp_path, folder, loader):
    Qwen2VLConfig().save_pretrained(tmp_path)
    for arguments in ({}, {"retention_ratio": 0.5}):
        with pytest.raises(ValueError, match="`model_type` of .* is 'qwen2_vl'.*'qwen2_5_vl'"):
            loader.from_pretrained(tmp_path, **arguments)
    with pytest.raises(ValueError, match="'qwen2_vl'"):
        loader.from_pretrained(folder, config=tmp_path)


# Saving


def assert_complete(saved: Path, original: Path) -> None:
    """The folder contains the code, and its configuration names that code as the original configuration did."""
    config, expected = (json.loads((folder / "config.json").read_text()) for folder in (saved, original))
    for part in ("text_config", "vision_config"):
        config[part].pop("dtype", None)  # upstream adds it when it loads weights
    assert config == expected
    assert sorted(config["auto_map"]) == sorted(AUTO_CLASSES)
    assert config["custom_pipelines"]["video-text-to-text"]["impl"] == "pipeline_flashvid.VideoTextToTextPipeline"
    of_processor = {"processing_flashvid_qwen2_5_vl.py"}  # saved by the processor; it is there if saved in place
    code = {path.name for path in original.glob("*.py")} - of_processor
    assert {path.name for path in saved.glob("*.py")} - of_processor == code
    named = {*config["auto_map"].values(), config["custom_pipelines"]["video-text-to-text"]["impl"]}
    assert {f"{name.partition('.')[0]}.py" for name in named} <= code
    for name in code:
        assert (saved / name).read_bytes() == (original / name).read_bytes(), name


@pytest.mark.parametrize("name", [*SAVED_BY_PACKAGE, *SAVED_BY_REMOTE_CODE])
def test_saved_folder_opens_through_both_doors(work, folder, remote, observed, inputs, name):
    assert_complete(work / name, folder)
    assert_same(observe(load(work / name), inputs), observed)
    by_remote_code = remote["models"][name]
    assert by_remote_code["missing"] == by_remote_code["unexpected"] == []
    assert_same(by_remote_code["observed"], observed)


def test_saved_code_is_the_package(tmp_path, folder):
    load(folder).save_pretrained(tmp_path)
    generated = published_files(family_of_type("flashvid_qwen2_5_vl"))
    saved = {path.name: path.read_text() for path in tmp_path.glob("*.py")}
    assert saved == {name: text for name, text in generated.items() if name != "processing_flashvid_qwen2_5_vl.py"}


def test_saving_over_the_code_that_runs(tmp_path, monkeypatch, folder, observed, inputs):
    """If the code of a model was imported from the folder itself, it need not be copied there."""
    shutil.copytree(folder, tmp_path / "downloaded_model")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("downloaded_model.modeling_flashvid_qwen2_5_vl")
    model = load(tmp_path / "downloaded_model", module.FlashVIDQwen2_5_VLForConditionalGeneration)
    model.save_pretrained(tmp_path / "downloaded_model")
    assert_complete(tmp_path / "downloaded_model", folder)
    assert_same(observe(load(tmp_path / "downloaded_model"), inputs), observed)


def test_saving_keeps_settings(tmp_path, folder):
    load(folder, retention_ratio=0.5, pruning_layer=7).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.retention_ratio, config.pruning_layer) == (0.5, 7)


def test_upstream_checkpoint_is_saved_as_a_flashvid_folder(tmp_path, work, upstream):
    load(work / "upstream", FlashVIDQwen2_5_VLForConditionalGeneration).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert type(model) is FlashVIDQwen2_5_VLForConditionalGeneration
    assert_same(state(model), state(upstream))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "flashvid_qwen2_5_vl"
    assert config["architectures"] == ["FlashVIDQwen2_5_VLForConditionalGeneration"]
    assert config["auto_map"]["AutoModel"] == "modeling_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VLModel"


def test_base_model_is_saved_as_a_folder_with_code(tmp_path, folder):
    base = load(folder, FlashVIDQwen2_5_VLModel, unexpected={"lm_head.weight"})
    base.save_pretrained(tmp_path)
    others = {"processing_flashvid_qwen2_5_vl.py"}  # the processor saves its own code
    assert {path.name for path in tmp_path.glob("*.py")} == {path.name for path in folder.glob("*.py")} - others
    again = load(tmp_path, AutoModel)
    assert type(again) is FlashVIDQwen2_5_VLModel
    assert_same(state(again), state(base))


def test_a_class_of_a_notebook_is_saved_without_its_code(tmp_path, folder, monkeypatch):
    """`__main__` has no file there. Its code cannot be saved, as transformers warns; weights and settings are."""
    own = type("OwnModel", (FlashVIDQwen2_5_VLForConditionalGeneration,), {"__module__": "__main__"})
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    model = load(folder, own)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py")) and (tmp_path / "config.json").is_file()
    assert_same(state(load(tmp_path, FlashVIDQwen2_5_VLForConditionalGeneration)), state(model))


def test_a_registered_configuration_is_saved_with_its_code(tmp_path, folder, monkeypatch):
    config = FlashVIDQwen2_5_VLConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path / "alone")
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["config.json"]
    monkeypatch.setattr(FlashVIDQwen2_5_VLConfig, "saves_code", False)  # as before, after the test
    FlashVIDQwen2_5_VLConfig.register_for_auto_class()
    config.save_pretrained(tmp_path / "with_code")
    names = {path.name for path in (tmp_path / "with_code").iterdir()}
    assert names == {"config.json", "configuration_flashvid_qwen2_5_vl.py", "compression_flashvid.py"}
    saved = json.loads((tmp_path / "with_code" / "config.json").read_text())
    assert saved["auto_map"]["AutoConfig"] == "configuration_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VLConfig"
    again = AutoConfig.from_pretrained(tmp_path / "with_code").to_dict()
    assert again == {**config.to_dict(), "auto_map": ANY, "_name_or_path": ANY}


# The published modules

ALLOWED_IMPORTS = {*sys.stdlib_module_names, "torch", "numpy", "PIL", "transformers", "huggingface_hub"}


def imports(module: Path) -> tuple[set[str], list[str]]:
    """The imports of a module: relative modules, and imports that a folder without sub-folders cannot provide."""
    relative, faults = set(), []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            tops = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            tops = [node.module.partition(".")[0]]
        elif isinstance(node, ast.ImportFrom):
            tops = []
            if node.level == 1 and node.module and "." not in node.module and node.names[0].name != "*":
                relative.add(node.module)
            else:
                faults.append(f"{module.name}:{node.lineno}: no `from .module import name`")
        else:
            continue
        faults += [f"{module.name}:{node.lineno}: imports {top}" for top in tops if top not in ALLOWED_IMPORTS]
    return relative, faults


@pytest.fixture(scope="session", params=FAMILIES_BY_NAME)
def family_folder(request, tmp_path_factory) -> Path:
    family = request.param
    return once(tmp_path_factory, f"doors-{family}", lambda folder: build_flashvid_folder(folder, family))


def test_published_modules_import_what_a_user_has(family_folder):
    modules = sorted(family_folder.glob("*.py"))
    assert 5 <= len(modules) <= 6
    for module in modules:
        relative, faults = imports(module)
        assert faults == []
        # transformers searches the text, docstrings included, for imports: it must find the real ones, and no other.
        assert set(get_relative_imports(module)) == relative, module.name


def test_published_modules_are_those_that_are_needed(family_folder):
    """Starting from the files that the configurations name, imports reach every file, and no file is missing."""
    config, processor = (
        json.loads((family_folder / f"{name}.json").read_text()) for name in ("config", "processor_config")
    )
    named = {**config["auto_map"], **processor.get("auto_map", {})}.values()
    named = [*named, *(pipeline["impl"] for pipeline in config["custom_pipelines"].values())]
    reached, waiting = set(), {name.partition(".")[0] for name in named}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= imports(family_folder / f"{module}.py")[0] - reached
    assert {path.stem for path in family_folder.glob("*.py")} == reached


# Registration


def test_import_leaves_upstream_alone(work, folder, tmp_path):
    """Importing once or twice registers the package's classes and changes none of upstream's."""
    run_program(PACKAGE_IMPORT, folder, work / "upstream", home=tmp_path / "home", with_package=True)


def test_upstream_computes_the_same_beside_flashvid(work, folder, upstream, inputs):
    before = observe(upstream, inputs)
    model = load(folder)
    assert observe(model, inputs)["reports"]
    assert_same(observe(upstream, inputs), before)
    assert Qwen2_5_VLForConditionalGeneration.forward.__module__ == Qwen2_5_VLForConditionalGeneration.__module__
    assert Qwen2_5_VLModel.forward.__module__ == Qwen2_5_VLModel.__module__
    assert before["reports"] == []


def test_configuration_objects(folder):
    """A given configuration object is used with some fields replaced, and is not changed itself."""
    loader = FlashVIDQwen2_5_VLForConditionalGeneration
    config = FlashVIDQwen2_5_VLConfig.from_pretrained(folder)
    before = config.to_dict()
    model = loader.from_pretrained(folder, config=config, retention_ratio=0.5)
    assert model.config.retention_ratio == 0.5 and config.to_dict() == before
    # A derived ratio stays derived, and the attention implementations do not change.
    config._attn_implementation = {"": "sdpa", "text_config": "eager", "vision_config": "sdpa"}
    model = loader.from_pretrained(folder, config=config, pruning_layer=8)
    assert (model.config.pruning_layer, model.config.llm_retention_ratio) == (8, pytest.approx(4 / 7.5, abs=1e-6))
    towers = model.config.text_config, model.config.vision_config
    assert [tower._attn_implementation for tower in towers] == ["eager", "sdpa"]
    with pytest.raises(ValueError, match="`retention_ratio` is 5"):
        loader.from_pretrained(folder, config=config, retention_ratio=5)
    # Upstream's configuration gets FlashVID's defaults.
    names = ("text_config", "vision_config", "image_token_id", "video_token_id", "vision_start_token_id")
    upstream = Qwen2_5_VLConfig(**{name: config.to_dict()[name] for name in names})
    model, info = loader.from_pretrained(folder, config=upstream, alpha=0.5, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (model.config.alpha, model.config.retention_ratio, model.config.pruning_layer) == (0.5, 0.25, 10)
    with pytest.raises(ValueError, match="`config` has the `model_type` 'llama'"):
        loader.from_pretrained(folder, config=LlamaConfig())
