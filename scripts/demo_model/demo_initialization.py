"""Initializes the demo's language model: its attention begins by looking nearby, at the video, and at equal words.

The model finds an answer in two steps: a word of the question attends to the video tokens that show what the word
names, and the place of the answer attends to that word. From random weights a model of this size does not learn these
steps within hours; its loss stays at that of guessing among the right kind of answers. Mimetic initialization (arXiv
2305.09828) lets queries begin like keys, and outputs like transposed values. Here it is combined with heads that begin
by attending to places, like the positional self-attention of ConViT (arXiv 2103.10697). The training changes all of
these weights.
"""

from dataclasses import dataclass

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention

EMBEDDING = 0.5  # standard deviation of word embeddings: so large that the outputs of layers do not hide them at once
DOWN = 0.3  # factor on the outputs of the MLPs, for the same reason
FAST = 8  # pairs of a head's channels that turn with the position too fast to compare contents
SAME = 10.0  # logit of a token that equals the query
NEAR = 6.0  # logit of a token at the place where a head looks
VIDEO = 6.0  # by how much the logit of video tokens exceeds that of words, in heads that look at the video
PLACES = ((11.0, range(3, 9)), (2.0, range(7)))  # even and odd layers: tokens back, and channel pairs
OTHERS = 0.3  # factor on the weights of queries and keys that are not set here
UNLIKE = 0.015  # standard deviation of the difference of queries and keys


@dataclass
class Head:
    """Views of the weights of one attention head that has its own keys.

    Args:
        query, key, value: with shape (width, D).
        query_bias, key_bias: with shape (width,).
        output: with shape (D, width).
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    query_bias: torch.Tensor
    key_bias: torch.Tensor
    output: torch.Tensor

    @property
    def width(self) -> int:
        return len(self.key)


def heads_of(attention: Qwen2_5_VLAttention) -> list[Head]:
    width = attention.head_dim
    query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
    return [
        Head(
            query.weight[rows],
            key.weight[rows],
            value.weight[rows],
            query.bias[rows],
            key.bias[rows],
            attention.o_proj.weight[:, rows],
        )
        for rows in (slice(start, start + width) for start in range(0, len(key.weight), width))
    ]


def directions(rows: int, columns: int) -> torch.Tensor:
    """Random orthonormal directions, with shape (rows, columns)."""
    return torch.linalg.qr(torch.randn(columns, rows))[0].T


def copy_tokens(head: Head) -> None:
    """Let a head add the tokens that it attends to, as far as its width allows."""
    head.value.copy_(directions(*head.value.shape))
    head.output.copy_(head.value.T)


def look_back(head: Head, tokens: float, pairs: range, theta: float) -> None:
    """Let a head attend to the tokens at some distance before the query, whatever they are.

    Args:
        tokens: the distance in tokens.
        pairs: pairs of channels that the rotary embedding turns; the slower they turn, the wider the view.
        theta: base of the rotary embedding.
    """
    half = head.width // 2
    chosen = torch.tensor(pairs)
    turn = tokens * theta ** (-chosen / half)
    strength = NEAR * head.width**0.5 / len(chosen)
    for weight in (head.query, head.key):
        weight.mul_(OTHERS)
    head.key_bias[chosen] = 1.0
    head.query_bias[chosen] = strength * turn.cos()
    head.query_bias[half + chosen] = -strength * turn.sin()


def look_for_same(head: Head, mark: torch.Tensor) -> None:
    """Let a head attend to tokens that are like the query, without the direction that marks video tokens.

    Args:
        mark: that direction, of length 1, with shape (D,).
    """
    slow = torch.arange(head.width) % (head.width // 2) >= FAST
    rows = directions(int(slow.sum()), len(mark))
    rows = rows - (rows @ mark)[:, None] * mark
    rows = rows * (SAME * head.width**0.5 / len(rows)) ** 0.5  # tokens have a length of sqrt(D)
    head.key[slow] = rows
    head.query[slow] = rows + UNLIKE * torch.randn_like(rows)
    for weight in (head.query, head.key):
        weight[~slow] *= OTHERS


def prefer_video(head: Head, mark: torch.Tensor) -> None:
    """Let a head prefer video tokens to words, by one slow channel of its keys that reads the mark."""
    head.key[-1] = mark
    head.query[-1] = 0.0
    head.query_bias[-1] = VIDEO * head.width**0.5 / (0.5 * len(mark) ** 0.5)


@torch.no_grad()
def share_spellings(embedding: torch.Tensor, tokenizer: Qwen2Tokenizer) -> None:
    """Give a word the same initial embedding with and without a space before it, so that questions find it in answers.

    Args:
        embedding: embeddings with shape (vocabulary, D), changed in place.
    """
    space = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # how byte-level tokenizers write a space
    vocabulary = tokenizer.get_vocab()
    for word, token in vocabulary.items():
        if space + word in vocabulary:
            embedding[vocabulary[space + word]] = embedding[token]


@torch.no_grad()
def initialize(model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer) -> None:
    """Make the embeddings of a model with random weights large, and mark its video tokens.

    Args:
        tokenizer: the model's tokenizer.
    """
    language, merger = model.model.language_model, model.model.visual.merger
    embedding = language.embed_tokens.weight
    scale = EMBEDDING / embedding.std()
    embedding *= scale
    language.norm.weight /= scale  # the embeddings are also the weights of the output
    share_spellings(embedding, tokenizer)
    merger.mlp[-1].bias.normal_(std=EMBEDDING)
    for layer in language.layers:
        layer.mlp.down_proj.weight *= DOWN


@torch.no_grad()
def initialize_attention(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Initialize the language model's attention as described above, with the mark that the vision tower writes.

    In each layer the first head looks back, the second looks at equal contents in the video, the others at equal
    contents anywhere.

    Args:
        model: the model, whose attention is not trained yet; each head has its own keys.
    """
    language = model.model.language_model
    theta = language.config.rope_parameters["rope_theta"]
    mark = model.model.visual.merger.mlp[-1].bias.cpu()
    mark = mark / mark.norm()
    device = language.embed_tokens.weight.device
    for number, layer in enumerate(language.layers):
        attention = layer.self_attn.cpu()  # the same random numbers on every device
        near, seen, *same = heads_of(attention)
        for head in (near, seen, *same):
            copy_tokens(head)
        look_back(near, *PLACES[number % 2], theta)
        for head in (seen, *same):
            look_for_same(head, mark)
        prefer_video(seen, mark)
        attention.to(device)
