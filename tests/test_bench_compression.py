"""`scripts/benchmarks/bench_compression.py` at tiny sizes: its counts equal those of a direct call.

Times are not tested.
"""

import json

import bench_compression
import pytest
import torch
from measuring import Operators

from flashvid_hf.compression.compress_video import CompressionConfig, compress_video


def test_benchmark(tmp_path, capsys):
    sizes = ["--frames", "4", "6", "--tokens", "36", "--width", "8", "--repeats", "2"]
    bench_compression.main([*sizes, "--device", "cpu", "--dtype", "bfloat16", "--output", str(tmp_path)])
    report = json.loads((tmp_path / "compression-cpu-bfloat16.json").read_text())
    assert report["arguments"]["tokens"] == 36 and report["command"].startswith(
        "python scripts/benchmarks/bench_compression.py --frames 4 6 "
    )
    assert str(tmp_path) not in report["command"]
    assert [result["frames"] for result in report["results"]] == [4, 6]
    for result in report["results"]:
        video = bench_compression.make_video(result["frames"], 36, 8, torch.bfloat16, "cpu")
        with Operators() as seen:
            compressed = compress_video(*video, CompressionConfig(retention_ratio=0.1))
        assert result["operators"] == seen.count and result["synchronizations"] == len(seen.waiting) == 0
        assert result["kept_tokens"] == len(compressed.indices)
        assert result["peak_bytes_beyond_inputs"] > video[0].nbytes
        assert result["stage_seconds"].keys() == bench_compression.STAGES.keys()
    assert "ratio" in capsys.readouterr().out

    pytest.importorskip("matplotlib")
    picture = tmp_path / "compression-cpu-bfloat16.png"
    picture.unlink()
    bench_compression.main(["--plot", str(tmp_path / "compression-cpu-bfloat16.json")])
    assert picture.read_bytes().startswith(b"\x89PNG")
