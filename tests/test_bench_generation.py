"""`scripts/benchmarks/bench_generation.py` at tiny size: the content of its results. Times are not tested."""

import json

import bench_generation
import pytest
import stage_timing
import torch
from architectures import ARCHITECTURES, build_upstream
from synthetic_video import make_clip, make_inputs

FRAMES, RATIO = 4, 0.2
SIZE = "96x64"


def positive(value) -> bool:
    """Whether all numbers in a part of the results are positive."""
    return all(map(positive, value.values())) if isinstance(value, dict) else value > 0


@pytest.mark.parametrize("architecture", ["tiny-qwen2-5-vl", "tiny-llava-onevision"])
def test_writes_results_and_picture(architecture, tmp_path):
    pytest.importorskip("matplotlib")
    bench_generation.main(
        [
            *("--architecture", architecture, "--device", "cpu", "--dtype", "float32"),
            *("--frames", str(FRAMES), "--ratios", str(RATIO), "--repeats", "1", "--new-tokens", "2"),
            *("--video-size", SIZE, "--output", str(tmp_path)),
        ]
    )

    path = tmp_path / f"generation-{architecture}-cpu.json"
    results = json.loads(path.read_text())
    assert path.with_suffix(".png").exists()
    assert results["environment"]["hardware"] and architecture in results["command"]
    (timed,) = results["input"]
    assert {"decode", "preprocess_cpu"} < timed.keys() and positive(timed)

    points = {point["run"]: point for point in results["points"]}
    assert list(points) == ["upstream", "flashvid", "floor"]
    stages = {"vision", "prefill", "rest"}
    assert points["upstream"]["stages"].keys() == stages
    assert points["flashvid"]["stages"].keys() == stages | {"compression"}
    assert points["floor"]["stages"].keys() == {"vision", "prefill"}
    for run, point in points.items():
        assert {"time_to_first_token", "stages", "peak_memory"} < point.keys()
        assert ("per_token" in point) == (run != "floor")
        assert all(positive(value) for name, value in point.items() if name not in ("run", "retention_ratio"))

    # The token counts are those that the model reports.
    chosen = ARCHITECTURES[architecture]
    upstream = build_upstream(chosen, "cpu", torch.float32, "sdpa")
    model = bench_generation.share_weights(upstream)
    pixels = chosen.video_processor()(videos=[make_clip(FRAMES, SIZE)], do_sample_frames=False, return_tensors="pt")
    with torch.no_grad():
        report = model(**make_inputs(model, pixels), retention_ratio=RATIO).report
    counts = {"total": report.tokens[0], "entered": report.entered[0], "remained": report.remained[0]}
    assert points["flashvid"]["video_tokens"] == counts
    assert points["upstream"]["video_tokens"] == {"total": report.tokens[0]}
    assert counts["remained"] < points["floor"]["video_tokens"]["mean"] < counts["entered"] < counts["total"]


def test_flashvid_shares_the_weights_and_leaves_upstream_alone():
    upstream = build_upstream(ARCHITECTURES["tiny-qwen3-vl"], "cpu", torch.float32, "sdpa")
    model = bench_generation.share_weights(upstream)
    assert [tensor.data_ptr() for tensor in upstream.parameters()] == [
        tensor.data_ptr() for tensor in model.parameters()
    ]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in upstream.modules())


def test_a_run_that_is_out_of_memory_is_left_out():
    def fail():
        raise torch.OutOfMemoryError("as a GPU would")

    times = stage_timing.alternate_stages({"fits": lambda: {"stage": 1.0}, "fails": fail}, repeats=2)
    assert times == {"fits": {"stage": [1.0, 1.0]}}


def test_the_limit_is_found_by_bisection(monkeypatch):
    most = 5 * bench_generation.LIMIT_STEP

    class Model:
        def generate(self, pixel_values_videos, **kwargs):
            if pixel_values_videos.shape[1] > most:
                raise torch.OutOfMemoryError("as a GPU would")

    monkeypatch.setattr(bench_generation, "make_inputs", lambda model, pixels, keep_pixels: pixels)
    pixels = {"pixel_values_videos": torch.zeros(1, bench_generation.LIMIT_STEP, 3, 1, 1)}
    found = bench_generation.find_limit(Model(), None, pixels)
    assert found == {"frames": most, "out_of_memory_at": most + bench_generation.LIMIT_STEP}


def test_refuses_to_fill_the_memory_of_the_cpu(capsys):
    with pytest.raises(SystemExit):
        bench_generation.main(["--device", "cpu", "--find-limit"])
    assert "--find-limit" in capsys.readouterr().err
