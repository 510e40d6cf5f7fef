"""vLLM's engine with FlashVID, compared with the transformers classes: `make test-vllm`."""

import pytest

from flashvid_hf.models.upstream import CACHE

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-vllm`")

import dataclasses
import json
import shutil

import numpy as np
import torch
from checkpoints import run_program
from hub_cache import add_repository
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata
from vllm_engine import Answer, run_engine

from flashvid_hf import available_methods, make_method
from flashvid_hf.families import family_named
from flashvid_hf.models.configuration import FlashVIDConfigMixin
from flashvid_hf.tiny_models import build_small_folder
from flashvid_hf.video.batching import convert_to_tensors

pytestmark = pytest.mark.filterwarnings("default")  # this project cannot fix vLLM's deprecations
# The engine's CPU attention needs heads of 32 channels.
ROPE = {
    "qwen2_5_vl": {"mrope_section": [4, 6, 6]},
    "qwen3_vl": {"mrope_section": [6, 5, 5]},
    "qwen3_vl_moe": {"mrope_section": [6, 5, 5]},
    "llava_onevision": {},
}
WITH_EXPERTS = tuple(ROPE)
FAMILIES = tuple(family for family in WITH_EXPERTS if family != "qwen3_vl_moe")  # its vision part is that of Qwen3-VL
# Pixels: a side of a token, or a fifth of a frame.
SIZES = {"qwen2_5_vl": 28, "qwen3_vl": 32, "qwen3_vl_moe": 32, "llava_onevision": 26}
FPS = 2.0
MAX_TOKENS = 8


@pytest.fixture(scope="session", autouse=True)
def vllm_cache(tmp_path_factory):
    """A fresh cache: vLLM reuses what another run learnt about a class if the class's own file is unchanged."""
    with pytest.MonkeyPatch().context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm")))
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Makes the folder of a family's small model, once for all tests."""
    made = {}

    def make(family: str):
        if family not in made:
            record = family_named(family)
            text = {**record.small.text, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
            text["rope_parameters"] = {**text["rope_parameters"], **ROPE[family]}
            if "num_experts" in text:
                text["norm_topk_prob"] = True  # published checkpoints set it; transformers always does it
            record = dataclasses.replace(record, small=dataclasses.replace(record.small, text=text))
            made[family] = build_small_folder(tmp_path_factory.mktemp(family) / "model", record)
            publish_experts(made[family] / "model.safetensors")
        return made[family]

    return make


def publish_experts(file):
    """Store experts as published checkpoints do. transformers transposes them; vLLM reads no other layout."""
    weights = load_file(file)
    if experts := {name: weight for name, weight in weights.items() if ".experts." in name}:
        turned = {name: weight.transpose(1, 2).contiguous() for name, weight in experts.items()}
        save_file({**weights, **turned}, file, metadata={"format": "pt"})


def make_video(num_frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """A random picture that moves, with a block that changes suddenly: (frames, height, width, 3), uint8."""
    generator = np.random.default_rng(seed)
    picture = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
    frames = np.stack([np.roll(picture, 3 * t, axis=1) for t in range(num_frames)])
    frames[num_frames // 2 :, : height // 3, : width // 2] = generator.integers(0, 255, 3, dtype=np.uint8)
    return frames


def make_request(family: str, *media: tuple, text: str = "What happens?") -> dict:
    """A request for the engine. Media are ("video", frames, rows, columns, seed) or ("image", rows, columns, seed)."""
    side, videos, images, marks = SIZES[family], [], [], []
    for kind, *numbers, seed in media:
        if kind == "video":
            num_frames, rows, columns = numbers
            frames = make_video(num_frames, rows * side, columns * side, seed)
            metadata = {
                "fps": FPS,
                "duration": num_frames / FPS,
                "total_num_frames": num_frames,
                "frames_indices": list(range(num_frames)),
                "video_backend": "pyav",
                "do_sample_frames": False,
            }
            videos.append((frames, metadata) if "qwen" in family else frames)
        else:
            rows, columns = numbers
            images.append(make_video(1, rows * side, columns * side, seed)[0])
        mark = {"video": "<|video_pad|>", "image": "<|image_pad|>"}[kind]
        marks.append(f"<|vision_start|>{mark}<|vision_end|>" if "qwen" in family else f"<{kind}>")
    prompt = f"<|im_start|>user\n{''.join(marks)}{text}<|im_end|>\n<|im_start|>assistant\n"
    data = {kind: items for kind, items in (("video", videos), ("image", images)) if items}
    return {"prompt": prompt, "multi_modal_data": data} if data else {"prompt": prompt}


def engine_positions(inputs: dict, config) -> torch.Tensor:
    """Qwen2.5-VL's positions as in the original model: text begins after the largest position before it."""
    ids = inputs["input_ids"][0].tolist()
    image_grids, video_grids = (iter(inputs.get(f"{kind}_grid_thw", ())) for kind in ("image", "video"))
    seconds = iter(inputs.get("second_per_grid_ts", ()))
    positions, position, column = [], 0, 0
    while column < len(ids):
        if ids[column] not in (config.image_token_id, config.video_token_id):
            positions.append([position] * 3)
            position, column = position + 1, column + 1
            continue
        is_video = ids[column] == config.video_token_id
        frames, height, width = next(video_grids if is_video else image_grids).tolist()
        interval = config.vision_config.tokens_per_second * float(next(seconds)) if is_video else 1
        height, width = height // 2, width // 2
        grid = [
            [int(t * interval) + position, h + position, w + position]
            for t in range(frames)
            for h in range(height)
            for w in range(width)
        ]
        positions += grid
        position, column = max(map(max, grid)) + 1, column + len(grid)
    return torch.tensor(positions).T[:, None]


@torch.no_grad()
def answer_with_transformers(folder, family: str, request: dict, **settings) -> Answer:
    """The answer of the transformers class, with the positions of the engine."""
    model = AutoModelForImageTextToText.from_pretrained(folder, **settings).eval()
    processor = AutoProcessor.from_pretrained(folder)
    data, kwargs = request.get("multi_modal_data", {}), {}
    if "image" in data:
        kwargs["images"] = data["image"]
    if "video" in data:
        kwargs["videos"] = [video[0] if "qwen" in family else video for video in data["video"]]
        kwargs["do_sample_frames"] = False
        if "qwen" in family:
            known = [{k: v for k, v in video[1].items() if k != "do_sample_frames"} for video in data["video"]]
            kwargs["video_metadata"] = [VideoMetadata(**metadata) for metadata in known]
    inputs = convert_to_tensors(processor(text=[request["prompt"]], **kwargs), "pt")
    num_tokens, position = inputs["input_ids"].shape[1], None
    if family == "qwen2_5_vl":
        inputs["position_ids"] = engine_positions(inputs, model.config)
    elif "qwen3_vl" in family:
        known = {name: inputs.get(name) for name in ("mm_token_type_ids", "image_grid_thw", "video_grid_thw")}
        inputs["position_ids"] = model.model.get_rope_index(inputs["input_ids"], **known)[0]
    if "qwen" in family:
        position = int(inputs["position_ids"].max()) + 1
    outputs, tokens, logprobs, positions = model(**inputs, use_cache=True), [], [], None
    if "position_ids" in inputs:
        positions = inputs["position_ids"][:, 0]
    if outputs.get("token_index") is not None:
        num_tokens = outputs.token_index.shape[1]
        positions = None if positions is None else positions[:, outputs.token_index[0]]
    while True:
        of_all = outputs.logits[0, -1].float().log_softmax(-1)
        token = int(of_all.argmax())
        tokens.append(token)
        logprobs.append(float(of_all[token]))
        if len(tokens) == MAX_TOKENS:
            return Answer([0] * num_tokens, tokens, logprobs, None if positions is None else positions.tolist())
        step = {"input_ids": torch.tensor([[token]]), CACHE: outputs[CACHE], "use_cache": True}
        if position is not None:
            step["position_ids"] = torch.full((3, 1, 1), position)
            position += 1
        outputs = model(**step)


def assert_same(answer: Answer, expected: Answer, tolerance: float = 1e-3) -> None:
    assert len(answer.prompt) == len(expected.prompt)
    if answer.positions is not None and expected.positions is not None:
        assert answer.positions == expected.positions
    assert answer.tokens == expected.tokens
    np.testing.assert_allclose(answer.logprobs, expected.logprobs, atol=tolerance)


def entering(ratio: float) -> dict:
    """The fields with which the same tokens enter the transformers class, and stay in all layers."""
    return {"retention_ratio": ratio, "expansion": 1.0, "pruning_layer": 14, "llm_retention_ratio": 1.0}


def requests_of(family: str) -> list[dict]:
    video, other, image = ("video", 16, 5, 5, 0), ("video", 8, 5, 5, 1), ("image", 5, 5, 2)
    if "qwen" in family:
        other = ("video", 8, 4, 7, 1)
    return [
        make_request(family, video),
        make_request(family, other, text="And here, in a few words?"),
        make_request(family, image, video, other),
        make_request(family, video, image, other),
        make_request(family, image),
        make_request(family),
    ]


@pytest.mark.parametrize("family", WITH_EXPERTS)
@pytest.mark.parametrize("ratio", [0.1, 0.35])
def test_the_engine_answers_like_the_transformers_class(folder, family, ratio):
    requests = requests_of(family)
    (answers,) = run_engine(requests, model=str(folder(family)), hf_overrides={"retention_ratio": ratio})
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, answer_with_transformers(folder(family), family, request, **entering(ratio)))


@pytest.mark.parametrize("family", FAMILIES)
def test_how_the_prompt_is_cut_does_not_change_the_answers(folder, family):
    """Chunks that end inside a video, and hits in the prefix cache that end inside a video or after it."""
    requests = requests_of(family)
    longer = [{**request, "prompt": request["prompt"] + "Well, let me see. " * 4} for request in requests]
    options = {"model": str(folder(family)), "hf_overrides": {"retention_ratio": 0.35}}
    plain = run_engine(requests, longer, enable_prefix_caching=False, **options)
    cut = run_engine(
        requests, longer, requests, enable_prefix_caching=True, block_size=32, max_num_batched_tokens=48, **options
    )
    for answers, expected in zip(cut, (*plain, plain[0]), strict=True):
        for answer, other in zip(answers, expected, strict=True):
            assert answer.prompt == other.prompt
            assert_same(answer._replace(positions=None), other)  # cached columns get no new positions


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_that_start_again_answer_the_same(folder, family):
    """The cache is too small for all requests: some lose their place, and are computed again with their answers."""
    requests = 2 * requests_of(family)
    options = {"model": str(folder(family)), "hf_overrides": {"retention_ratio": 0.35}, "max_tokens": 96}
    options |= {"block_size": 32, "max_model_len": 512}
    (alone,) = run_engine(requests, **options)
    (crowded,) = run_engine(requests, num_gpu_blocks_override=18, **options)
    assert not any(answer.interrupted for answer in alone)
    assert any(answer.interrupted for answer in crowded)
    for answer, expected in zip(crowded, alone, strict=True):
        assert_same(answer._replace(positions=None), expected)


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_two_ranks_answer_like_one(folder, family):
    requests = requests_of(family)
    (answers,) = run_engine(
        requests, model=str(folder(family)), hf_overrides={"retention_ratio": 0.2}, tensor_parallel_size=2
    )
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, answer_with_transformers(folder(family), family, request, **entering(0.2)))


METHODS = sorted(set(available_methods()) - {"flashvid", "fastv", "none"})


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_answer_like_the_transformers_class(folder, method):
    requests = requests_of("qwen2_5_vl")[:3]
    fields = {"retention_ratio": 0.2, "compression_method": method}
    (answers,) = run_engine(requests, model=str(folder("qwen2_5_vl")), hf_overrides=fields)
    if "pruning_layer" in make_method(method).settings():
        fields["method_settings"] = {"pruning_layer": 14}
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, answer_with_transformers(folder("qwen2_5_vl"), "qwen2_5_vl", request, **fields))


def test_the_layer_average_is_available_by_name(folder):
    requests = requests_of("qwen2_5_vl")[:2]
    overrides = {"retention_ratio": 0.2, "vllm_ratio": "layer_average"}
    (answers,) = run_engine(requests, model=str(folder("qwen2_5_vl")), hf_overrides=overrides)
    for request, answer in zip(requests, answers, strict=True):
        expected = {"retention_ratio": 0.2, "pruning_layer": 14, "llm_retention_ratio": 1.0}  # expansion 1.25
        assert_same(answer, answer_with_transformers(folder("qwen2_5_vl"), "qwen2_5_vl", request, **expected))


def test_without_compression_the_engine_is_upstreams(folder, tmp_path):
    requests = requests_of("qwen2_5_vl")
    upstream = upstream_copy(folder("qwen2_5_vl"), tmp_path / "upstream")
    (expected,) = run_engine(requests, model=str(upstream))
    (answers,) = run_engine(requests, model=str(folder("qwen2_5_vl")), hf_overrides={"retention_ratio": 1.0})
    assert answers == expected


def test_upstream_checkpoints_are_compressed_by_overrides(folder, tmp_path):
    requests = requests_of("qwen2_5_vl")
    upstream = upstream_copy(folder("qwen2_5_vl"), tmp_path / "upstream")
    architecture = "FlashVIDQwen2_5_VLForConditionalGeneration"
    (answers,) = run_engine(
        requests, model=str(upstream), hf_overrides={"architectures": [architecture], "retention_ratio": 0.1}
    )
    (expected,) = run_engine(requests, model=str(folder("qwen2_5_vl")), hf_overrides={"retention_ratio": 0.1})
    assert answers == expected


def upstream_copy(folder, copy):
    """Write the same model as upstream would save it."""
    config = json.loads((folder / "config.json").read_text())
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.py"))
    ours = {field.name for field in dataclasses.fields(FlashVIDConfigMixin)} | {"auto_map", "custom_pipelines"}
    upstreams = {name: value for name, value in config.items() if name not in ours}
    upstreams["architectures"] = [name.removeprefix("FlashVID") for name in config["architectures"]]
    upstreams["model_type"] = config["model_type"].removeprefix("flashvid_")
    (copy / "config.json").write_text(json.dumps(upstreams))
    return copy


# Runs with the package. Builds a folder without weights, whose base is in the cache.
EXPORT = """
from flashvid_hf.publishing.export import export_model

export_model("acme/base", arguments[0], retention_ratio=0.25)
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_weightless_folders_read_from_their_base(folder, family, tmp_path, monkeypatch):
    """Without flags, by Hub ids, and offline."""
    home, commit, pinned = tmp_path / "home", "a" * 40, "b" * 40
    add_repository(home, "acme/base", main=(commit, lambda copy: upstream_copy(folder(family), copy)))
    run_program(EXPORT, tmp_path / "export", home=home, with_package=True)
    add_repository(home, "acme/weightless", main=(pinned, lambda copy: shutil.copytree(tmp_path / "export", copy)))
    assert not [*(tmp_path / "export").glob("*.safetensors")]
    monkeypatch.setenv("HF_HOME", str(home))
    request = requests_of(family)[0]
    ((answer,),) = run_engine([request], model="acme/weightless")
    assert_same(answer, answer_with_transformers(folder(family), family, request, **entering(0.25)))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_bfloat16_keeps_every_position(folder, family):
    """Beyond position 256, where bfloat16 cannot represent odd numbers."""
    requests = [
        {**request, "prompt": "Once more. " * 30 + request["prompt"]}
        for request in (
            make_request(family, ("video", 24, 6, 6, 3)),
            make_request(family, ("video", 8, 4, 4, 4), ("image", 5, 5, 4), ("video", 64, 4, 4, 5)),
        )
    ]
    options = {"model": str(folder(family)), "hf_overrides": {"retention_ratio": 0.4}, "max_tokens": 1}
    (answers,) = run_engine(requests, dtype="bfloat16", **options)
    for request, answer in zip(requests, answers, strict=True):
        expected = answer_with_transformers(folder(family), family, request, **entering(0.4), dtype=torch.bfloat16)
        positions, expected = torch.tensor(answer.positions), torch.tensor(expected.positions)
        assert expected.max() > 257
        # Rounding may decide which of two tokens is kept. So positions of video tokens may differ, but those of text
        # may not.
        assert positions.shape == expected.shape
        is_text = (expected == expected[0]).all(0) & (positions == positions[0]).all(0)
        assert is_text.sum() > 50
        assert torch.equal(positions[:, is_text], expected[:, is_text])
        assert (positions == expected).all(0).float().mean() > 0.8


@pytest.mark.parametrize("family", FAMILIES)
def test_the_count_is_always_what_was_promised(folder, family):
    """For several videos of any size: a wrong count would stop the engine."""
    generator = np.random.default_rng(0)
    sizes = [
        [("video", int(2 * generator.integers(2, 13)), *generator.integers(2, 9, 2).tolist(), seed + 10 * number)
         for number in range(generator.integers(1, 4))]
        for seed in range(16)
    ]  # fmt: skip
    requests = [make_request(family, *videos) for videos in sizes]
    for ratio in (0.02, 0.37):
        (answers,) = run_engine(
            requests, model=str(folder(family)), hf_overrides={"retention_ratio": ratio}, max_tokens=2
        )
        assert [len(answer.tokens) for answer in answers] == [2] * len(requests)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"video_pruning_rate": 0.5}, "video_pruning_rate"),
        ({"mm_encoder_tp_mode": "data"}, "mm_encoder_tp_mode"),
        ({"enable_mm_embeds": True}, "enable_mm_embeds"),
        ({"compilation_config": {"compile_mm_encoder": True}}, "compile_mm_encoder"),
        ({"compilation_config": {"cudagraph_mm_encoder": True}}, "cudagraph_mm_encoder"),
        ({"hf_overrides": {"vllm_ratio": "tokens"}}, "vllm_ratio"),
        ({"hf_overrides": {"retention_ratio": 1.5}}, "retention_ratio"),
        ({"hf_overrides": {"behavior": "released"}}, "behavior"),
        ({"hf_overrides": {"compression_method": "fastv", "retention_ratio": 0.5}}, "compression_method"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(folder, options, named):
    from vllm.engine.arg_utils import EngineArgs

    with pytest.raises(ValueError, match=f"`{named}`"):
        EngineArgs(model=str(folder("qwen2_5_vl")), max_model_len=2048, **options).create_engine_config()


def test_a_rate_that_says_the_same_is_accepted(folder):
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(model=str(folder("qwen2_5_vl")), max_model_len=2048, video_pruning_rate=0.9)
    assert arguments.create_engine_config().model_config.multimodal_config.video_pruning_rate == pytest.approx(0.9)
