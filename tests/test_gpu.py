"""Tests that need a GPU: no waits for it, its results, and pixels that stay on the CPU. Skipped without a GPU."""

import contextlib

import pytest
import torch
from families import FAMILIES
from test_compression import make_video

from flashvid_hf import CompressionConfig, compress_video
from flashvid_hf.models.upstream import CACHE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@contextlib.contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("num_frames", [8, 32])
def test_compression_does_not_wait_and_decides_as_on_the_cpu(num_frames):
    features, attention = make_video("scenes", num_frames, 36, 32, seed=0)
    config = CompressionConfig(retention_ratio=0.2)
    expected = compress_video(features, attention, config)
    inputs = features.cuda(), attention.cuda()
    compress_video(*inputs, config)  # the first calls of libraries wait
    with waiting_is_an_error():
        found = compress_video(*inputs, config)
    assert torch.equal(found.indices.cpu(), expected.indices)
    torch.testing.assert_close(found.tokens.cpu(), expected.tokens, atol=1e-4, rtol=1e-4)


@each_family
@torch.no_grad()
def test_models_answer_as_on_the_cpu(family):
    model, inputs = family.model(), family.inputs(["text", (4, 8, 8), "text"], ["text", (2, 8, 4), "text"])
    expected = model(**inputs)
    outputs = model.cuda()(**move(inputs, "cuda"))
    assert torch.equal(outputs.token_index.cpu(), expected.token_index)
    torch.testing.assert_close(outputs.logits.cpu(), expected.logits, atol=1e-3, rtol=1e-3)
    assert all(seconds > 0 for seconds in outputs.report.seconds.values())


@each_family
@torch.no_grad()
def test_pixels_may_stay_on_the_cpu(family):
    model, inputs = family.model().cuda(), family.inputs(["text", (4, 8, 8), "text"])
    on_gpu = move(inputs, "cuda")
    expected = model(**on_gpu, vision_chunk_size=2)
    found = model(**{**on_gpu, "pixel_values_videos": inputs["pixel_values_videos"]}, vision_chunk_size=2)
    assert torch.equal(found.logits, expected.logits)


# Upstream's experts wait for the device by themselves.
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name != "qwen3_vl_moe"], ids=lambda family: family.name)
@torch.no_grad()
def test_a_decoding_step_does_not_wait(family):
    model, inputs = family.model().cuda(), move(family.inputs(["text", (4, 8, 8), "text"]), "cuda")
    cache = model(**inputs, use_cache=True)[CACHE]
    token = torch.full((1, 1), 5, device="cuda")
    model(input_ids=token, cache=cache)
    with waiting_is_an_error():
        model(input_ids=token, cache=cache)


def move(inputs: dict, device: str) -> dict:
    return {
        name: [video.to(device) for video in value] if isinstance(value, list) else value.to(device)
        for name, value in inputs.items()
    }
