"""The demo folder of every family: both doors, the pipeline's counts, what its configuration derives and refuses."""

import json

import pytest
from checkpoints import (
    CLIP,
    CLIP_HEIGHT,
    CLIP_WIDTH,
    assert_same,
    build_upstream_folder,
    count_clip_tokens,
    run_program,
    state,
    untimed,
    upstream_class,
)
from families import FAMILIES as TINY_FAMILIES
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import flashvid_hf
from flashvid_hf import FAMILIES, find_family, load_processor
from flashvid_hf.families import FAMILIES_BY_NAME, RECORDS
from flashvid_hf.tiny_models import (
    build_processor,
    build_small_config,
    build_small_folder,
    build_tokenizer,
    upstream_fields,
)

REMOTE_DOOR = """
import json
from transformers import AutoProcessor, pipeline

folder, clip, answer, saved = arguments
pipe = pipeline(model=folder, trust_remote_code=True, device="cpu")
assert type(pipe.model).__module__.startswith("transformers_modules."), type(pipe.model)
assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=True)) is type(pipe.processor)
result = pipe(clip, text="What moves?", num_frames=8, max_new_tokens=8, do_sample=False)
json.dump([result, type(pipe.processor).__name__], open(answer, "w"))
pipe.model.save_pretrained(saved)
pipe.processor.save_pretrained(saved)
"""

each_family = pytest.mark.parametrize("family", FAMILIES_BY_NAME)
# Families whose published checkpoints belong to upstream's class.
each_upstream_family = pytest.mark.parametrize(
    "family",
    [family.name for family in FAMILIES if family.has_upstream_checkpoints],
)


def test_every_family_is_in_the_shared_tests():
    assert [family.name for family in FAMILIES] == [family.name for family in TINY_FAMILIES], (
        "of a geometry that is new, `tests/families.py` needs a class that makes inputs"
    )
    assert len(set(RECORDS)) == len(FAMILIES_BY_NAME)


# How the small models see the clip of 336 x 252 pixels, computed by hand: frames in a temporal grid, rows and columns
# of tokens, newlines of a video of eight frames, and the share of the frames' width that the tokens cover.
CLIP_GEOMETRY = {
    "qwen2_5_vl": (2, (9, 12), 0, 1.0),
    "qwen2_vl": (2, (9, 12), 0, 1.0),
    "qwen3_vl": (2, (8, 10), 0, 1.0),
    "qwen3_vl_moe": (2, (8, 10), 0, 1.0),
    "llava_onevision": (1, (5, 5), 1, 126 / 130),
    "llava_video": (1, (4, 4), 8, 112 / 130),
}


