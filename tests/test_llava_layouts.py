"""LLaVA-OneVision's checkpoints in every layout that llava-hf has published, through the package and remote code."""

import json
import re

import pytest
import torch
from checkpoints import assert_same, build_flashvid_folder, build_upstream_folder, once, run_program, state
from safetensors.torch import load_file, save_file
from transformers import LlavaOnevisionForConditionalGeneration

from flashvid_hf import FlashVIDLlavaOnevisionForConditionalGeneration, FlashVIDLlavaOnevisionModel

MODEL = LlavaOnevisionForConditionalGeneration
OLD_NAMES = {
    r"^lm_head": "language_model.lm_head",
    r"^model\.language_model": "language_model.model",
    r"^model\.": "",
}
TOWER_LEVEL = {r"vision_tower\.": "vision_tower.vision_model."}
# For each layout the renamings of a model's weights, in order, and a name that only this layout has.
LAYOUTS = {
    "old": ({**TOWER_LEVEL, **OLD_NAMES}, "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"),
    "old, flat tower": (OLD_NAMES, "vision_tower.encoder.layers.0.mlp.fc1.weight"),
    "new": (TOWER_LEVEL, "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"),
    "new, flat tower": ({}, "model.vision_tower.encoder.layers.0.mlp.fc1.weight"),
}
FOLDERS = [*LAYOUTS, "saved by upstream"]

REMOTE_DOOR = """
from checkpoints import state
from transformers.dynamic_module_utils import get_class_from_dynamic_module

work, *folders = arguments
results = {}
for name in ("ForConditionalGeneration", "Model"):
    reference = f"modeling_flashvid_llava_onevision.FlashVIDLlavaOnevision{name}"
    loader = get_class_from_dynamic_module(reference, f"{work}/flashvid")
    assert loader.__module__.startswith("transformers_modules.")
    for folder in folders:
        model, info = loader.from_pretrained(f"{work}/{folder}", output_loading_info=True)
        results[name, folder] = {kind: sorted(keys) for kind, keys in info.items() if keys}, state(model)
torch.save(results, f"{work}/results.pt")
"""


def build_work(work):
    build_flashvid_folder(work / "flashvid", "llava_onevision")
    build_upstream_folder(work / "saved by upstream", "llava_onevision")
    weights = state(MODEL.from_pretrained(work / "saved by upstream"))
    config = json.loads((work / "saved by upstream" / "config.json").read_text())
    for layout, (renaming, _) in LAYOUTS.items():
        (work / layout).mkdir()
        (work / layout / "config.json").write_text(json.dumps(config if "new" in layout else as_published(config)))
        renamed = {rename(name, renaming): weight for name, weight in weights.items()}
        save_file(renamed, work / layout / "model.safetensors", {"format": "pt"})
    run_program(REMOTE_DOOR, work, *FOLDERS, home=work / "home")


def as_published(config: dict) -> dict:
    """The configuration as transformers 4 wrote it."""
    text = {**config["text_config"], "rope_theta": config["text_config"]["rope_parameters"]["rope_theta"]}
    del text["rope_parameters"]
    published = {**config, "text_config": text, "torch_dtype": config["dtype"], "use_image_newline_parameter": True}
    del published["dtype"]
    return published


def rename(name: str, renaming: dict[str, str]) -> str:
    for pattern, replacement in renaming.items():
        name = re.sub(pattern, replacement, name)
    return name


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return once(tmp_path_factory, "llava-layouts", build_work)


@pytest.fixture(scope="session")
def upstream(work):
    return MODEL.from_pretrained(work / "saved by upstream")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_are_what_they_are_called(work, layout):
    names = load_file(work / layout / "model.safetensors").keys()
    is_old = layout.startswith("old")
    assert LAYOUTS[layout][1] in names
    assert ("language_model.lm_head.weight" if is_old else "lm_head.weight") in names  # not tied
    assert ("language_model.model.norm.weight" if is_old else "model.language_model.norm.weight") in names
    assert ("image_newline" if is_old else "model.image_newline") in names


@pytest.mark.parametrize("layout", FOLDERS)
def test_every_weight_finds_its_place(work, upstream, layout):
    remote = torch.load(work / "results.pt")
    for name, loader, expected, unexpected in (
        ("ForConditionalGeneration", FlashVIDLlavaOnevisionForConditionalGeneration, upstream, {}),
        ("Model", FlashVIDLlavaOnevisionModel, upstream.model, {"unexpected_keys": ["lm_head.weight"]}),
    ):
        model, info = loader.from_pretrained(work / layout, output_loading_info=True)
        assert model.config.text_config.rope_parameters["rope_theta"] == 1e6
        package = {kind: sorted(keys) for kind, keys in info.items() if keys}, state(model)
        for faults, found in (package, remote[name, layout]):
            assert faults == unexpected
            assert_same(found, state(expected))


@pytest.mark.parametrize("has_head", [True, False])
def test_tied_embeddings(tmp_path, has_head):
    """As in the published 0.5B model, whose files may contain the embedding a second time, as the head."""
    build_upstream_folder(tmp_path, "llava_onevision", tie_word_embeddings=True)
    expected = state(MODEL.from_pretrained(tmp_path))
    names = [name for name in expected if has_head or name != "lm_head.weight"]
    renaming = LAYOUTS["old"][0]
    weights = {rename(name, renaming): expected[name].clone() for name in names}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model, info = FlashVIDLlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert_same(state(model), expected)
