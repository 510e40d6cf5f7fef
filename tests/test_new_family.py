"""A throw-away family in a copy of the package: it needs only its own files and one line in `families.py`.

Its classes are those of Qwen2.5-VL under other names, in their own folder.
"""

import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import CLIP, assert_same, once, run_program

import flashvid_hf

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
# Texts in Qwen2.5-VL's configuration and modeling file, and their replacements in the new family.
NAMES = {
    "FlashVIDQwen2_5_VL": "FlashVIDThrowaway",
    "flashvid_qwen2_5_vl": "flashvid_throwaway",
    "from .modeling_qwen ": "from ..qwen.modeling_qwen ",
    "from .configuration_flashvid_qwen2_5_vl ": "from .configuration_flashvid_throwaway ",
}
RECORD = '''\
"""The record of a family that is not there to stay."""

from transformers import Qwen2VLVideoProcessor

from ..family import Family, PublishedSize
from ..qwen.family_qwen import PROCESSING, ROPE, QwenGeometry, small_shape, tiny_shape
from .configuration_flashvid_throwaway import FlashVIDThrowawayConfig
from .modeling_flashvid_throwaway import FlashVIDThrowawayForConditionalGeneration, FlashVIDThrowawayModel
from .processing_flashvid_throwaway import FlashVIDThrowawayProcessor

FAMILY = Family(
    FlashVIDThrowawayConfig,
    FlashVIDThrowawayModel,
    FlashVIDThrowawayForConditionalGeneration,
    FlashVIDThrowawayProcessor,
    title="Throw-away",
    geometry=QwenGeometry(),
    published_vision={"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
    is_exact=True,
    published_sizes=(PublishedSize("acme/Throwaway-1B", 28),),
    processing=PROCESSING,
    tiny=tiny_shape(
        text={"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        vision={"window_size": 16, "fullatt_block_indexes": [1, 3]},
    ),
    small=small_shape(
        FlashVIDThrowawayProcessor,
        Qwen2VLVideoProcessor,
        text={"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
        vision={"patch_size": 14, "fullatt_block_indexes": [1, 3]},
    ),
)
'''

WITH_PACKAGE = """
from pathlib import Path

from checkpoints import CLIP, count_clip_tokens, observe, state, untimed, video_inputs
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

import flashvid_hf
from flashvid_hf import FlashVIDThrowawayConfig, FlashVIDThrowawayForConditionalGeneration, find_family
from flashvid_hf.publishing import check_config, check_model
from flashvid_hf.publishing.export import export_model
from flashvid_hf.publishing.hub_folder import HubFolder
from flashvid_hf.tiny_models import build_small_folder
from flashvid_hf.tracing.trace import trace_video
from flashvid_hf.vllm_plugin.plugin import ARCHITECTURES

work, scripts = Path(arguments[0]), arguments[1]
assert Path(flashvid_hf.__file__).is_relative_to(work), flashvid_hf.__file__
assert "FlashVIDThrowawayModel" in flashvid_hf.__all__
assert "FlashVIDThrowawayForConditionalGeneration" not in ARCHITECTURES  # its record names nothing for vLLM

# A folder, made, loaded by the Auto classes, and exported again with a card.
folder = build_small_folder(work / "small", "throwaway", seed=2, retention_ratio=0.25)
exported = export_model(folder, work / "exported", weights="included", repository="acme/Throwaway")
for written in (folder, exported):
    assert len(list(written.glob("*.py"))) <= 6, sorted(written.glob("*.py"))
assert "A Throw-away model with FlashVID" in (exported / "README.md").read_text()
assert "of which two make 256 tokens" in (exported / "README.md").read_text()
assert find_family(exported).config is FlashVIDThrowawayConfig is type(AutoConfig.from_pretrained(exported))

# A compressed answer, counted.
model = AutoModelForImageTextToText.from_pretrained(exported)
assert type(model) is FlashVIDThrowawayForConditionalGeneration
processor = AutoProcessor.from_pretrained(exported)
pipe = pipeline("video-text-to-text", model=model, processor=processor, device="cpu")
(answer,) = pipe(str(CLIP), text="What moves?", num_frames=8, max_new_tokens=8, do_sample=False)
assert answer["video_tokens"] == count_clip_tokens(model.config, 8)
assert answer["video_tokens"]["entered"] < answer["video_tokens"]["total"] == 4 * 108
trace = trace_video(model, processor, CLIP, num_frames=8)
assert (trace.height, trace.width, trace.frames_per_grid) == (9, 12, 2)

# `check`, which loads the folder without the package and compares it with upstream.
checked = HubFolder(exported)
for check in (
    check_config.check_settings,
    check_config.check_classes,
    check_model.check_loads_from_path,
    check_model.check_keys,
    check_model.check_equals_upstream,
    check_model.check_differs_from_upstream,
    check_model.check_counts,
):
    assert list(check(checked)) == [], check.__name__

# What goes over all families has the new one too: the shared tests, the recipes, the benchmarks.
from families import FAMILIES

tiny = FAMILIES[-1].model()
assert FAMILIES[-1].name == "throwaway"
report = tiny(**FAMILIES[-1].inputs(["text", (4, 4, 8), "text"])).report
assert report.tokens == (FAMILIES[-1].placeholders((4, 4, 8)),) and report.entered < report.tokens

sys.path += [scripts, f"{scripts}/benchmarks"]
from architectures import ARCHITECTURES
from make_hub_configs import RECIPES, make_recipe

assert ARCHITECTURES["tiny-throwaway"].config().model_type == "qwen2_5_vl"
recipe = make_recipe(RECIPES[-1])
assert (RECIPES[-1].family, RECIPES[-1].name) == ("throwaway", "FlashVID-Throwaway-1B")
assert "acme/Throwaway-1B" in recipe["README.md"] and "cap_pixels_per_frame" in recipe["processor_config.json"]

torch.save([state(model), observe(model, video_inputs(processor)), untimed(answer)], work / "package.pt")
"""

