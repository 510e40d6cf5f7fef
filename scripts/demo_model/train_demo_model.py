"""Train the demo model from random weights on MovingShapes, test it, and write its folder for the Hub.

    python scripts/demo_model/train_demo_model.py build/training            # from the start
    python scripts/demo_model/train_demo_model.py build/training --resume   # from the last checkpoint

It learns in three stages:

1. `vision`: only the vision tower learns. Linear heads, which are thrown away later, classify what each video token
   shows: shape, colour, direction, size, dots, texture, and whether a centre is there.
2. `language`: the vision tower is frozen, and the language model learns to answer. To save time it sees `KEEP` of the
   512 video tokens, at their own places. They are drawn at random, preferably from those that show something.
3. `all`: everything learns, on all video tokens.

In the last two stages the model is also asked simple questions that MovingShapes does not have (`look_up`). Before the
second stage its attention is initialized to look at equal words (`demo_initialization.py`); without that it only learns
to guess.

With the defaults the training took 26 minutes on two cores of an Intel Xeon. The test of 300 videos at the end, which
is not part of that time, found 97.8 % of the answers right (mean of types and forms, no compression). The result is
`hub_configs/flashvid-demo`. Other hardware and versions round differently, and so give other weights.

The training does not use FlashVID's compression. OUTPUT gets `checkpoint`, and the finished folder `flashvid-demo`. The
script uses a GPU if there is one; its settings are for a CPU with two cores.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from demo_batches import Batch, Packer
from demo_folder import save_folder
from demo_initialization import initialize_attention
from demo_learner import STAGES, Learner
from demo_parts import make_config, make_processor, train_tokenizer
from demo_videos import Videos
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from tqdm import tqdm

from flashvid_hf.evaluation.arguments import COUNT, number
from flashvid_hf.evaluation.moving_shapes import FORMS, TYPES, video_seeds

KEEP = 128  # video tokens that the language model sees in the second stage
LABEL_WEIGHT = 0.5  # weight of the loss on the video tokens; the loss on the answers has weight 1
GRIDS = 2  # temporal grids of a video in the first stage; few are enough, because the vision tower attends within one
CHECKPOINT_EVERY = 400  # steps
SAY_EVERY = 50  # steps


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """The share of the highest rate at a step: it rises linearly, then falls as a cosine to a fiftieth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


