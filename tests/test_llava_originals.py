"""Checkpoints of the original LLaVA code: loading by the package and by remote code, and conversion to Hub folders."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import assert_same, moving_frames, observe, once, run_program, state, untimed, video_inputs
from originals import (
    IMAGE,
    LLAVA_VIDEO,
    ONEVISION,
    TEXT,
    VIDEO,
    VISION,
    original_config,
    original_tokenizer,
    original_weights,
    write_original,
)
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    pipeline,
)

from flashvid_hf import (
    FlashVIDLlavaOnevisionConfig,
    FlashVIDLlavaOnevisionForConditionalGeneration,
    FlashVIDLlavaOnevisionProcessor,
    FlashVIDLlavaVideoConfig,
    FlashVIDLlavaVideoForConditionalGeneration,
    FlashVIDLlavaVideoModel,
    FlashVIDLlavaVideoProcessor,
    FlashVIDQwen2_5_VLConfig,
    find_family,
    load_processor,
)
from flashvid_hf.models.llava.original_checkpoints import VISION_TOWER
from flashvid_hf.publishing.convert import convert_llava

KINDS = {
    "video": FlashVIDLlavaVideoForConditionalGeneration,
    "onevision": FlashVIDLlavaOnevisionForConditionalGeneration,
}
KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")
QUESTION = {"text": "What moves?", "max_new_tokens": 4, "do_sample": False}

# Runs where `flashvid_hf` cannot be imported. The classes of the converted folders load originals and conversions.
REMOTE_DOOR = """
from pathlib import Path

from checkpoints import moving_frames, observe, state, video_inputs
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

work, results = Path(arguments[0]), {}
modules = {"video": "llava_video.FlashVIDLlavaVideo", "onevision": "llava_onevision.FlashVIDLlavaOnevision"}
for kind, name in modules.items():
    folder = str(work / f"converted-{kind}")
    loader = get_class_from_dynamic_module(f"modeling_flashvid_{name}ForConditionalGeneration", folder)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = video_inputs(processor)
    original, info = loader.from_pretrained(work / kind, output_loading_info=True)
    converted = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    pipe = pipeline("video-text-to-text", model=folder, trust_remote_code=True, device="cpu")
    results[kind] = {
        "class": f"{type(original).__module__}.{type(original).__name__}",
        "same class": type(original) is type(converted) is type(pipe.model),
        "info": {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")},
        "processor": f"{type(processor).__module__}.{type(processor).__name__}",
        "inputs": inputs,
        "state": state(original),
        "original": observe(original, inputs),
        "converted": observe(converted, inputs),
        "answer": pipe(moving_frames(), text="What moves?", max_new_tokens=4, do_sample=False),
    }
torch.save(results, work / "results.pt")
"""


def build(work: Path) -> None:
    work.mkdir()
    write_original(work / "video", original_weights(), layout=LLAVA_VIDEO)
    write_original(work / "onevision", original_weights(), shard="100KB", layout=ONEVISION)
    for kind in KINDS:
        convert_llava(work / kind, work / f"converted-{kind}")
    run_program(REMOTE_DOOR, work, home=work / "home")


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "originals", build)


@pytest.fixture(scope="session")
def remote(work) -> dict:
    """The results of remote code."""
    return torch.load(work / "results.pt")


def load(source, loader=AutoModelForImageTextToText, **kwargs):
    """Load a model; no weight may be missing, left over or of another shape."""
    model, info = loader.from_pretrained(source, output_loading_info=True, **kwargs)
    assert all(not info[keys] for keys in KEYS), info
    return model


def original_name(name: str) -> str:
    """The original name of one of our weights."""
    for ours, theirs in (
        ("model.vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.language_model.", "model."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


# Direct loading


def test_folders_are_like_published_ones(work):
    for kind, model_type in (("video", "llava_qwen"), ("onevision", "llava")):
        config = json.loads((work / kind / "config.json").read_text())
        assert config["model_type"] == model_type and config["tie_word_embeddings"] is False
    weights = original_weights()
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert sum(name.startswith("model.vision_tower.vision_tower.vision_model.encoder.layers.2") for name in weights)
    assert "model.vision_tower.vision_tower.vision_model.post_layernorm.weight" in weights
    assert (work / "onevision" / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_finds_its_place(work, remote, kind):
    family = find_family(work / kind)
    assert family.generative_model is KINDS[kind]
    model = load(work / kind, family.generative_model)
    assert model.dtype == torch.bfloat16  # as `torch_dtype` says
    assert_same({original_name(name): value for name, value in state(model).items()}, original_weights())
    by_remote_code = remote[kind]
    assert by_remote_code["class"] == f"{by_remote_code['class'].rpartition('.')[0]}.{KINDS[kind].__name__}"
    assert by_remote_code["class"].startswith("transformers_modules.") and by_remote_code["same class"]
    assert by_remote_code["info"] == {keys: [] for keys in KEYS}
    assert_same(by_remote_code["state"], state(model))


def test_llava_video_class_reads_llava_onevision(work):
    """With the layout of LLaVA-OneVision, and with any other that is given."""
    model = load(work / "onevision", FlashVIDLlavaVideoForConditionalGeneration)
    assert (model.config.mm_spatial_pool_mode, model.config.mm_newline_position) == ("bilinear", "one_token")
    other = load(work / "onevision", FlashVIDLlavaVideoForConditionalGeneration, mm_newline_position="grid")
    assert (other.config.mm_spatial_pool_mode, other.config.mm_newline_position) == ("bilinear", "grid")
    inputs = video_inputs(load_processor(work / "onevision"))
    assert_same(observe(model, inputs), observe(load(work / "onevision", KINDS["onevision"]), inputs))


def test_base_model_reads_an_original(work):
    model, info = FlashVIDLlavaVideoModel.from_pretrained(work / "video", output_loading_info=True)
    assert info["unexpected_keys"] == {"lm_head.weight"} and not info["missing_keys"]
    expected = {name: value for name, value in original_weights().items() if name != "lm_head.weight"}
    assert_same({original_name(f"model.{name}"): value for name, value in state(model).items()}, expected)


def test_llava_onevision_is_upstreams_at_ratio_one(work):
    """Compared with the same weights in upstream's class, whose configuration is written out here."""
    config = LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        vision_config=VISION,
        vision_feature_layer=-1,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[20, 20], [20, 40], [40, 20]],
        tie_word_embeddings=False,
    )
    upstream = LlavaOnevisionForConditionalGeneration(config).eval()
    weights = original_weights()
    upstream.load_state_dict({name: weights[original_name(name)].float() for name in upstream.state_dict()})
    model = load(work / "onevision", KINDS["onevision"], retention_ratio=1.0, dtype=torch.float32)
    inputs = video_inputs(load_processor(work / "onevision"))
    ours, theirs = observe(model, inputs), observe(upstream, inputs)
    torch.testing.assert_close(ours["logits"], theirs["logits"], atol=2e-5, rtol=1e-5)
    assert torch.equal(ours["ids"], theirs["ids"])


