"""The training of the demo model sees the same inputs as the finished model, and resumes where it stopped."""

import sys

import pytest
import torch
import train_demo_model
from demo_batches import Packer, make_patches
from demo_initialization import initialize_attention
from demo_learner import Learner
from demo_parts import make_config, make_processor, train_tokenizer
from demo_videos import Videos

from flashvid_hf import FlashVIDQwen2_5_VLForConditionalGeneration
from flashvid_hf.evaluation import moving_shapes as ms
from flashvid_hf.loading import load_model

SEEDS = (1, 7)


@pytest.fixture(scope="module")
def processor():
    return make_processor(train_tokenizer())


def test_patches_are_those_of_the_video_processor(processor):
    frames = torch.from_numpy(ms.render(ms.make_scene(SEEDS[0])))
    made = processor.video_processor([frames.permute(0, 3, 1, 2)], return_tensors="pt")
    torch.testing.assert_close(make_patches(frames[None]), made["pixel_values_videos"], atol=1e-5, rtol=1e-5)


def test_kept_tokens_are_in_order_and_mostly_show_something():
    for seed in range(12):
        item = Videos([seed], keep=128)[0]
        assert len(item.kept) == 128 and (item.kept.diff() > 0).all()
        shown = item.labels["shape"] > 0
        assert shown[item.kept].float().mean() > 2 * shown.float().mean()


def test_packed_questions_are_answered_as_single_ones(processor):
    """For a question the training computes the same first logits as `generate`."""
    torch.manual_seed(0)
    learner = Learner(make_config(processor.tokenizer), processor.tokenizer).eval()
    initialize_attention(learner.model)
    model = FlashVIDQwen2_5_VLForConditionalGeneration(make_config(processor.tokenizer, retention_ratio=1.0)).eval()
    model.load_state_dict(learner.model.state_dict())
    batch = Packer(processor.tokenizer, processor.chat_template)([Videos([seed])[0] for seed in SEEDS])
    with torch.no_grad():
        logits = iter(learner(batch)[1][::2])
    expected = iter(batch.prompts)
    for scene in map(ms.make_scene, SEEDS):
        frames = ms.render(scene)
        metadata = [{"fps": ms.FPS, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}]
        for prompt in ms.make_prompts(scene):
            content = [{"type": "video"}, {"type": "text", "text": prompt.text}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(
                text=[text], videos=[frames], video_metadata=metadata, do_sample_frames=False, return_tensors="pt"
            )
            with torch.no_grad():
                single = model(**inputs).logits[0, -1]
            assert next(expected) == prompt
            torch.testing.assert_close(next(logits), single, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_training_runs_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Two steps of every stage, with a break in the middle, give the weights of an unbroken run."""
    small = "--steps 2 2 2 --batch 1 --workers 0 --validation-videos 1 --test-videos 1".split()

    def train(*arguments: str) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(sys, "argv", ["train_demo_model.py", *arguments, *small])
        train_demo_model.main()
        folder = capsys.readouterr().out.strip().splitlines()[-1]
        return load_model(folder, device="cpu")[0].state_dict()

    whole = train(str(tmp_path / "whole"))
    monkeypatch.setattr(train_demo_model, "CHECKPOINT_EVERY", 3)
    learn = train_demo_model.Training.learn

    def learn_until_interrupted(training, stage, batch):
        if training.done == 4:
            raise KeyboardInterrupt
        return learn(training, stage, batch)

    monkeypatch.setattr(train_demo_model.Training, "learn", learn_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(str(tmp_path / "broken"))
    monkeypatch.setattr(train_demo_model.Training, "learn", learn)
    resumed = train(str(tmp_path / "broken"), "--resume")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, msg=name)


def test_resuming_without_a_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_demo_model.py", str(tmp_path), "--resume"])
    with pytest.raises(ValueError, match="there is no checkpoint"):
        train_demo_model.main()
