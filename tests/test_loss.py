"""The loss of a compressed batch is that of its samples: padding neither counts nor predicts."""

import pytest
import torch
from families import FAMILIES

from flashvid_hf.models.columns import rows_of_columns

LONG, SHORT = (8, 8, 8), (2, 8, 4)  # grids in patches

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
each_side = pytest.mark.parametrize("padding_side", ["left", "right"])


def make_prompts(family):
    """The first prompt is the longest before the compression but not after it, so the compression pads it."""
    num_texts = (family.placeholders(LONG) + 9) // 5  # texts of 5 tokens each
    return [["text", LONG, "text"], ["text"] * num_texts, ["text", SHORT, "text"]]


def random_labels(inputs, seed: int = 7) -> torch.Tensor:
    """Random labels for every column, including padding, independent of the inputs."""
    return torch.randint(1, 90, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("llm_retention_ratio", [0.5, 1.0])
@each_side
@each_family
def test_loss_of_a_batch_is_the_mean_over_the_tokens_of_its_samples(family, padding_side, llm_retention_ratio):
    """Every real column has a label, including the first one; padding has none."""
    model = family.model(llm_retention_ratio=llm_retention_ratio)
    prompts = make_prompts(family)
    inputs = family.inputs(*prompts, padding_side=padding_side)
    real = inputs["attention_mask"].bool()
    labels = random_labels(inputs)
    batch = model(**inputs, labels=labels.masked_fill(~real, -100))
    is_padding = batch.token_index[0] < 0
    assert real[0].all() and is_padding[0 if padding_side == "left" else -1]  # on the same side as the others
    total = expected = 0
    for row, prompt in enumerate(prompts):
        single = model(**family.inputs(prompt, seed=row), labels=labels[row, real[row]][None])
        rows = single.logits[0] if single.token_index is None else single.token_index[0]
        count = len(rows) - 1  # the first token has no row before it
        total, expected = total + count, expected + single.loss * count
    expected /= total
    torch.testing.assert_close(batch.loss, expected)
    # Trainers divide by the labels of all batches of a step.
    scaled = model(**inputs, labels=labels.masked_fill(~real, -100), num_items_in_batch=2 * total)
    torch.testing.assert_close(scaled.loss, expected / 2)


@torch.no_grad()
@each_side
@each_family
def test_labels_of_padding_do_not_count(family, padding_side):
    """Padding columns are dropped like columns of the video; labels of dropped columns do not count."""
    model = family.model()
    inputs = family.inputs(*make_prompts(family), padding_side=padding_side)
    is_padding = inputs["attention_mask"] == 0
    labels = random_labels(inputs)
    expected = model(**inputs, labels=labels.masked_fill(is_padding, -100)).loss
    assert is_padding.any()
    torch.testing.assert_close(model(**inputs, labels=labels).loss, expected, rtol=0, atol=0)


def test_rows_of_columns():
    """Padding of rows is on the left of the first sample, and on the right of the second."""
    token_index = torch.tensor([[-1, -1, 1, 4], [0, 3, 5, -1], [-1, -1, -1, -1]])
    rows = rows_of_columns(token_index, 6)
    assert rows.tolist() == [[2, 2, 2, 2, 3, 3], [0, 0, 0, 1, 1, 2], [3, 3, 3, 3, 3, 3]]
