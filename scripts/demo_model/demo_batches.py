"""Makes the batches for the training of the demo model, from videos and their questions.

A sequence has a video once, and after it all the questions about it. A question sees only the video and itself, and its
positions continue those of the video. So for the model each question looks as if it were asked alone. The tokens are
those that the processor's chat template makes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from demo_videos import CELLS, TEMPORAL_GRIDS, TEMPORAL_PATCH, Item
from transformers import Qwen2Tokenizer

from flashvid_hf.evaluation.moving_shapes import LABELS, Prompt

PATCH, MERGE = 8, 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the video processor


@dataclass
class Batch:
    """Several videos with their questions. B videos, P tokens up to the end of a video, Q tokens of questions.

    Args:
        patches: the patches that the video processor makes of the frames, with shape (B * grids * 256, 384).
        kept: numbers of the video tokens that the language model sees, in order, with shape (B, kept tokens).
        before: tokens before the video, with shape (B, tokens). Together with the kept tokens they are the P tokens.
        tokens: tokens of the questions and answers, with shape (B, Q).
        position_ids: with shape (3, B, P + Q).
        mask: which tokens the questions see, bool, with shape (B, 1, Q, P + Q).
        rows, columns: the places that predict an answer: indices into (B, Q), each with shape (answers * 2,).
        targets: alternately the answer and the end of the turn, with shape (answers * 2,).
        labels: for each name of `LABELS` the classes, with shape (B * grids * 64,).
        prompts: one for each answer, in order.
    """

    patches: torch.Tensor
    kept: torch.Tensor
    before: torch.Tensor
    tokens: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    labels: dict[str, torch.Tensor]
    prompts: list[Prompt]

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        labels = {name: label.to(device) for name, label in self.labels.items()}
        return Batch(**{**vars(self), **moved, "labels": labels})


def make_patches(frames: torch.Tensor) -> torch.Tensor:
    """The patches that the video processor makes of frames that need no resizing.

    Args:
        frames: with shape (B, T, 128, 128, 3), uint8.

    Returns:
        patches with shape (B * T * 128, 384). The four patches of a video token follow each other.
    """
    B, T, H, W, C = frames.shape
    pixels = (frames.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    side = PATCH * MERGE
    blocks = pixels.reshape(B, T // TEMPORAL_PATCH, TEMPORAL_PATCH, H // side, MERGE, PATCH, W // side, MERGE, PATCH, C)
    blocks = blocks.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)  # B, grid, row, column, in the token: row, column; C, T, y, x
    return blocks.reshape(-1, C * TEMPORAL_PATCH * PATCH * PATCH)


class Packer:
    """Makes batches of videos, as the `collate_fn` of a DataLoader.

    Args:
        tokenizer: the model's, with its special tokens.
        chat_template: the processor's.
    """

    def __init__(self, tokenizer: Qwen2Tokenizer, chat_template: str):
        self.tokenizer, self.chat_template = tokenizer, chat_template
        self.video_token = tokenizer.convert_tokens_to_ids("<|video_pad|>")
        self.end_token = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.pad_token = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        head = self.encode("")
        self.video_start = head.index(self.video_token)
        self.before = head[: self.video_start]

    def encode(self, question: str) -> list[int]:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=False,
        )
        return self.tokenizer.encode(text, add_special_tokens=False)

    def turn(self, prompt: Prompt) -> list[int]:
        """The tokens after the video: the rest of the question, the answer and the end of the turn."""
        answer = self.tokenizer.encode(prompt.answer, add_special_tokens=False)
        return [*self.encode(prompt.text)[self.video_start + 1 :], *answer, self.end_token]

    def video_positions(self) -> torch.Tensor:
        """Positions of the video tokens, with shape (3, VIDEO_TOKENS)."""
        axes = torch.meshgrid(*map(torch.arange, (TEMPORAL_GRIDS, CELLS, CELLS)), indexing="ij")
        return torch.stack(axes).reshape(3, -1) + self.video_start

    def __call__(self, items: Sequence[Item]) -> Batch:
        turns = [[self.turn(prompt) for prompt in item.prompts] for item in items]
        kept = torch.stack([item.kept for item in items])
        B, P, Q = len(items), self.video_start + kept.shape[1], max(sum(map(len, row)) for row in turns)
        tokens = torch.full((B, Q), self.pad_token)
        places = torch.zeros(B, Q, dtype=torch.long)
        question = torch.full((B, Q), -1)  # the question to which a token belongs
        rows, columns, targets = [], [], []
        for i, row in enumerate(turns):
            end = 0
            for number, turn in enumerate(row):
                start, end = end, end + len(turn)
                tokens[i, start:end] = torch.tensor(turn)
                places[i, start:end] = torch.arange(len(turn))
                question[i, start:end] = number
                rows += [i, i]
                columns += [end - 3, end - 2]  # the tokens before the answer and before the end of the turn
                targets += turn[-2:]
        causal = torch.ones(Q, Q, dtype=torch.bool).tril()
        own = causal & (question[:, :, None] == question[:, None, :])
        mask = torch.cat([torch.ones(B, Q, P, dtype=torch.bool), own], -1)[:, None]
        after_video = self.video_start + max(CELLS, TEMPORAL_GRIDS)
        text = torch.arange(self.video_start).expand(3, B, -1)
        position_ids = torch.cat([text, self.video_positions()[:, kept], (places + after_video).expand(3, -1, -1)], -1)
        return Batch(
            patches=make_patches(torch.stack([item.frames for item in items])),
            kept=kept,
            before=torch.tensor(self.before).expand(B, -1),
            tokens=tokens,
            position_ids=position_ids,
            mask=mask,
            rows=torch.tensor(rows),
            columns=torch.tensor(columns),
            targets=torch.tensor(targets),
            labels={name: torch.cat([item.labels[name] for item in items]) for name in LABELS},
            prompts=[prompt for item in items for prompt in item.prompts],
        )