class Training:
    """The model, its optimizer and their progress.

    Args:
        options: the options of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.done = options, 0
        self.steps, self.checkpoint = sum(options.steps), options.output / "checkpoint"
        self.accelerator = Accelerator()
        self.processor = make_processor(train_tokenizer())
        tokenizer, template = self.processor.tokenizer, self.processor.chat_template
        self.packer = Packer(tokenizer, template)
        learner = Learner(make_config(tokenizer), tokenizer)
        decayed = [p for p in learner.parameters() if p.ndim > 1]
        others = [p for p in learner.parameters() if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98))
        self.learner, self.optimizer = self.accelerator.prepare(learner, optimizer)

    def resume(self) -> None:
        """Go on from the checkpoint.

        Raises:
            ValueError: there is no checkpoint.
        """
        if not (self.checkpoint / "step.json").exists():
            raise ValueError(f"`--resume`: there is no checkpoint in {self.checkpoint}. Leave the option out to start.")
        self.accelerator.load_state(str(self.checkpoint))
        self.done = json.loads((self.checkpoint / "step.json").read_text())["step"]

    def save(self) -> None:
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        self.accelerator.save_state(str(self.checkpoint))
        (self.checkpoint / "step.json").write_text(json.dumps({"step": self.done}))

    def run(self) -> None:
        """Train from the current step to the end."""
        sums, started = [0.0, 0.0, 0.0], time.monotonic()
        for stage, batch in tqdm(
            self.batches(), "training", self.steps, initial=self.done, mininterval=30, unit="step"
        ):
            self.begin(stage)
            losses = self.learn(stage, batch)
            self.done += 1
            sums = [total + value for total, value in zip(sums, losses, strict=True)]
            if self.done % SAY_EVERY == 0:
                labels, answers, right = (value / SAY_EVERY for value in sums)
                minutes = (time.monotonic() - started) / 60
                say(f"step {self.done} {minutes:.1f} min: labels {labels:.3f} answers {answers:.3f} right {right:.3f}")
                sums = [0.0, 0.0, 0.0]
            if self.done % self.options.validate_every == 0 and stage != "vision":
                say_accuracy(self.done, self.test("validation", self.options.validation_videos))
            if self.done % CHECKPOINT_EVERY == 0 or self.done == self.steps:
                self.save()

    def begin(self, stage: str) -> None:
        """Prepare the model for a step of a stage."""
        model = self.accelerator.unwrap_model(self.learner).model
        if self.done == sum(self.options.steps[: STAGES.index(stage)]):
            self.optimizer.state.clear()  # its moments belong to other gradients
            if stage == "language":
                initialize_attention(model)

    def batches(self) -> Iterator[tuple[str, Batch]]:
        """The stage and the batch of each remaining step. No video is used twice."""
        end = videos = 0
        for stage, length in zip(STAGES, self.options.steps, strict=True):
            size = self.batch_size(stage)
            start, end = max(self.done - end, 0), end + length
            first, videos = videos + start * size, videos + length * size
            if first < videos:
                part = {"vision": {"grids": GRIDS}, "language": {"keep": KEEP}}.get(stage, {})
                seeds = video_seeds("train", videos)[first:]
                share = self.options.choice_share
                for batch in self.load(Videos(seeds, augment=True, choice_share=share, **part), stage):
                    yield stage, batch

    def batch_size(self, stage: str) -> int:
        """Number of videos of a step; the first stage has short ones."""
        return self.options.batch * (2 if stage == "vision" else 1)

    def load(self, videos: Videos, stage: str = "all") -> Iterator[Batch]:
        size, workers = self.batch_size(stage), self.options.workers
        for batch in DataLoader(videos, size, collate_fn=self.packer, num_workers=workers):
            yield batch.to(self.accelerator.device)

    def learn(self, stage: str, batch: Batch) -> tuple[float, float, float]:
        """Do one step; return the loss on the video tokens, the loss on the answers and the share of right answers."""
        # The first stage ends in the middle of its cosine, because the vision tower learns again in the third.
        first, last = (0, 2 * self.options.steps[0]) if stage == "vision" else (self.options.steps[0], self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate * learning_rate(self.done - first, last - first, warmup=50)
        labels, logits = self.learner(batch, stage)
        loss, answers, right = labels, 0.0, 0.0
        if logits is not None:
            loss = cross_entropy(logits, batch.targets)
            answers, right = loss.item(), (logits[::2].argmax(-1) == batch.targets[::2]).float().mean().item()
            if stage == "all":
                loss = loss + LABEL_WEIGHT * labels
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.learner.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return labels.item(), answers, right

    @torch.no_grad()
    def test(self, split: str, videos: int) -> dict[str, Any]:
        """Test how often the most likely answer, and the end of the turn after it, are right, without compression.

        Returns:
            `videos`, `mean` over types and forms, and `accuracy` by form and type.
        """
        self.learner.eval()
        right: dict[tuple[str, str], list[bool]] = {(form, kind): [] for form in FORMS for kind in TYPES}
        for batch in self.load(Videos(video_seeds(split, videos))):
            _, logits = self.learner(batch)
            found = (logits.argmax(-1) == batch.targets).view(-1, 2).all(-1).tolist()
            for prompt, is_right in zip(batch.prompts, found, strict=True):
                right[prompt.form, prompt.type].append(is_right)
        self.learner.train()
        share = {of: sum(values) / max(len(values), 1) for of, values in right.items()}
        accuracy = {form: {kind: share[form, kind] for kind in TYPES} for form in FORMS}
        return {"videos": videos, "mean": sum(share.values()) / len(share), "accuracy": accuracy}

    def finish(self) -> Path:
        """Test the model and write its folder."""
        result = self.test("test", self.options.test_videos)
        say_accuracy(self.done, result)
        model = self.accelerator.unwrap_model(self.learner).model
        weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        return save_folder(weights, self.processor, self.options.output / "flashvid-demo", result)


def say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)  # stderr is not buffered, so a log is up to date


def say_accuracy(step: int, result: dict[str, Any]) -> None:
    for form, row in result["accuracy"].items():
        say(f"step {step} {form:6} " + " ".join(f"{kind} {value:.2f}" for kind, value in row.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the checkpoint and the model's folder")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUTPUT")
    parser.add_argument(
        "--steps",
        type=number(least=0, integer=True),
        nargs=3,
        default=[1800, 1300, 300],
        help="steps of each stage %(default)s",
    )
    parser.add_argument("--batch", type=COUNT, default=4, help="videos of a step (%(default)s)")
    parser.add_argument("--rate", type=number(above=0), default=1.5e-3, help="highest learning rate (%(default)s)")
    parser.add_argument(
        "--choice-share", type=number(least=0, most=1), default=0.3, help="questions with options too (%(default)s)"
    )
    parser.add_argument("--validate-every", type=COUNT, default=400, help="steps (%(default)s)")
    parser.add_argument("--validation-videos", type=COUNT, default=32, help="(%(default)s)")
    parser.add_argument("--test-videos", type=COUNT, default=300, help="(%(default)s)")
    parser.add_argument(
        "--workers", type=number(least=0, integer=True), default=1, help="processes that render (%(default)s)"
    )
    parser.add_argument("--seed", type=number(least=0, integer=True), default=0)
    options = parser.parse_args()

    set_seed(options.seed)
    training = Training(options)
    if options.resume:
        training.resume()
    training.run()
    print(training.finish())


if __name__ == "__main__":
    main()
