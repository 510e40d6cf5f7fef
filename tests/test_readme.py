"""The README's snippets and the examples run as they stand, on the demo checkpoint."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from build_demo_model import build_config, build_demo_model, build_processor  # noqa: E402

UPSTREAM = "Qwen/Qwen2.5-VL-3B-Instruct"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with what the README's relative paths name, and an upstream checkpoint in the place of the Hub's."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    build_demo_model(folder / "build" / "flashvid-demo")
    processor = build_processor()
    config = build_config(processor.tokenizer).to_dict()
    names = ("text_config", "vision_config", "image_token_id", "video_token_id", "vision_start_token_id")
    upstream = Qwen2_5_VLConfig(**{name: config[name] for name in names})
    Qwen2_5_VLForConditionalGeneration(upstream).save_pretrained(folder / "upstream")
    processor.save_pretrained(folder / "upstream")
    return folder


def run(code: str, workplace: Path, *arguments: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(workplace / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=workplace, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_snippets_run_as_they_stand(workplace):
    assert len(SNIPPETS) == 6
    # Without the Hub, a local checkpoint in upstream's layout stands in for the one that has to be downloaded.
    snippets = [snippet.replace(UPSTREAM, "upstream") for snippet in SNIPPETS]
    code = "\n".join(f"exec({snippet!r}, {{}})" for snippet in snippets)
    output = run(code, workplace)
    promised = re.findall(r"print\(.*?  # (.*)", "\n".join(SNIPPETS))
    assert len(promised) == 3
    for line in promised[:2]:
        assert line in output, output


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_examples(example, workplace):
    model = "upstream" if "upstream" in example else "build/flashvid-demo"
    output = run((ROOT / "examples" / example).read_text(), workplace, model, "examples/clip.mp4")
    assert "1728" in output and "224" in output and "68" in output