WITHOUT_PACKAGE = """
from pathlib import Path

from checkpoints import CLIP, observe, state, untimed, video_inputs
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

work = Path(arguments[0])
model = AutoModelForImageTextToText.from_pretrained(work / "exported", trust_remote_code=True)
processor = AutoProcessor.from_pretrained(work / "exported", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
pipe = pipeline(model=str(work / "exported"), trust_remote_code=True, device="cpu")
(answer,) = pipe(str(CLIP), text="What moves?", num_frames=8, max_new_tokens=8, do_sample=False)
torch.save([state(model), observe(model.eval(), video_inputs(processor)), untimed(answer)], work / "remote.pt")
"""


def add_family(package: Path) -> None:
    """Write the family's files, and its line in the list of records."""
    folder, source = package / "models" / "throwaway", package / "models" / "qwen"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A family that is not there to stay."""\n')
    for kind in ("configuration", "modeling", "processing"):
        text = (source / f"{kind}_flashvid_qwen2_5_vl.py").read_text()
        for old, new in sorted(NAMES.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(old, new)
        (folder / f"{kind}_flashvid_throwaway.py").write_text(text)
    (folder / "family_throwaway.py").write_text(RECORD)
    families = package / "families.py"
    last = '    "models.llava.family_llava_video",\n'
    text = families.read_text()
    assert text.count(last) == 1
    families.write_text(text.replace(last, f'{last}    "models.throwaway.family_throwaway",\n'))


def build_work(work: Path) -> None:
    package = work / "package" / "flashvid_hf"
    shutil.copytree(Path(flashvid_hf.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    add_family(package)
    run_program(WITH_PACKAGE, work, SCRIPTS, home=work / "home", with_package=package.parent)
    run_program(WITHOUT_PACKAGE, work, home=work / "home")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "new-family", build_work)


def test_a_new_family_is_its_own_files_and_one_line(work):
    added = {path.relative_to(work / "package") for path in (work / "package").rglob("*.py")}
    original = Path(flashvid_hf.__file__).parent
    unchanged = {path.relative_to(original.parent) for path in original.rglob("*.py")}
    folder = Path("flashvid_hf", "models", "throwaway")
    assert added - unchanged == {
        folder / name
        for name in (
            "__init__.py",
            "configuration_flashvid_throwaway.py",
            "modeling_flashvid_throwaway.py",
            "processing_flashvid_throwaway.py",
            "family_throwaway.py",
        )
    }
    changed = {
        path for path in unchanged if (work / "package" / path).read_bytes() != (original.parent / path).read_bytes()
    }
    assert changed == {Path("flashvid_hf", "families.py")}


def test_remote_code_gives_what_the_package_gives(work):
    package, remote = (torch.load(work / name, weights_only=False) for name in ("package.pt", "remote.pt"))
    assert_same(remote[:2], package[:2])
    assert remote[2] == package[2] and len(set(package[2]["generated_text"])) > 1
    assert package[1]["reports"] and CLIP.exists()