@pytest.mark.parametrize("head_in_files", [False, True])
@pytest.mark.parametrize("layout", [LLAVA_VIDEO, ONEVISION])
def test_tied_embeddings(tmp_path, layout, head_in_files):
    """As in small checkpoints, with and without the copy of the embedding that some training code saves."""
    weights = original_weights(tied=True)
    if head_in_files:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    source = write_original(tmp_path / "original", weights, layout=layout, tie_word_embeddings=True)
    model = load(source, find_family(source).generative_model)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])
    converted = load(convert_llava(source, tmp_path / "converted"))
    assert converted.lm_head.weight is converted.get_input_embeddings().weight
    assert_same(state(converted), state(model))


def test_generation_settings_of_an_original(tmp_path):
    published = {"do_sample": True, "eos_token_id": [258, 256], "pad_token_id": 256, "temperature": 0.7, "top_k": 20}
    source = write_original(tmp_path / "original", original_weights())
    assert load(source, KINDS["video"]).generation_config.eos_token_id == 258
    GenerationConfig(**published).save_pretrained(source)
    assert published.items() <= load(source, KINDS["video"]).generation_config.to_dict().items()
    settings = GenerationConfig.from_pretrained(convert_llava(source, tmp_path / "converted")).to_dict()
    assert {**published, "eos_token_id": 258}.items() <= settings.items()


# What does not fit


