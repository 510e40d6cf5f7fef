"""Folders without weights: built from the recipes on tiny bases, loaded with the package and by remote code."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import assert_same, once, run_program
from hub_cache import LATER, PINNED, RECIPES, base_of, build_base, num_layers_of, recipe_of
from transformers import AutoModelForImageTextToText

from flashvid_hf import FlashVIDQwen2_5_VLForConditionalGeneration, load_processor
from flashvid_hf.families import family_named
from flashvid_hf.publishing.export import export_model, processor_pointer

# Runs with the package and without it; the results must be equal.
LOAD = """
from pathlib import Path

from checkpoints import CLIP, observe, state, untimed, video_inputs
from hub_cache import RECIPES, base_of
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

if arguments[2] == "package":
    import flashvid_hf

work, written, trust = Path(arguments[0]), Path(arguments[1]), {"trust_remote_code": arguments[2] == "remote"}
results = {}
for family in RECIPES:
    for weights in ("base", "included"):
        folder = work / f"{family}-{weights}"
        model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **trust)
        processor = AutoProcessor.from_pretrained(folder, **trust)
        results[family, weights] = {
            "class": type(model).__name__,
            "missing": sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]),
            "state": state(model),
            "processor": type(processor).__name__,
            "observed": observe(model.eval(), video_inputs(processor)),
            "pointer": model.config.base_model_name_or_path,
            "name": model.name_or_path == str(folder),
            "ends with": model.generation_config.eos_token_id,
        }
    folder = work / f"{family}-base"
    base, info = AutoModel.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True, **trust)
    results[family, "AutoModel"] = type(base).__name__, base.dtype, sorted(info["missing_keys"])
    assert AutoConfig.from_pretrained(folder, **trust).base_model_name_or_path == base_of(family)

    model.save_pretrained(written.with_name(f"{family}-saved-{arguments[2]}"))
    processor.save_pretrained(written.with_name(f"{family}-saved-{arguments[2]}"))

# Of the rest one family says as much as all.
folder = work / "qwen2_5_vl-base"
quantized = AutoModelForImageTextToText.from_pretrained(work / "quantized", **trust)
results["quantized"] = type(quantized.model.language_model.layers[0].self_attn.q_proj).__name__
places = {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "cpu"}
inputs = video_inputs(AutoProcessor.from_pretrained(folder, **trust))
for name, kwargs in (
    ("ratio", {"retention_ratio": 0.5}),
    ("disk", {"device_map": places, "offload_folder": written.with_name("disk")}),
):
    placed = type(quantized).from_pretrained(folder, **kwargs)
    results[name] = placed.config.retention_ratio, observe(placed.eval(), inputs)
for revision in ("main", "v1"):
    model = AutoModelForImageTextToText.from_pretrained("acme/FlashVID-tiny", revision=revision, **trust)
    processor = AutoProcessor.from_pretrained("acme/FlashVID-tiny", revision=revision, **trust)
    observed = observe(model.eval(), video_inputs(processor))
    results["hub", revision] = model.config.retention_ratio, observed, state(model)
if arguments[2] == "remote":
    assert type(model).__module__.startswith("transformers_modules.acme."), type(model)
    pipe = pipeline("video-text-to-text", model="acme/FlashVID-tiny", trust_remote_code=True, device="cpu")
else:
    pipe = pipeline("video-text-to-text", model=model, processor=processor)
