"""LLaVA-Video and LLaVA-OneVision: the processor's prompts and counts, the order of newlines, and all layouts."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from families import FAMILIES, VIDEO
from hypothesis import given, settings
from hypothesis import strategies as st
from originals import original_config, original_tokenizer
from PIL import Image
from test_model import assert_same, generate
from transformers import AutoProcessor, LlavaOnevisionProcessor

from flashvid_hf import (
    FlashVIDLlavaOnevisionConfig,
    FlashVIDLlavaVideoConfig,
    FlashVIDLlavaVideoModel,
    FlashVIDLlavaVideoProcessor,
)
from flashvid_hf.models.llava.newlines import count_rows, lay_out_rows, pooled_side
from flashvid_hf.models.llava.processing_flashvid_llava_video import upstream_arguments
from flashvid_hf.models.upstream import CACHE

POOL_MODES, POSITIONS = ("average", "bilinear", "max"), ("frame", "grid", "one_token", "no_token")
LAYOUTS = list(itertools.product(POOL_MODES, POSITIONS))
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def formula(position: str, num_frames: int, side: int) -> int:
    """Number of placeholders of a video in the original code."""
    return {
        "frame": num_frames * (side * side + 1),
        "grid": num_frames * side * (side + 1),
        "one_token": num_frames * side * side + 1,
        "no_token": num_frames * side * side,
    }[position]


def make_config(pool_mode: str = "average", position: str = "frame", side: int = 5, **flashvid):
    """The configuration of a tiny model whose frames have `side` patches a side."""
    vision = {**original_config()["vision_config"], "image_size": 4 * side}
    layout = {"mm_spatial_pool_mode": pool_mode, "mm_newline_position": position}
    return FlashVIDLlavaVideoConfig.from_dict(original_config(vision_config=vision), **layout, **flashvid)


def make_processor(*layout, **config) -> FlashVIDLlavaVideoProcessor:
    return FlashVIDLlavaVideoProcessor.from_config(make_config(*layout, **config), original_tokenizer())


def frames(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (num_frames, 24, 32, 3), dtype=np.uint8)


# The processor


@pytest.mark.parametrize("side", [5, 27])
@pytest.mark.parametrize(("pool_mode", "position"), LAYOUTS)
def test_processor_and_model_count_the_same_placeholders(pool_mode, position, side):
    config = make_config(pool_mode, position, side)
    processor = FlashVIDLlavaVideoProcessor.from_config(config, original_tokenizer())
    with torch.device("meta"):
        model = FlashVIDLlavaVideoModel(config)
    pooled = {(5, "bilinear"): 3, (27, "bilinear"): 14}.get((side, pool_mode), side // 2)
    for num_frames in (1, 2, 7):
        expected = formula(position, num_frames, pooled)
        inputs = processor(text="a <video> b", videos=[frames(num_frames)], return_tensors="pt")
        assert int((inputs["input_ids"] == config.video_token_id).sum()) == expected
        assert inputs["pixel_values_videos"].shape == (1, num_frames, 3, 4 * side, 4 * side)
        assert model.placeholder_counts("video", inputs) == (expected,)
        sizes = processor._get_num_multimodal_tokens(video_sizes=[(num_frames, 24, 32), (3, 1, 1)])
        assert sizes.num_video_tokens == [expected, formula(position, 3, pooled)]


def test_layout_of_llava_onevision_is_upstreams():
    """FlashVIDLlavaOnevision uses upstream's processor, which counts as ours does with the same layout."""
    ours = make_processor("bilinear", "one_token")
    upstream = LlavaOnevisionProcessor(**upstream_arguments(make_config("bilinear", "one_token"), original_tokenizer()))
    text, videos = "<video> what? <image>", [frames(5)]
    images = [Image.fromarray(frames(1)[0])]
    assert_equal(
        ours(text=text, videos=videos, images=images, return_tensors="pt"),
        upstream(text=text, videos=videos, images=images, return_tensors="pt"),
    )
    sizes = {"image_sizes": [(24, 32), (80, 20)], "video_sizes": [(5, 24, 32)]}
    counts, theirs = (vars(processor._get_num_multimodal_tokens(**sizes)) for processor in (ours, upstream))
    if theirs["num_video_tokens"] is None:  # in transformers 5.17
        theirs["num_video_tokens"] = [formula("one_token", 5, 3)]
    assert counts == theirs


