"""The demo model during training: an attention for packed questions, and a second loss on what video tokens show."""

from typing import Any

import torch
from demo_batches import Batch
from demo_initialization import EMBEDDING, initialize
from demo_parts import CLASS_WORDS, WIDTH
from demo_videos import VIDEO_TOKENS
from torch import nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flashvid_hf.evaluation.moving_shapes import LABELS

STAGES = ("vision", "language", "all")
# A smaller scale gives longer word vectors in a video token. With this one they are about as long as those of a
# question.
LABEL_SCALE = 0.5
CELL_WEIGHTS = (0.1, 4.0, 1.0)  # weights of video tokens that show nothing, something small, something big


def packed_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention over a video and the questions after it, as an attention function of transformers.

    The video is causal and sees no questions. So two smaller attentions replace one, with a third of the arithmetic.

    Args:
        query, key, value: with shape (B, heads, P + Q, width).
        attention_mask: which tokens the questions see, with shape (B, 1, Q, P + Q).
    """
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    P = key.shape[2] - attention_mask.shape[2]
    video = scaled_dot_product_attention(query[:, :, :P], key[:, :, :P], value[:, :, :P], is_causal=True, scale=scaling)
    questions = scaled_dot_product_attention(query[:, :, P:], key, value, attn_mask=attention_mask, scale=scaling)
    return torch.cat([video, questions], 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("packed", packed_attention)


class Learner(nn.Module):
    """The model with linear heads that classify what a video token shows.

    If there is a word for a class, the head uses the word's embedding as the weights of that class. So the vision tower
    learns to write the words for what a video token shows into that token, and the language model reads them there.

    Args:
        config: FlashVID's configuration of the model; the compression is not used.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, config: Any, tokenizer: Qwen2Tokenizer):
        super().__init__()
        self.model = Qwen2_5_VLForConditionalGeneration(config)
        self.model.model.language_model.config._attn_implementation = "packed"
        initialize(self.model, tokenizer)
        self.heads = nn.Linear(WIDTH, sum(LABELS.values()))
        nn.init.normal_(self.heads.weight, std=EMBEDDING)
        words = [word for name in LABELS for word in CLASS_WORDS[name]]
        tokens = [tokenizer.encode(word)[0] if word else -1 for word in words]
        self.register_buffer("words", torch.tensor(tokens), persistent=False)

    def label_loss(self, video: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of the heads, from the features of the video tokens with shape (B * 512, WIDTH)."""
        embedding = self.model.get_input_embeddings().weight
        weight = torch.where(self.words[:, None] < 0, self.heads.weight, embedding[self.words.clamp(min=0)])
        parts = linear(LABEL_SCALE * video, weight, self.heads.bias).split(list(LABELS.values()), -1)
        cells = torch.tensor(CELL_WEIGHTS, device=video.device)[labels["size"]]
        losses = []
        for name, logits in zip(LABELS, parts, strict=True):
            weights = torch.ones_like(cells) if name == "texture" else cells
            losses.append((weights * cross_entropy(logits, labels[name], reduction="none")).sum() / weights.sum())
        return torch.stack(losses).mean()

    def forward(self, batch: Batch, stage: str = "all") -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss on the video tokens, and the logits of answers and ends of turns, shape (answers * 2, vocabulary).

        Args:
            stage: one of `STAGES`. In `vision` there are no logits; in `language` the vision tower does not learn.
        """
        inner, B = self.model.model, len(batch.kept)
        grids = len(batch.patches) // (B * 256)
        grid = torch.tensor([[grids, 16, 16]], device=batch.patches.device).expand(B, -1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and stage != "language"):
            video = inner.visual(batch.patches, grid_thw=grid).pooler_output
            loss = self.label_loss(video, batch.labels)
        if stage == "vision":
            return loss, None
        embed = inner.get_input_embeddings()
        video = video.view(B, VIDEO_TOKENS, -1).gather(1, batch.kept[..., None].expand(-1, -1, WIDTH))
        hidden = inner.language_model(
            inputs_embeds=torch.cat([embed(batch.before), video, embed(batch.tokens)], 1),
            position_ids=batch.position_ids,
            attention_mask={"full_attention": batch.mask},
            use_cache=False,
        ).last_hidden_state
        return loss, self.model.lm_head(hidden[batch.rows, hidden.shape[1] - batch.tokens.shape[1] + batch.columns])
