"""The parts of the vLLM plugin that need no vLLM."""

import json
from types import SimpleNamespace

import pytest
import torch

from flashvid_hf import available_methods, make_method
from flashvid_hf.tiny_models import build_small_config, build_tokenizer
from flashvid_hf.vllm_plugin.plugin import ARCHITECTURES
from flashvid_hf.vllm_plugin.positions import append_positions, place_positions, split_positions, text_positions
from flashvid_hf.vllm_plugin.qwen_positions import grid_positions, uncompressed_positions
from flashvid_hf.vllm_plugin.settings import engine_method, flashvid_config
from flashvid_hf.vllm_plugin.weightless import lead_to_base

IMAGE, VIDEO = 1, 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_positions_survive_the_dtype_of_the_embeddings(dtype):
    positions = torch.tensor([[0, 255, 256, 257], [1041, 65535, 65536, 2**24 - 1], [3, 2, 1, 0]])
    rows = torch.randn(4, 6).to(dtype)
    embeddings, found = split_positions(append_positions(rows, positions))
    assert torch.equal(found, positions)
    assert torch.equal(embeddings, rows)


def feature(offset: int, length: int, span: int) -> SimpleNamespace:
    return SimpleNamespace(mm_position=SimpleNamespace(offset=offset, length=length), span=span)


# Two words, a video of four rows that spans seven positions, a word, an image of two rows that spans two positions,
# two words.
IDS = [9, 9, VIDEO, VIDEO, VIDEO, VIDEO, 9, IMAGE, IMAGE, 9, 9]
FEATURES = [feature(7, 2, 2), feature(2, 4, 7)]  # in any order
WHOLE = torch.tensor([0, 1, 2, 3, 5, 8, 9, 10, 11, 12, 13]).expand(3, -1)
ROWS = [
    append_positions(torch.zeros(4, 5), torch.tensor([[0, 1, 3, 6]] * 3)),
    append_positions(torch.ones(2, 5), torch.tensor([[0, 1]] * 3)),
]


def test_text_is_placed_before_videos_are_encoded():
    positions, delta = text_positions(len(IDS), FEATURES, lambda feature: feature.span)
    text = [0, 1, 6, 9, 10]
    assert torch.equal(positions[:, text], WHOLE[:, text])
    assert delta == 14 - len(IDS)


@pytest.mark.parametrize("cut", range(len(IDS)))
def test_rows_are_placed_in_chunks_and_again(cut):
    """In two chunks with any cut; then again from the beginning, as after a preemption."""
    start, delta = text_positions(len(IDS), FEATURES, lambda feature: feature.span)
    video, image = min(max(cut - 2, 0), 4), min(max(cut - 7, 0), 2)  # rows that enter in the first chunk
    chunks = [(0, [ROWS[0][:video], ROWS[1][:image]]), (cut, [ROWS[0][video:], ROWS[1][image:]]), (0, ROWS)]
    positions = start
    for num_computed, rows in chunks:
        rows = [part for part in rows if len(part)]
        embeddings, positions, found = place_positions(IDS, rows, positions, num_computed, (IMAGE, VIDEO))
        assert [tuple(part.shape) for part in embeddings] == [(len(part), 5) for part in rows]
        assert found == delta
    assert torch.equal(positions, WHOLE)


def test_positions_of_a_grid():
    assert grid_positions((2, 1, 2), 1.5).tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_positions_of_frames_with_timestamps():
    is_video = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 0]).bool()  # two frames with 1 x 2 tokens each
    assert uncompressed_positions(is_video, 1, 2).tolist() == [
        [0, 1, 2, 2, 4, 5, 6, 6, 8],
        [0, 1, 2, 2, 4, 5, 6, 6, 8],
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
    ]


@pytest.mark.parametrize("name", sorted(set(available_methods()) - {"fastv", "none"}))
@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_the_ratio_is_what_enters_where_nothing_is_dropped_later(name, ratio):
    method = make_method(name, retention_ratio=ratio, num_layers=28).without_pruning()
    assert method.pruning is None
    assert method.entering_ratio == pytest.approx(ratio)
    attention = torch.rand(16, 36, generator=torch.Generator().manual_seed(0))
    video = method.compress(torch.randn(16, 36, 24, generator=torch.Generator().manual_seed(1)), attention)
    assert len(video.indices) == method.exact_num_tokens(16, 36)
    assert len(video.indices) / (16 * 36) == pytest.approx(ratio, rel=0.15)


def test_a_method_inside_the_language_model_alone_is_refused():
    with pytest.raises(ValueError, match="`compression_method` is 'fastv'"):
        make_method("fastv", retention_ratio=0.5, num_layers=28).without_pruning()


def config(**fields):
    return build_small_config(build_tokenizer(), **fields)


def test_the_settings_of_an_engine():
    method = engine_method(config(retention_ratio=0.2))
    assert (method.entering_ratio, method.pruning) == (0.2, None)
    assert engine_method(config(retention_ratio=1.0)) is None
    assert engine_method(config(compression_method="none")) is None
    assert engine_method(config(retention_ratio=0.9, expansion=1.25)).entering_ratio == 0.9

    average = config(retention_ratio=0.2)
    average.vllm_ratio = "layer_average"
    assert engine_method(average).entering_ratio == pytest.approx(0.25)
    average.vllm_ratio = "tokens"
    with pytest.raises(ValueError, match="`vllm_ratio` is 'tokens'"):
        engine_method(average)
    with pytest.raises(ValueError, match="`behavior` is 'released'"):
        engine_method(config(behavior="released"))


def test_an_upstream_configuration_becomes_ours():
    ours = config(retention_ratio=0.3)
    upstream = type(ours).__mro__[2](text_config=ours.text_config.to_dict(), vision_config=ours.vision_config.to_dict())
    upstream.update({"retention_ratio": 0.15, "vllm_ratio": "layer_average"})
    adopted = flashvid_config(upstream, "FlashVIDQwen2_5_VLForConditionalGeneration")
    assert type(adopted) is type(ours)
    assert (adopted.retention_ratio, adopted.vllm_ratio) == (0.15, "layer_average")
    assert flashvid_config(ours, "") is ours
    with pytest.raises(ValueError, match="`architectures` has 'Other'"):
        flashvid_config(upstream, "Other")


def test_the_architectures_are_those_that_our_folders_name():
    import flashvid_hf

    for name, target in ARCHITECTURES.items():
        assert hasattr(flashvid_hf, name)
        assert target.startswith("flashvid_hf.vllm_plugin.")


def test_a_weightless_folder_that_changes_more_than_videos_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"base_model_name_or_path": "acme/base"}))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"do_resize": False}}))
    config = SimpleNamespace(base_model_name_or_path=None)
    options = SimpleNamespace(model=tmp_path, revision=None, hf_token=None, multimodal_config=None, hf_config=config)
    with pytest.raises(ValueError, match="`processor_config.json`.*'image_processor'.*--weights included"):
        lead_to_base(options)