def change(weights: dict, fault: str) -> None:
    if fault == "missing":
        for name in [name for name in weights if ".layers.4." in name or name == "lm_head.weight"]:
            del weights[name]
    elif fault == "unexpected":
        weights["model.vision_resampler.proj.weight"] = torch.zeros(2, 2)
    else:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = torch.cat([weights[name], torch.zeros(8, 48, dtype=torch.bfloat16)])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", r"^13 missing weights .*lm_head\.weight, model\.language_model\.layers\.4"),
        ("unexpected", r"^1 unexpected weights .*model\.vision_resampler\.proj\.weight"),
        ("mismatched", r"^2 mismatched weights .*lm_head\.weight \(272, 48\) for \(264, 48\)"),
    ],
)
def test_faulty_checkpoint_is_not_converted(tmp_path, fault, said):
    weights = original_weights()
    change(weights, fault)
    source = write_original(tmp_path / "original", weights)
    with pytest.raises(ValueError, match=said + ".*Nothing was written"):
        convert_llava(source, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_nothing_is_random_in_silence(tmp_path):
    weights = original_weights()
    change(weights, "missing")
    source = write_original(tmp_path / "missing", weights)
    with pytest.raises(ValueError, match=r"lacks weights of FlashVIDLlavaVideoFor\S+: 13, the first of them lm_head"):
        KINDS["video"].from_pretrained(source)
    model, info = KINDS["video"].from_pretrained(source, output_loading_info=True)
    assert len(info["missing_keys"]) == 13
    with pytest.raises(ValueError, match="`state_dict` lacks weights .*: 132"):
        KINDS["video"].from_pretrained(None, config=model.config, state_dict={"lm_head.weight": model.lm_head.weight})
    whole = KINDS["video"].from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert_same(state(whole), state(model))

    weights = original_weights()
    change(weights, "mismatched")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        KINDS["video"].from_pretrained(write_original(tmp_path / "mismatched", weights))


# Configurations


def layout_of(config) -> tuple[str, str]:
    return config.mm_spatial_pool_mode, config.mm_newline_position


@pytest.mark.parametrize(
    ("says", "overrides", "expected"),
    [
        ({"mm_newline_position": "grid"}, {}, ("average", "frame")),
        ({"mm_newline_position": "grid", "mm_spatial_pool_mode": "average"}, {}, ("average", "frame")),
        ({"mm_newline_position": "grid"}, {"mm_newline_position": "grid"}, ("average", "grid")),
        ({"mm_newline_position": "grid"}, {"mm_spatial_pool_mode": "bilinear"}, ("bilinear", "frame")),
        ({"mm_newline_position": "one_token"}, {}, ("bilinear", "one_token")),
        ({"mm_newline_position": "one_token"}, {"mm_newline_position": "frame"}, ("bilinear", "frame")),
        ({"mm_newline_position": "frame", "mm_spatial_pool_mode": "max"}, {}, ("max", "frame")),
        ({"mm_newline_position": "no_token", "mm_spatial_pool_mode": "average"}, {}, ("average", "no_token")),
        ({"mm_newline_position": None, "mm_spatial_pool_mode": None}, {}, ("bilinear", "one_token")),
    ],
)
def test_layout_of_an_original(tmp_path, says, overrides, expected):
    """A checkpoint with "grid" runs as in FlashVID's scripts, others as they say. The caller's arguments come first."""
    config_dict = original_config(**says)
    (tmp_path / "config.json").write_text(json.dumps(config_dict))
    original_tokenizer().save_pretrained(tmp_path)
    from_folder = FlashVIDLlavaVideoConfig.from_pretrained(tmp_path, **overrides)
    assert layout_of(from_folder) == layout_of(FlashVIDLlavaVideoConfig.from_dict(config_dict, **overrides)) == expected
    assert layout_of(FlashVIDLlavaVideoProcessor.from_pretrained(tmp_path, **overrides)) == expected
    from_folder.save_pretrained(tmp_path / "saved")
    assert FlashVIDLlavaVideoConfig.from_pretrained(tmp_path / "saved").to_dict() == from_folder.to_dict()
    is_onevision = (says.get("mm_spatial_pool_mode", "bilinear") or "bilinear", says["mm_newline_position"]) in (
        ("bilinear", "one_token"),
        ("bilinear", None),
    )
    expected_family = FlashVIDLlavaOnevisionConfig if is_onevision else FlashVIDLlavaVideoConfig
    assert find_family(tmp_path).config is expected_family


def test_layout_of_a_configuration_object(work):
    config = FlashVIDLlavaVideoConfig.from_pretrained(work / "video")
    model = load(work / "video", KINDS["video"], config=config, mm_newline_position="grid")
    assert layout_of(model.config) == ("average", "grid") and layout_of(config) == ("average", "frame")
    with pytest.raises(ValueError, match="`mm_newline_position` is 'row'"):
        load(work / "video", KINDS["video"], mm_newline_position="row")


def test_configuration_of_an_original(work):
    config = FlashVIDLlavaVideoConfig.from_pretrained(work / "video", retention_ratio=0.1)
    assert (config.model_type, config.retention_ratio, config.dtype) == ("flashvid_llava_video", 0.1, torch.bfloat16)
    assert TEXT.items() <= config.text_config.to_dict().items()
    assert VISION.items() <= config.vision_config.to_dict().items()
    assert config.text_config.rope_parameters == {"rope_type": "default", "rope_theta": 1e4}
    assert set(config.text_config.layer_types) == {"full_attention"}
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (256, 258)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    assert (config.image_token_id, config.video_token_id) == (IMAGE, VIDEO)
    assert config.image_grid_pinpoints == [[20, 20], [20, 40], [40, 20]]
    assert not {name for name in config.to_dict() if name.startswith("mm_")} - config.method_fields


def test_published_sizes():
    """Without our fields: the vision tower without its last layer, and the placeholders of llava-hf's conversions."""
    published = original_config(mm_vision_tower=VISION_TOWER, vocab_size=152064, image_aspect_ratio="anyres_max_4")
    for name in ("vision_config", "image_token_index", "video_token_index"):
        del published[name]
    config = FlashVIDLlavaVideoConfig.from_dict(published)
    vision = config.vision_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.image_size, vision.patch_size) == (26, 1152, 384, 14)
    assert vision.vision_use_head is False
    assert (config.image_token_id, config.video_token_id) == (151646, 151647)
    assert config.vision_aspect_ratio == "anyres_max_4"
    shorthand = FlashVIDLlavaVideoConfig.from_dict({**published, "image_grid_pinpoints": "(1x1),...,(6x6)"})
    grids = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    assert shorthand.image_grid_pinpoints == grids


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("vision_config", None, "`mm_vision_tower` is 'tiny/siglip': .* 'google/siglip-so400m-patch14-384'"),
        ("mm_projector_type", "linear", "`mm_projector_type` is 'linear': .* 'mlp2x_gelu'"),
        ("mm_patch_merge_type", "flat", "`mm_patch_merge_type` is 'flat': .* 'spatial_unpad'"),
        ("mm_resampler_type", "perceiver", "`mm_resampler_type` is 'perceiver'"),
        ("mm_use_im_start_end", True, "`mm_use_im_start_end` is True"),
        ("add_faster_video", True, "`add_faster_video` is True"),
        ("image_grid_pinpoints", "(1x1),...,(2x2)", "`image_grid_pinpoints` is .* must be a list"),
        ("mm_spatial_pool_stride", 4, "`mm_spatial_pool_stride` is 4"),
        ("vocab_size", 260, "`video_token_index` is 260 and `vocab_size` is 260"),
        ("mm_newline_position", "row", "`mm_newline_position` is 'row': it must be one of 'frame'"),
        ("mm_spatial_pool_mode", "sum", "`mm_spatial_pool_mode` is 'sum': it must be one of 'average'"),
    ],
)
def test_unknown_original_is_refused(field, value, said):
    config_dict = original_config(**{"mm_newline_position": "one_token", field: value})
    with pytest.raises(ValueError, match=said):
        FlashVIDLlavaVideoConfig.from_dict(config_dict)


