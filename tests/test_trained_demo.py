"""The trained demo model in `hub_configs/`: its card is right, and it answers about real files."""

import json
import re
from pathlib import Path

import pytest
import torch
from checkpoints import run_program
from demo_parts import train_tokenizer
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, pipeline

from flashvid_hf import FlashVIDQwen2_5_VLForConditionalGeneration, load_processor, read_video
from flashvid_hf.evaluation import moving_shapes as ms
from flashvid_hf.evaluation.benchmarks import load_benchmark
from flashvid_hf.evaluation.runner import Run, answer_items
from flashvid_hf.publishing.versions import INSTALLATION

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "hub_configs" / "flashvid-demo"
CLIP = ROOT / "examples" / "moving_shapes.mp4"
CLIP_SEED = ms.video_seeds("test", 7)[6]
VIDEOS = 12  # number of videos of the test split


@pytest.fixture(scope="module")
def pipe():
    model = FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER)
    return pipeline("video-text-to-text", model=model, processor=load_processor(FOLDER), device="cpu")


def measured() -> dict:
    return json.loads((FOLDER / "accuracy.json").read_text())


def test_the_folder_is_small_and_its_model_large_enough_to_compress(pipe):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16e6
    vision = pipe.model.config.vision_config
    side = ms.SIDE // (vision.patch_size * vision.spatial_merge_size)
    assert side**2 >= 64 and ms.NUM_FRAMES // vision.temporal_patch_size >= 8
    assert pipe.model.config.retention_ratio == 0.1
    assert all(weight.isfinite().all() for weight in pipe.model.state_dict().values())


def test_the_card_says_what_was_measured():
    card = ModelCard.load(FOLDER / "README.md").text
    accuracy = measured()
    assert accuracy["videos"] >= 200 and accuracy["mean"] >= 0.9
    for kind in ms.TYPES:
        cells = " | ".join(f"{accuracy['accuracy'][form][kind]:.3f}" for form in ms.FORMS)
        assert f"| {kind} | {cells} |" in card
    share = [value for of_form in accuracy["accuracy"].values() for value in of_form.values()]
    assert sum(share) / len(share) == pytest.approx(accuracy["mean"])


def test_parameters_are_those_that_card_and_readme_name(pipe):
    number = f"{pipe.model.num_parameters() / 1e6:.1f} million parameters"
    assert number in (FOLDER / "README.md").read_text()
    assert number in (ROOT / "README.md").read_text()


def test_the_card_says_which_versions_it_needs_and_which_were_tested():
    assert INSTALLATION in (FOLDER / "README.md").read_text()


@pytest.mark.slow
def test_answers_without_compression_are_right_as_often_as_measured(pipe):
    """`generate` in a batch, on videos that no training used, compared with the result of the training's own test."""
    runs = [Run("none", {"compression_method": "none"})]
    items = load_benchmark("moving_shapes", limit=VIDEOS)
    answered = answer_items(pipe.model, pipe.processor, items, runs, num_frames=ms.NUM_FRAMES, batch_size=8)
    answers = [answer for of_video in answered for answer in of_video]
    assert len(answers) > 12 * VIDEOS
    right = sum(answer.correct for answer in answers) / len(answers)
    assert right == pytest.approx(measured()["mean"], abs=0.08)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_real_files_decode_to_the_scene(backend, tmp_path):
    for seed in (CLIP_SEED, *ms.video_seeds("test", 2)):
        scene = ms.make_scene(seed)
        path = CLIP if seed == CLIP_SEED else ms.write_clip(scene, tmp_path / f"{seed}.mp4")
        clip = read_video(path, num_frames=ms.NUM_FRAMES, backend=backend)
        found = torch.as_tensor(clip.frames).float()
        small = found.unflatten(1, (ms.SIDE, -1)).unflatten(3, (ms.SIDE, -1)).mean((2, 4))
        drawn = torch.from_numpy(ms.render(scene, noise=0.0)).float()
        assert (small - drawn).abs().mean() < 6 and clip.metadata.fps == ms.FPS


@pytest.mark.slow
def test_the_pipeline_is_right_about_real_files(pipe, tmp_path):
    """With videos from mp4 files, compressed to a tenth. `benchmarks/` has the measured share of right answers."""
    right = []
    for seed in ms.video_seeds("test", 6):
        scene = ms.make_scene(seed)
        path = ms.write_clip(scene, tmp_path / f"{seed}.mp4")
        prompts = [prompt for prompt in ms.make_prompts(scene) if prompt.form == "open"]
        for prompt in prompts:
            (answer,) = pipe(str(path), text=prompt.text, num_frames=ms.NUM_FRAMES, max_new_tokens=4)
            assert answer["video_tokens"] == {"total": 512, "entered": 64, "remained": 32}
            right.append(answer["generated_text"].strip() == prompt.answer)
    assert sum(right) / len(right) > 0.5, right  # guessing gives at most a quarter


def test_the_demos_answer_is_right_by_remote_code_too(tmp_path):
    question = re.search(r'"(What colour does .*?)"', (ROOT / "README.md").read_text())[1]
    (expected,) = (p.answer for p in ms.make_prompts(ms.make_scene(CLIP_SEED)) if p.text == question)
    program = """
from transformers import pipeline

folder, clip, question, expected = arguments
pipe = pipeline("video-text-to-text", model=folder, trust_remote_code=True)
for settings in ({}, {"retention_ratio": 1.0}):
    (answer,) = pipe(clip, text=question, num_frames=16, **settings)
    assert answer["generated_text"].strip() == expected, answer
"""
    run_program(program, FOLDER, CLIP, question, expected, home=tmp_path / "home")


def test_the_tokenizer_loads_by_itself_and_is_the_scripts():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.get_vocab() == train_tokenizer().get_vocab()
    for text in ("What colour is it?", "Ünïcode ☃ 视频"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
