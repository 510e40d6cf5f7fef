"""The demo model as it is trained: an attention for packed questions, and a second loss on what video tokens show."""

from typing import Any

import torch
from demo_batches import VIDEO_TOKENS, Batch
from torch import nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention
from trained_demo import WIDTH
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flashvid_hf.evaluation.moving_shapes import COLOURS, DIRECTIONS, LABELS, SHAPES, TEXTURES

STAGES = ("vision", "language", "all")
# Word embeddings are short. Without this, video tokens would become so long that nothing that the language model adds
# to them could turn them.
LABEL_SCALE = 8.0
# How unlike the keys the queries of a head begin, and how much of what is found is added.
MIMETIC_NOISE, MIMETIC_GAIN = 0.3, 0.3
CELL_WEIGHTS = (0.1, 4.0, 1.0)  # of video tokens that show nothing, something small, something big


def packed_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention over a video and the questions after it, an attention function of transformers.

    The video is causal and sees no questions, so two smaller attentions do the work of one: a third of the arithmetic.

    Args:
        query, key, value: with shape (B, heads, P + Q, width).
        attention_mask: what the questions see, with shape (B, 1, Q, P + Q).
    """
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    P = key.shape[2] - attention_mask.shape[2]
    video = scaled_dot_product_attention(query[:, :, :P], key[:, :, :P], value[:, :, :P], is_causal=True, scale=scaling)
    questions = scaled_dot_product_attention(query[:, :, P:], key, value, attn_mask=attention_mask, scale=scaling)
    return torch.cat([video, questions], 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("packed", packed_attention)


class Learner(nn.Module):
    """The model with the heads that say what a video token shows.

    A class that is an answer too has no weights of its own in a head but the embedding of the answer's word. So the
    vision tower learns to write into a video token the words for what it shows, which is what the language model reads.

    Args:
        config: FlashVID's configuration of the model; the compression is not used.
        tokenizer: the model's.
    """

    def __init__(self, config: Any, tokenizer: Qwen2Tokenizer):
        super().__init__()
        self.model = Qwen2_5_VLForConditionalGeneration(config)
        self.model.model.language_model.config._attn_implementation = "packed"
        share_spellings(self.model.get_input_embeddings().weight, tokenizer)
        for layer in self.model.model.language_model.layers:
            match_and_copy(layer.self_attn)
        self.heads = nn.Linear(WIDTH, sum(LABELS.values()))
        names = {"shape": SHAPES, "colour": tuple(COLOURS), "direction": tuple(DIRECTIONS), "texture": TEXTURES}
        words: list[int] = []  # the token of each class, or -1
        for name, classes in LABELS.items():
            tokens = [tokenizer.convert_tokens_to_ids(word) for word in names.get(name, ())]
            words += [-1] * (classes - len(tokens)) + tokens
        self.register_buffer("words", torch.tensor(words), persistent=False)

    def label_loss(self, video: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of saying what video tokens show, from their features with shape (B * 512, WIDTH)."""
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
            stage: one of `STAGES`: in `vision` there are no logits; in `language` the vision tower does not learn.
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


@torch.no_grad()
def share_spellings(embedding: torch.Tensor, tokenizer: Qwen2Tokenizer) -> None:
    """Let a word begin with the same embedding after a space as without one, so that questions find it in answers.

    Args:
        embedding: with shape (vocabulary, WIDTH), changed in place.
    """
    vocabulary = tokenizer.get_vocab()
    for word, token in vocabulary.items():
        if "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}" + word in vocabulary:  # how byte-level tokenizers write a space
            embedding[vocabulary["\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}" + word]] = embedding[token]


@torch.no_grad()
def match_and_copy(attention: Any) -> None:
    """Let an attention begin by looking at what is like the query, and by adding what it finds there.

    Mimetic initialization (arXiv 2305.09828): queries begin near the keys of the same content, and the output
    projection as the transpose of that of the values. From random weights small models find this late or never.
    """
    groups, width = attention.num_key_value_groups, attention.head_dim
    key, value = (
        weight.view(-1, width, weight.shape[-1]).repeat_interleave(groups, 0)  # (heads, head width, D)
        for weight in (attention.k_proj.weight, attention.v_proj.weight)
    )
    query = attention.q_proj.weight.view_as(key)
    query.mul_(MIMETIC_NOISE).add_(key)
    gain = MIMETIC_GAIN / (value.square().sum() / value.shape[-1])
    attention.o_proj.weight.copy_(gain * value.flatten(0, 1).T)
