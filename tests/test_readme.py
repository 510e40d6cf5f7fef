"""The README's snippets and the examples run unchanged. The snippets use the trained demo model."""

import re
from pathlib import Path

import pytest
from checkpoints import build_upstream_folder, count_clip_tokens, once

from flashvid_hf.families import FAMILIES_BY_NAME
from flashvid_hf.publishing.clean_process import PACKAGE_ROOT, shared_interpreter
from flashvid_hf.tiny_models import build_small_folder

ROOT = Path(__file__).resolve().parent.parent
UPSTREAM = "Qwen/Qwen2.5-VL-3B-Instruct"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
# The example of a family has the family's name; the others work for every family.
EXAMPLES = {
    path.name: path.stem if path.stem in FAMILIES_BY_NAME else "llava_onevision"
    for path in sorted((ROOT / "examples").glob("*.py"))
}


def build_workplace(folder: Path) -> None:
    """Make the README's relative paths, models for the examples, and upstream checkpoints in place of the Hub's."""
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "hub_configs").symlink_to(ROOT / "hub_configs")
    build_upstream_folder(folder / "upstream" / "qwen2_5_vl")
    build_upstream_folder(folder / "upstream" / "llava_onevision", "llava_onevision")
    for family in set(EXAMPLES.values()):
        build_small_folder(folder / "demo" / family, family)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "readme", build_workplace)


def run(code: str, workplace: Path, *arguments: str) -> str:
    code = f"import sys; sys.path.insert(0, {str(PACKAGE_ROOT)!r})\n{code}"
    ended = shared_interpreter().run(code, *arguments, home=workplace / "home", directory=workplace)
    assert ended.status == 0, ended.errors[-3000:]
    return ended.output


def test_snippets_run_as_they_stand(workplace):
    assert len(SNIPPETS) == 11
    # Without the Hub, a local checkpoint in upstream's layout stands in for the one that has to be downloaded.
    snippets = [snippet.replace(UPSTREAM, "upstream/qwen2_5_vl") for snippet in SNIPPETS]
    code = "\n".join(f"exec({snippet!r}, {{}})" for snippet in snippets)
    output = run(code, workplace)
    promised = re.findall(r"print\(.*?  # (.*)", "\n".join(SNIPPETS))
    assert len(promised) == 6 and "blue" in promised
    for line in promised:
        assert line in output or line.startswith("frames"), output  # such a comment describes the output


@pytest.mark.parametrize(("example", "family"), EXAMPLES.items())
def test_examples(example, family, workplace):
    """Each takes a model and a video, and prints the numbers of tokens."""
    model = f"{'upstream' if 'upstream' in example else 'demo'}/{family}"
    code = (ROOT / "examples" / example).read_text()
    output = run(code, workplace, model, "examples/clip.mp4")
    config = FAMILIES_BY_NAME[family].config.from_pretrained(workplace / model, retention_ratio=0.1)
    num_frames = int(re.search(r"num_frames=(\d+)", code).group(1))
    for number in count_clip_tokens(config, num_frames).values():
        assert re.search(rf"\b{number}\b", output), output


def test_every_family_has_an_example():
    assert set(FAMILIES_BY_NAME) - set(EXAMPLES.values()) == {"qwen3_vl_moe"}, "which has that of Qwen3-VL"