def test_videos_of_different_length():
    processor = make_processor("average", "grid")
    videos = [frames(2), frames(3), frames(2)]
    inputs = processor(text=["<video>a<video>", "b<video>"], videos=videos, padding=True, return_tensors="pt")
    assert [len(video) for video in inputs["pixel_values_videos"]] == [2, 3, 2]
    assert isinstance(inputs["pixel_values_videos"], list) and isinstance(inputs["input_ids"], torch.Tensor)
    moved = inputs.to("cpu", dtype=torch.float64)
    assert {video.dtype for video in moved["pixel_values_videos"]} == {torch.float64}
    assert moved["input_ids"].dtype == torch.int64
    counts = (inputs["input_ids"] == processor.video_token_id).sum(-1).tolist()
    assert counts == [formula("grid", 2, 2) + formula("grid", 3, 2), formula("grid", 2, 2)]
    assert inputs["attention_mask"][1, 0] == 0 and inputs["attention_mask"][:, -1].all()  # padded on the left
    untouched = processor(text="<video>", videos=[frames(2)])
    assert isinstance(untouched["input_ids"], list)


def test_images_beside_videos():
    processor = make_processor("average", "frame")
    picture = Image.fromarray(frames(1)[0])
    inputs = processor(text="<image> and <video>", images=[picture], videos=[frames(3)], return_tensors="pt")
    alone = processor(text="<image>", images=[picture], return_tensors="pt")
    is_image = inputs["input_ids"] == processor.image_token_id
    assert is_image.sum() == (alone["input_ids"] == processor.image_token_id).sum() > 25
    assert (inputs["input_ids"] == processor.video_token_id).sum() == formula("frame", 3, 2)
    assert torch.equal(inputs["pixel_values"], alone["pixel_values"])


def test_processor_is_saved_and_loaded(tmp_path):
    processor = make_processor("max", "grid")
    processor.save_pretrained(tmp_path)
    for again in (FlashVIDLlavaVideoProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(again) is FlashVIDLlavaVideoProcessor
        assert (again.mm_spatial_pool_mode, again.mm_newline_position) == ("max", "grid")
        assert again.chat_template == processor.chat_template
        assert again.tokenizer.padding_side == "left"
        arguments = {"text": ["<video>?", "?"], "videos": [frames(3)], "padding": True, "return_tensors": "pt"}
        assert_equal(again(**arguments), processor(**arguments))
    other = FlashVIDLlavaVideoProcessor.from_pretrained(tmp_path, mm_newline_position="frame")
    assert (other.mm_spatial_pool_mode, other.mm_newline_position) == ("max", "frame")


def assert_equal(first, second) -> None:
    torch.testing.assert_close(dict(first), dict(second), rtol=0, atol=0)


VIDEO_PART, IMAGE_PART = {"type": "video"}, {"type": "image"}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param(
            [{"role": "user", "content": [VIDEO_PART, text_part("What?")]}],
            SYSTEM + "<|im_start|>user\n<video>\nWhat?<|im_end|>\n",
            id="one video",
        ),
        pytest.param(
            [{"role": "user", "content": [IMAGE_PART, text_part("What?")]}],
            SYSTEM + "<|im_start|>user\n<image>\nWhat?<|im_end|>\n",
            id="one image",
        ),
        pytest.param(
            [{"role": "user", "content": [VIDEO_PART, IMAGE_PART, VIDEO_PART, text_part("A  b\n")]}],
            SYSTEM + "<|im_start|>user\n<video>\n<image>\n<video>\nA  b\n<|im_end|>\n",
            id="several media, text kept as it is",
        ),
        pytest.param(
            [{"role": "user", "content": "Hello"}],
            SYSTEM + "<|im_start|>user\nHello<|im_end|>\n",
            id="string",
        ),
        pytest.param(
            [
                {"role": "system", "content": [text_part("Be brief.")]},
                {"role": "user", "content": [text_part("Look: "), VIDEO_PART]},
            ],
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nLook: <video>\n<|im_end|>\n",
            id="own system prompt, text before the video",
        ),
        pytest.param(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [VIDEO_PART, text_part("One?")]},
                {"role": "assistant", "content": [text_part("Yes.")]},
                {"role": "user", "content": "Two?"},
                {"role": "assistant", "content": "No."},
                {"role": "user", "content": [text_part("Three?")]},
            ],
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<video>\nOne?<|im_end|>\n"
            "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n"
            "<|im_start|>assistant\nNo.<|im_end|>\n<|im_start|>user\nThree?<|im_end|>\n",
            id="several turns",
        ),
    ],
)
def test_prompt_is_the_originals(messages, expected):
    """The conversation "qwen_1_5": every picture has its own line before the text."""
    processor = make_processor()
    assert processor.apply_chat_template(messages) == expected
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == expected + "<|im_start|>assistant\n"