@pytest.mark.parametrize("family", CLIP_GEOMETRY)
def test_geometry_of_the_clip(family):
    record = FAMILIES_BY_NAME[family]
    config, geometry = build_small_config(build_tokenizer(family), family), record.geometry
    grid = geometry.grid_of_pixels(config, CLIP_HEIGHT, CLIP_WIDTH)
    frames = geometry.frames_per_grid(config)
    newlines = geometry.num_newlines(config, 8 // frames, grid[0])
    assert (frames, grid, newlines, geometry.seen_part(config)) == CLIP_GEOMETRY[family]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_records_hold_what_the_published_models_have(family):
    """Upstream's defaults are the published vision towers; the public names are the records' classes."""
    vision = family.upstream_model.config_class().vision_config
    assert {name: getattr(vision, name) for name in family.published_vision} == family.published_vision
    for published in family.classes:
        assert getattr(flashvid_hf, published.__name__) is published and published.__name__ in flashvid_hf.__all__


@each_family
def test_both_doors_give_the_same_answer(family, tmp_path):
    """Without the package and with it, from the demo folder and from the folder that remote code saved."""
    folder = build_small_folder(tmp_path / "tiny", family, seed=2)
    saved, written = tmp_path / "saved", tmp_path / "json"
    run_program(REMOTE_DOOR, folder, CLIP, written, saved, home=tmp_path / "home")
    remote, remote_processor = json.loads(written.read_text())
    assert {path.name for path in saved.iterdir()} == {path.name for path in folder.iterdir()} - {"README.md"}

    classes = FAMILIES_BY_NAME[family]
    for source in (folder, saved):
        model, info = AutoModelForImageTextToText.from_pretrained(source, output_loading_info=True)
        assert type(model) is find_family(source).generative_model is classes.generative_model
        assert not info["missing_keys"] and not info["unexpected_keys"]
        processor = AutoProcessor.from_pretrained(source)
        assert type(processor) is type(load_processor(source)) is classes.processor is type(build_processor(family))
        assert type(processor).__name__ == remote_processor
        pipe = pipeline("video-text-to-text", model=model, processor=processor, device="cpu")
        answer = pipe(str(CLIP), text="What moves?", num_frames=8, max_new_tokens=8, do_sample=False)
        assert untimed(answer) == untimed(remote)
    assert remote[0]["video_tokens"] == count_clip_tokens(model.config, 8)
    assert len(set(remote[0]["generated_text"])) > 1, "comparing the answers says little"


@each_upstream_family
def test_published_checkpoints_load_whole(family, tmp_path):
    """Untied weights in upstream's own layout: nothing missing, nothing unexpected, every weight in its place."""
    build_upstream_folder(tmp_path, family)
    classes = FAMILIES_BY_NAME[family]
    upstream = upstream_class(classes.generative_model).from_pretrained(tmp_path)
    assert not upstream.config.tie_word_embeddings
    model, info = classes.generative_model.from_pretrained(tmp_path, retention_ratio=0.1, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same(state(model), state(upstream))
    assert (model.config.model_type, model.config.retention_ratio) == (f"flashvid_{family}", 0.1)


# The settings of the reference's scripts, with the depth of the model in each script.
COMMON = {
    "compression_method": "flashvid",
    "method_settings": None,
    "retention_ratio": 0.25,
    "expansion": 1.25,
    "alpha": 0.7,
    "temporal_threshold": 0.8,
    "do_segment": True,
    "segment_threshold": 0.9,
    "complementary_segment": True,
    "behavior": "paper",
}
QWEN = {**COMMON, "min_segment_num": 4, "token_selection_method": "attn_div"}
LLAVA = {**COMMON, "min_segment_num": 8, "token_selection_method": "attn_div_v2"}
LLAVA_VIDEO = {**LLAVA, "mm_spatial_pool_mode": "average", "mm_newline_position": "frame"}
DEFAULTS = {
    "qwen2_5_vl": (28, {**QWEN, "pruning_layer": 20, "llm_retention_ratio": 0.3}),
    "qwen2_vl": (28, {**QWEN, "pruning_layer": 20, "llm_retention_ratio": 0.3}),
    "qwen3_vl": (36, {**QWEN, "pruning_layer": 28, "llm_retention_ratio": 0.1}),
    "qwen3_vl_moe": (48, {**QWEN, "pruning_layer": 37, "llm_retention_ratio": 0.127273}),
    "llava_onevision": (28, {**LLAVA, "pruning_layer": 20, "llm_retention_ratio": 0.3}),
    "llava_video": (28, {**LLAVA_VIDEO, "pruning_layer": 20, "llm_retention_ratio": 0.3}),
}


def config_of_depth(family: str, depth: int):
    """A configuration with FlashVID's defaults."""
    fields = upstream_fields(build_tokenizer(family), family)
    fields["text_config"]["num_hidden_layers"] = depth
    return FAMILIES_BY_NAME[family].config(**fields)


@pytest.mark.parametrize("family", DEFAULTS)
def test_defaults_are_those_of_the_reference(family):
    depth, expected = DEFAULTS[family]
    config = config_of_depth(family, depth)
    assert {name: getattr(config, name) for name in config.method_fields - {"vision_chunk_size"}} == expected


@each_family
@pytest.mark.parametrize("depth", [4, 24, 28, 36, 48, 64, 80])
def test_the_average_over_the_layers_is_the_ratio(family, depth):
    config = config_of_depth(family, depth)
    layer, ratio = config.pruning_layer, config.llm_retention_ratio

    def average(config) -> float:
        layer, ratio = config.pruning_layer, config.llm_retention_ratio
        return config.expansion * (layer + ratio * (depth - layer)) / depth

    assert average(config) == pytest.approx(1, abs=1e-5)
    assert 0 < ratio < 1 <= layer < depth
    # If another field changes, a derived ratio is derived again, and a given one stays.
    assert average(type(config).from_dict(config.to_dict(), expansion=1.2)) == pytest.approx(1, abs=1e-5)
    fixed = type(config).from_dict({**config.to_dict(), "llm_retention_ratio": 0.5}, pruning_layer=layer)
    assert fixed.llm_retention_ratio == 0.5


BAD_FIELDS = [
    ("retention_ratio", 0, "`retention_ratio` is 0: .*above 0 and at most 1"),
    ("retention_ratio", "all", "`retention_ratio` is 'all'"),
    ("expansion", 0.5, "`expansion` is 0.5: .*at least 1"),
    ("alpha", True, "`alpha` is True"),
    ("token_selection_method", "best", "`token_selection_method` is 'best': .*'attn_div_v2'"),
    ("temporal_threshold", float("nan"), "`temporal_threshold` is nan"),
    ("segment_threshold", -2, "`segment_threshold` is -2: .*at least -1"),
    ("min_segment_num", 1.5, "`min_segment_num` is 1.5: .*an integer"),
    ("do_segment", 1, "`do_segment` is 1"),
    ("complementary_segment", None, "`complementary_segment` is None"),
    ("behavior", "best", "`behavior` is 'best': .*'paper', 'released'"),
    ("pruning_layer", 0, "`pruning_layer` is 0: .*at least 1"),
    ("llm_retention_ratio", 1.1, "`llm_retention_ratio` is 1.1: .*at most 1"),
]
BAD_LLAVA_VIDEO_FIELDS = [
    ("mm_spatial_pool_mode", "median", "`mm_spatial_pool_mode` is 'median': .*'average', 'bilinear', 'max'"),
    ("mm_newline_position", "row", "`mm_newline_position` is 'row': .*'frame', 'grid', 'one_token', 'no_token'"),
    ("mm_newline_position", None, "`mm_newline_position` is None"),
]


@pytest.mark.parametrize(
    ("family", "field", "value", "message"),
    [
        *((family, *bad) for family in FAMILIES_BY_NAME for bad in BAD_FIELDS),
        *(("llava_video", *bad) for bad in BAD_LLAVA_VIDEO_FIELDS),
    ],
)
def test_fields_out_of_range_are_refused(family, field, value, message):
    good = build_small_config(build_tokenizer(family), family).to_dict()
    with pytest.raises(ValueError, match=message):
        FAMILIES_BY_NAME[family].config(**{**good, field: value})
    with pytest.raises(ValueError, match=message):
        FAMILIES_BY_NAME[family].config.from_dict(good, **{field: value})


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
def test_deepstack_layers_are_not_pruned(family):
    tokenizer = build_tokenizer(family)
    with pytest.raises(ValueError, match="`pruning_layer` is 2: the first 3 layers .*at least 3"):
        build_small_config(tokenizer, family, pruning_layer=2)
    assert build_small_config(tokenizer, family, pruning_layer=3).pruning_layer == 3


# The published checkpoints of both families have the fields of the language model at the top of `config.json`.
FLAT = {
    "hidden_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 152064,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "tie_word_embeddings": True,
}
FLAT_VISION = {
    "qwen2_vl": {"model_type": "qwen2_vl", "depth": 3, "embed_dim": 32, "mlp_ratio": 4, "in_chans": 3},
    "qwen2_5_vl": {"model_type": "qwen2_5_vl", "depth": 3, "out_hidden_size": 64, "in_chans": 3},
}


@pytest.mark.parametrize("name", FLAT_VISION)
def test_published_configurations_are_read_as_upstream_reads_them(name):
    config_dict = {**FLAT, "model_type": name, "vision_config": {**FLAT_VISION[name], "hidden_size": 64}}
    record = FAMILIES_BY_NAME[name]
    found = record.config.from_dict(dict(config_dict)).to_dict()
    upstream = record.upstream_model.config_class.from_dict(dict(config_dict)).to_dict()
    assert upstream["text_config"]["num_hidden_layers"] == 7 and upstream["vision_config"]["depth"] == 3
    others = upstream.keys() - {"model_type", "architectures"}
    assert {key: found[key] for key in others} == {key: upstream[key] for key in others}
