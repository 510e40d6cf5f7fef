"""Every family's demo folder: both doors, the pipeline's counts, and what its configuration derives and refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import moving_frames, run_program

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from build_demo_model import SHAPES, build_config, build_demo_model, build_processor
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from flashvid_hf import FAMILIES, exact_num_tokens, find_family

REMOTE_DOOR = """
import json
import numpy as np
from transformers import pipeline

folder, frames, answer = arguments
pipe = pipeline(model=folder, trust_remote_code=True, device="cpu")
assert type(pipe.model).__module__.startswith("transformers_modules."), type(pipe.model)
result = pipe(np.load(frames), text="What moves?", max_new_tokens=4, do_sample=False)
json.dump(result, open(answer, "w"))
"""

pytestmark = pytest.mark.parametrize("family", SHAPES)


def test_every_family_has_a_demo_shape(family):
    assert {f.config.base_model_type for f in FAMILIES} == set(SHAPES)


def test_both_doors_give_the_same_answer(family, tmp_path):
    folder = build_demo_model(tmp_path / "tiny", family)
    frames = moving_frames(8, 128, 192)
    np.save(tmp_path / "frames.npy", frames)
    run_program(REMOTE_DOOR, folder, tmp_path / "frames.npy", tmp_path / "answer.json", home=tmp_path / "home")
    remote = json.loads((tmp_path / "answer.json").read_text())

    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert type(model) is find_family(str(folder)).generative_model
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pipe = pipeline("video-text-to-text", model=model, processor=AutoProcessor.from_pretrained(folder), device="cpu")
    package = pipe(frames, text="What moves?", max_new_tokens=4, do_sample=False)
    assert package == remote
    tokens = package[0]["video_tokens"]
    assert tokens["entered"] == exact_num_tokens(4, tokens["total"] // 4, model.config.compression)
    assert tokens["remained"] == -(-tokens["entered"] * model.config.llm_retention_ratio // 1)
    assert tokens["total"] > tokens["entered"] > tokens["remained"] > 0


def test_published_checkpoints_load_whole(family, tmp_path):
    """Untied weights in upstream's own layout: nothing missing, nothing unexpected, every weight in its place."""
    classes = next(f for f in FAMILIES if f.config.base_model_type == family)
    config = build_config(build_processor(family).tokenizer, family).to_dict()
    upstream_class = next(c for c in classes.generative_model.__mro__ if c.__module__.startswith("transformers."))
    names = ("text_config", "vision_config", "image_token_id", "video_token_id", "vision_start_token_id")
    upstream = upstream_class(upstream_class.config_class(**{name: config[name] for name in names}))
    upstream.save_pretrained(tmp_path)
    assert not upstream.config.tie_word_embeddings
    model, info = classes.generative_model.from_pretrained(tmp_path, retention_ratio=0.1, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ours, theirs = model.state_dict(), upstream.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (model.config.model_type, model.config.retention_ratio) == (f"flashvid_{family}", 0.1)


@pytest.mark.parametrize("depth", [4, 24, 28, 36, 48, 64, 80])
def test_the_average_over_the_layers_is_the_ratio(family, depth):
    tokenizer = build_processor(family).tokenizer
    classes = next(f for f in FAMILIES if f.config.base_model_type == family)
    shape = build_config(tokenizer, family).to_dict()
    shape = {name: shape[name] for name in ("text_config", "vision_config")}
    shape["text_config"] = {**shape["text_config"], "num_hidden_layers": depth, "layer_types": None}
    config = classes.config(**shape)
    layer, ratio = config.pruning_layer, config.llm_retention_ratio

    def average(config) -> float:
        layer, ratio = config.pruning_layer, config.llm_retention_ratio
        return config.expansion * (layer + ratio * (depth - layer)) / depth

    assert average(config) == pytest.approx(1, abs=1e-5)
    assert 0 < ratio < 1 <= layer < depth
    expected = {("qwen2_5_vl", 28): (20, 0.3), ("qwen3_vl", 36): (28, 0.1), ("qwen3_vl_moe", 48): (37, 0.127273)}
    assert (layer, ratio) == expected.get((family, depth), (layer, ratio))
    # A ratio that was derived stays derived when another field changes; one that was set stays as it is.
    assert average(classes.config.from_dict(config.to_dict(), expansion=1.2)) == pytest.approx(1, abs=1e-5)
    fixed = classes.config.from_dict({**config.to_dict(), "llm_retention_ratio": 0.5}, pruning_layer=layer)
    assert fixed.llm_retention_ratio == 0.5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
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
    ],
)
def test_fields_out_of_range_are_refused(family, field, value, message):
    classes = next(f for f in FAMILIES if f.config.base_model_type == family)
    good = build_config(build_processor(family).tokenizer, family).to_dict()
    with pytest.raises(ValueError, match=message):
        classes.config(**{**good, field: value})
    with pytest.raises(ValueError, match=message):
        classes.config.from_dict(good, **{field: value})


def test_deepstack_layers_are_not_pruned(family):
    tokenizer = build_processor(family).tokenizer
    if family.startswith("qwen3_vl"):
        with pytest.raises(ValueError, match="`pruning_layer` is 2: the first 3 layers .*at least 3"):
            build_config(tokenizer, family, pruning_layer=2)
    assert build_config(tokenizer, family, pruning_layer=3).pruning_layer == 3