def test_wrong_class_is_refused(work, tmp_path):
    with pytest.raises(ValueError, match="FlashVIDLlavaOnevisionConfig reads .* Choose the class of that family"):
        KINDS["onevision"].from_pretrained(work / "video")
    with pytest.raises(ValueError, match="'llava_qwen'.*FlashVIDQwen2_5_VLConfig reads"):
        FlashVIDQwen2_5_VLConfig.from_pretrained(work / "video")
    LlavaOnevisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'llava_onevision': FlashVIDLlavaVideoConfig reads"):
        FlashVIDLlavaVideoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]})
    )
    with pytest.raises(ValueError, match="`model_type` of .* is 'llava': FlashVID has models for"):
        find_family(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="has no `config.json`"):
        KINDS["video"].from_pretrained(tmp_path)


# The converter


@pytest.mark.parametrize("kind", KINDS)
def test_converted_folder_is_complete(work, kind):
    folder = work / f"converted-{kind}"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == KINDS[kind].config_class.model_type
    assert config["architectures"] == [KINDS[kind].__name__]
    assert config["dtype"] == "bfloat16"
    for named in (*config["auto_map"].values(), config["custom_pipelines"]["video-text-to-text"]["impl"]):
        assert (folder / f"{named.partition('.')[0]}.py").exists(), named
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json", "README.md"}
    assert names <= {path.name for path in folder.iterdir()}
    settings = json.loads((folder / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (258, 256)
    card = (folder / "README.md").read_text()
    assert f'model="{folder.name}"' in card and "| `retention_ratio` | `0.25` |" in card
    assert ("| `mm_newline_position` | `frame` |" in card) == (kind == "video")


@pytest.mark.parametrize("kind", KINDS)
def test_all_paths_answer_alike(work, remote, kind):
    """The original and its conversion, each by the package and by remote code."""
    folder = work / f"converted-{kind}"
    processor = AutoProcessor.from_pretrained(folder)
    expected_processor = {"video": FlashVIDLlavaVideoProcessor, "onevision": FlashVIDLlavaOnevisionProcessor}[kind]
    assert type(processor) is expected_processor and processor.tokenizer.padding_side == "left"
    assert remote[kind]["processor"].endswith(f".{expected_processor.__name__}")
    inputs = video_inputs(processor)
    assert_same(inputs, video_inputs(load_processor(work / kind)))
    assert_same(inputs, video_inputs(load_processor(folder)))
    assert_same(remote[kind]["inputs"], inputs)

    original, converted = load(work / kind, KINDS[kind]), load(folder)
    assert type(converted) is type(original)
    assert_same(state(converted), state(original))
    expected = observe(original, inputs)
    assert expected["reports"] and len(set(expected["ids"][0, -6:].tolist())) > 1
    for found in (observe(converted, inputs), remote[kind]["original"], remote[kind]["converted"]):
        assert_same(found, expected)

    pipe = pipeline("video-text-to-text", model=converted, processor=processor, device="cpu")
    assert untimed(pipe(moving_frames(), **QUESTION)) == untimed(remote[kind]["answer"])
    assert remote[kind]["answer"][0]["video_tokens"]["total"] == {"video": 40, "onevision": 73}[kind]
    assert type(AutoModel.from_pretrained(folder)) is KINDS[kind].base_model_class


def test_converter_with_settings(work, tmp_path):
    """Settings are passed on. An original LLaVA-OneVision with another layout becomes a LLaVA-Video."""
    target, said = tmp_path / "converted", []
    settings = {"retention_ratio": 0.1, "mm_newline_position": "grid"}
    convert_llava(work / "onevision", target, "float32", say=said.append, **settings)
    assert len(said) == 3 and said[0].startswith("reading ")
    model = load(target)
    assert type(model) is FlashVIDLlavaVideoForConditionalGeneration and model.dtype == torch.float32
    assert (model.config.retention_ratio, *layout_of(model.config)) == (0.1, "bilinear", "grid")
    processor = AutoProcessor.from_pretrained(target)
    assert layout_of(processor) == ("bilinear", "grid")
    assert observe(model, video_inputs(processor))["reports"]


def test_converter_writes_shards_and_never_over_something(work, tmp_path, monkeypatch):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="`target` is .* not empty"):
        convert_llava(work / "video", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "note.txt").unlink()
    save = KINDS["video"].save_pretrained
    monkeypatch.setattr(KINDS["video"], "save_pretrained", lambda *args: save(*args, max_shard_size="100KB"))
    convert_llava(work / "video", tmp_path)  # the target may be an empty folder
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_same(state(load(tmp_path)), state(load(work / "converted-video")))


def test_only_originals_are_converted(work, tmp_path):
    with pytest.raises(ValueError, match="`model_type` of .* is 'flashvid_llava_video': original LLaVA checkpoints"):
        convert_llava(work / "converted-video", tmp_path / "twice")
    with pytest.raises(ValueError, match="`retention_ratio` is 3.0"):
        convert_llava(work / "video", tmp_path / "wrong", retention_ratio=3.0)
    assert not list(tmp_path.iterdir())