def test_prompt_and_video_in_one_call():
    processor = make_processor("average", "frame")
    content = [{"type": "video", "video": frames(3)}, text_part("What?")]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    expected = SYSTEM + "<|im_start|>user\n" + "<video>" * formula("frame", 3, 2) + "\nWhat?<|im_end|>\n"
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == expected + "<|im_start|>assistant\n"


@pytest.mark.parametrize("field", ["mm_spatial_pool_mode", "mm_newline_position"])
@pytest.mark.parametrize("value", ["row", "", None, 2])
def test_unknown_layout_is_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` is {value!r}: it must be one of .*'average'|'frame'"):
        FlashVIDLlavaVideoConfig(**{field: value})
    parts = upstream_arguments(make_config(), original_tokenizer())
    with pytest.raises(ValueError, match=f"`{field}` is {value!r}"):
        FlashVIDLlavaVideoProcessor(**parts, **{field: value})


def test_placeholders_without_their_numbers_are_refused():
    config = make_config()
    config.image_token_index, config.video_token_index = 260, 261
    with pytest.raises(ValueError, match=r"`image_token_index` is 260, .* '<image>' is 259. Set .* to 259"):
        FlashVIDLlavaVideoProcessor.from_config(config, original_tokenizer())


def test_tokenizer_that_has_the_placeholders():
    tokenizer = original_tokenizer()
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    processor = FlashVIDLlavaVideoProcessor.from_config(make_config(), tokenizer)
    assert (processor.image_token_id, processor.video_token_id) == (259, 260)


# The order of tokens and newlines


def plain_slots(position: str, num_frames: int, side: int) -> list[tuple]:
    """Every placeholder: ("token", index), or ("newline", tokens of its row, if it is dropped together with them)."""
    slots, index = [], 0
    for _ in range(num_frames):
        for _ in range(side):
            row = range(index, index + side)
            slots += [("token", token) for token in row]
            index += side
            if position == "grid":
                slots.append(("newline", row))
        if position == "frame":
            slots.append(("newline", None))
    return slots + [("newline", None)] * (position == "one_token")


def plain_rows(slots: list[tuple], kept: list[int]) -> tuple[list[int], list[int]]:
    """For every row its placeholder and its kept token."""
    places, order = [], []
    for place, (kind, what) in enumerate(slots):
        if kind == "token":
            made = [i for i, token in enumerate(kept) if token == what]
        else:
            made = [len(kept)] if what is None or any(token in what for token in kept) else []
        places += [place] * len(made)
        order += made
    return places, order


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(POSITIONS), st.integers(1, 4), st.integers(1, 4), st.data())
def test_rows_are_in_the_order_of_a_plain_loop(position, num_frames, side, data):
    """For any kept tokens. The released code may repeat some; frames and rows may lose all their tokens."""
    kept = sorted(data.draw(st.lists(st.integers(0, num_frames * side**2 - 1), max_size=20)))
    slots = plain_slots(position, num_frames, side)
    rows = lay_out_rows(torch.tensor(kept, dtype=torch.long), position, num_frames, side)
    assert (rows.placeholders.tolist(), rows.order.tolist()) == plain_rows(slots, kept)
    assert rows.num_placeholders == count_rows(position, num_frames, side) == len(slots)
    assert len(slots) == formula(position, num_frames, side)


@pytest.mark.parametrize("position", POSITIONS)
def test_whole_video_fills_all_placeholders(position):
    rows = lay_out_rows(torch.arange(3 * 4), position, 3, 2)
    assert rows.placeholders.tolist() == list(range(formula(position, 3, 2)))


@pytest.mark.parametrize(
    ("side", "pool_mode", "expected"),
    [(27, "average", 13), (27, "max", 13), (27, "bilinear", 14), (24, "average", 12), (24, "bilinear", 12)],
)
def test_pooled_side(side, pool_mode, expected):
    assert pooled_side(pool_mode, side) == expected


# Every layout in a whole model. Frames have 5 x 5 patches.

LLAVA_VIDEO = next(family for family in FAMILIES if family.name == "llava_video")
SHORT, LONG = (2, 0, 0), (8, 0, 0)


def family_of(pool_mode: str, position: str):
    return dataclasses.replace(LLAVA_VIDEO, layout=(pool_mode, position))


def plain_pool(pool_mode: str, features: torch.Tensor) -> torch.Tensor:
    """Frames (T, 25, D) to (T, s * s, D), in plain loops."""
    grid = features.unflatten(1, (5, 5))
    if pool_mode == "bilinear":  # centres of three cells on five: 1/3, 2, 11/3
        low, weight = [0, 2, 3], torch.tensor([1 / 3, 0, 2 / 3])

        def blend(x: torch.Tensor, dim: int) -> torch.Tensor:
            shape = [1] * x.ndim
            shape[dim] = 3
            upper = x.index_select(dim, torch.tensor([min(i + 1, 4) for i in low]))
            return x.index_select(dim, torch.tensor(low)).lerp(upper, weight.view(shape))

        return blend(blend(grid, 1), 2).flatten(1, 2)
    cells = [grid[:, i : i + 2, j : j + 2].flatten(1, 2) for i in (0, 2) for j in (0, 2)]
    return torch.stack([cell.mean(1) if pool_mode == "average" else cell.amax(1) for cell in cells], dim=1)


@pytest.mark.parametrize("layout", LAYOUTS, ids="-".join)
@torch.no_grad()
def test_ratio_one_is_upstream_on_plain_features(layout):
    """If plain loops pool and lay out the same features, upstream's model gives the same logits for them."""
    family = family_of(*layout)
    model = family.model(retention_ratio=1.0)
    upstream = family.upstream(model)
    inputs = family.inputs(["text", LONG, "text"])
    (video,) = inputs["pixel_values_videos"]
    hidden = upstream.model.vision_tower(video, output_hidden_states=True).hidden_states[-2]
    tokens = plain_pool(layout[0], upstream.model.multi_modal_projector(hidden)).flatten(0, 1)
    slots = plain_slots(layout[1], 8, 3 if layout[0] == "bilinear" else 2)
    newline = upstream.model.image_newline
    rows = torch.stack([tokens[what] if kind == "token" else newline for kind, what in slots])
    embeds = upstream.get_input_embeddings()(inputs["input_ids"])
    embeds = embeds.masked_scatter((inputs["input_ids"] == VIDEO)[..., None], rows)
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.logits, upstream(inputs_embeds=embeds).logits, atol=2e-5, rtol=1e-5)
    assert not generate(model, inputs).report.compressed


@pytest.mark.parametrize("layout", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("merges_frames", [False, True])
@torch.no_grad()
def test_what_enters_and_what_remains(layout, merges_frames):
    """Kept tokens and newlines, in the order of the prompt; the language model drops tokens and never a newline."""
    family = family_of(*layout)
    settings = {"alpha": 0.0, "temporal_threshold": 0.0, "do_segment": False, "retention_ratio": 0.1}
    model = family.model(**(settings if merges_frames else {}))
    inputs = family.inputs(["text", LONG, "text"])
    outputs = model(**inputs)
    (video,) = outputs.report.videos
    kept = video.indices.tolist()
    num_tokens = family.tokens(LONG)[1]
    assert len(kept) == model.config.method.exact_num_tokens(8, num_tokens)
    if merges_frames:  # some frames lose all their tokens
        assert len({token // num_tokens for token in kept}) < 8
    slots = plain_slots(layout[1], 8, math.isqrt(num_tokens))
    places, order = plain_rows(slots, kept)
    assert outputs.report.tokens == (len(slots),)
    assert outputs.report.entered == (len(places),)
    newlines = [place for place, token in zip(places, order, strict=True) if token == len(kept)]
    if layout[1] != "grid":
        assert len(newlines) == {"frame": 8, "one_token": 1, "no_token": 0}[layout[1]]
    # From the pruning layer on: all newlines, and half the tokens.
    start = int((inputs["input_ids"][0] == VIDEO).nonzero()[0])
    left = [column - start for column in outputs.token_index[0].tolist() if 0 <= column - start < len(slots)]
    assert set(newlines) <= set(left) <= set(places) and left == sorted(left)
    assert len(left) - len(newlines) == math.ceil(0.5 * len(kept))
    assert outputs.report.remained == (len(left),)
    # The compressed tokens entered, and the newlines between them.
    (rows,) = model.get_video_features(inputs["pixel_values_videos"]).pooler_output
    assert torch.equal(rows, torch.cat([video.tokens, model.model.image_newline[None]])[order])
    # The cache holds that many columns, and the tokens that were fed back.
    cache = generate(model, inputs)[CACHE]
    text = inputs["input_ids"].shape[1] - len(slots)
    lengths = [layer.get_seq_length() for layer in cache.layers]
    assert lengths == [text + len(places) + 5] * 3 + [text + len(left) + 5] * 3


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_newlines_in_the_released_behaviour(position):
    """The released code lets the language model drop newlines, but for the one at the end of a video."""
    family = family_of("average", position)
    model = family.model(behavior="released", llm_retention_ratio=0.1)
    outputs = model(**family.inputs(["text", LONG, "text"]))
    newlines = outputs.report.entered[0] - len(outputs.report.videos[0].indices)
    prunable = len(outputs.report.videos[0].indices) + (newlines if position != "one_token" else 0)
    assert outputs.report.remained[0] == math.ceil(0.1 * prunable) + (position == "one_token")


@pytest.mark.parametrize("layout", LAYOUTS, ids="-".join)
def test_batch_equals_singles(layout):
    family = family_of(*layout)
    model = family.model()
    prompts = [["text", LONG, "text"], ["text", SHORT, "text", LONG, "text"], ["text"]]
    together = generate(model, family.inputs(*prompts))
    for row, prompt in enumerate(prompts):
        alone = generate(model, family.inputs(prompt, seed=row))
        new = alone.sequences.shape[1] - 6
        assert torch.equal(together.sequences[row, -6:], alone.sequences[0, new:])
        for step, expected in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(step[row], expected[0], atol=2e-5, rtol=1e-5)


def test_layouts_differ():
    answers = {}
    for layout in LAYOUTS:
        family = family_of(*layout)
        answers[layout] = generate(family.model(), family.inputs(["text", LONG, "text"])).logits[0]
    for first, second in itertools.combinations(answers, 2):
        assert (answers[first] - answers[second]).abs().max() > 1e-3, (first, second)


def test_wrong_number_of_placeholders_is_refused():
    """This happens if the processor has another layout than the model."""
    inputs = family_of("average", "grid").inputs(["text", LONG, "text"])
    for retention_ratio in (0.4, 1.0):
        model = family_of("average", "frame").model(retention_ratio=retention_ratio)
        with pytest.raises(ValueError, match="has 48 video placeholders: the video inputs need exactly 40"):
            model(**inputs)


def test_layout_of_a_model_can_be_changed():
    """The configuration is read in every call."""
    inputs = family_of("average", "grid").inputs(["text", LONG, "text"])
    model = family_of("average", "frame").model()
    model.config.mm_newline_position = "grid"
    assert_same(generate(model, inputs), generate(family_of("average", "grid").model(), inputs))


def test_onevision_has_a_fixed_layout():
    config = FlashVIDLlavaOnevisionConfig()
    assert (config.mm_spatial_pool_mode, config.mm_newline_position) == ("bilinear", "one_token")
    assert not {"mm_spatial_pool_mode", "mm_newline_position"} & config.to_dict().keys()