results["pipeline"] = untimed(pipe(str(CLIP), text="What moves?", num_frames=8, max_new_tokens=4, do_sample=False))
torch.save(results, written)
"""


def fill_loaded(folder: Path, exports: Path) -> None:
    folder.mkdir()
    for door in ("package", "remote"):
        written = folder / f"{door}.pt"
        run_program(LOAD, exports, written, door, home=exports / "home", with_package=door == "package")


@pytest.fixture(scope="session")
def loaded(tmp_path_factory, exports) -> Path:
    """The results of `LOAD` for each door."""
    return once(tmp_path_factory, "weightless-loaded", lambda folder: fill_loaded(folder, exports))


@pytest.fixture(scope="session", params=["package", "remote"])
def results(request, loaded):
    return torch.load(loaded / f"{request.param}.pt", weights_only=False)


each_family = pytest.mark.parametrize("family", RECIPES)


@each_family
def test_a_weightless_folder_is_small_and_names_a_commit(family, exports):
    folder = exports / f"{family}-base"
    files = [file for file in folder.rglob("*") if file.is_file()]
    code = sum(file.stat().st_size for file in files if file.suffix == ".py")
    others = sum(file.stat().st_size for file in files) - code
    assert others < 20_000 and code < 410_000
    assert {file.name for file in files if file.suffix not in (".py", ".yaml")} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "processor_config.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert (config["base_model_name_or_path"], config["base_model_revision"]) == (base_of(family), PINNED)
    recipe = json.loads((recipe_of(family) / "config.json").read_text())
    assert {name: config[name] for name in recipe} == recipe
    assert config["text_config"]["num_hidden_layers"] == num_layers_of(family)
    assert "license: apache-2.0" in (folder / "README.md").read_text()


@each_family
def test_both_kinds_of_folders_are_the_same_model(family, exports, results):
    weightless, full = results[family, "base"], results[family, "included"]
    assert weightless["missing"] == full["missing"] == []
    assert weightless["pointer"] is full["pointer"] is None
    assert weightless["name"] and full["name"]
    assert [weightless[part] for part in ("class", "processor", "ends with")] == [
        full[part] for part in ("class", "processor", "ends with")
    ]
    for part in ("state", "observed"):
        assert_same(weightless[part], full[part])
    reports = weightless["observed"]["reports"]
    assert reports and reports[0][0] > reports[0][1] > reports[0][2], "it compresses"
    base_class, dtype, missing = results[family, "AutoModel"]
    assert base_class.endswith("Model") and dtype == torch.bfloat16 and missing == []


@each_family
def test_weights_are_the_pinned_ones_byte_for_byte(family, exports):
    base = exports / "home" / "hub" / f"models--{base_of(family).replace('/', '--')}" / "snapshots"
    weights = sorted(file.name for file in (base / PINNED).glob("*.safetensors"))
    assert weights
    for name in weights:
        copied = (exports / f"{family}-included" / name).read_bytes()
        assert copied == (base / PINNED / name).read_bytes() != (base / LATER / name).read_bytes()


@each_family
def test_both_doors_are_the_same(family, loaded):
    package, remote = (torch.load(loaded / f"{door}.pt", weights_only=False) for door in ("package", "remote"))
    assert package.keys() == remote.keys()
    for weights in ("base", "included"):
        for part in ("state", "observed"):
            assert_same(package[family, weights][part], remote[family, weights][part])


@each_family
@pytest.mark.parametrize("door", ["package", "remote"])
def test_what_is_saved_is_whole(family, door, loaded):
    """The saved model of a weightless folder has weights, and does not mention the base."""
    saved = loaded / f"{family}-saved-{door}"
    config = json.loads((saved / "config.json").read_text())
    assert not {"base_model_name_or_path", "base_model_revision"} & config.keys()
    model, info = AutoModelForImageTextToText.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found = torch.load(loaded / "package.pt", weights_only=False)[family, "base"]
    assert_same(dict(model.state_dict()), found["state"])
    assert type(load_processor(saved)).__name__ == found["processor"]


def test_quantized_placed_and_with_other_settings(results):
    assert results["quantized"] == "AutoBitLinear"
    ratio, observed = results["disk"]
    assert ratio == 0.1
    assert_same(observed, results["qwen2_5_vl", "base"]["observed"])
    ratio, observed = results["ratio"]
    assert ratio == 0.5
    assert observed["reports"][0][1] > results["qwen2_5_vl", "base"]["observed"]["reports"][0][1]


def test_revisions_of_the_folder(results):
    """`revision` chooses the commit of the folder. The base stays at the commit that this folder names."""
    ratio, observed, weights = results["hub", "v1"]
    assert ratio == 0.1
    assert_same(observed, results["qwen2_5_vl", "base"]["observed"])
    other_ratio, _, other_weights = results["hub", "main"]
    assert other_ratio == 0.75
    assert_same(other_weights, weights)
    assert results["pipeline"][0]["video_tokens"]["total"] > results["pipeline"][0]["video_tokens"]["entered"]


# What is refused, and configurations that are passed along


@pytest.fixture(scope="session")
def local_base(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "base", lambda folder: build_base(folder, "qwen2_5_vl"))


def test_a_recipe_is_not_loaded(local_base):
    with pytest.raises(ValueError, match="is a recipe, .* Build a folder from it with `flashvid-hf export`"):
        AutoModelForImageTextToText.from_pretrained(recipe_of("qwen2_5_vl"))


def test_a_configuration_does_not_lead_away_from_weights(local_base, exports):
    """The pointer to the base belongs to the folder: with another checkpoint, the configuration only gives settings."""
    config_class = FlashVIDQwen2_5_VLForConditionalGeneration.config_class
    config = config_class.from_pretrained(exports / "qwen2_5_vl-base")
    model = FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(local_base, config=config)
    assert model.config.base_model_name_or_path is None and model.config.retention_ratio == 0.1
    assert config.base_model_name_or_path == base_of("qwen2_5_vl"), "the caller's stays as it is"
    expected = FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(local_base)
    assert_same(dict(model.state_dict()), dict(expected.state_dict()))


def test_another_base_may_be_named(local_base, exports):
    """For example, a local copy of the base."""
    model = AutoModelForImageTextToText.from_pretrained(
        exports / "qwen2_5_vl-base", base_model_name_or_path=str(local_base)
    )
    expected = FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(local_base)
    assert_same(dict(model.state_dict()), dict(expected.state_dict()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "elsewhere"}, "`weights` is 'elsewhere'"),
        ({"weights": "base"}, "what others load must be on the Hub"),
        ({"retention_ratio": 2}, "`retention_ratio` is 2"),
        ({"source": "recipe of qwen3_vl"}, "they do not belong together"),
        ({"source": "recipe for 64 layers"}, "with the 28 layers of .* a layer sees .* not `retention_ratio`"),
    ],
)
def test_refused_exports(change, said, local_base, tmp_path):
    sources = {
        "recipe of qwen3_vl": recipe_of("qwen3_vl"),
        "recipe for 64 layers": recipe_of("qwen2_5_vl").parent / "FlashVID-Qwen2.5-VL-32B-Instruct",
    }
    source = sources.get(change.pop("source", None), local_base)
    with pytest.raises(ValueError, match=said):
        export_model(source, tmp_path / "target", **{"weights": "included", "base": local_base, **change})
    assert not (tmp_path / "target").exists()


def test_export_writes_over_nothing(local_base, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="`target` is .* not empty"):
        export_model(local_base, tmp_path, weights="included")
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_processor_without_a_base(tmp_path, local_base):
    export_model(local_base, tmp_path / "full", weights="included")
    pointer = processor_pointer(family_named("qwen2_5_vl"))
    (tmp_path / "full" / "processor_config.json").write_text(json.dumps(pointer))
    with pytest.raises(ValueError, match="has no `base_model_name_or_path`"):
        load_processor(tmp_path / "full")
