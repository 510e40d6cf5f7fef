"""The cost of a call beyond the model's own work: operators, waits for the device, masks and memory."""

import pytest
import torch
from families import FAMILIES, IMAGE, VIDEO
from measuring import Operators, PeakMemory
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flashvid_hf.models.upstream import CACHE

PROMPT = ["text", (4, 8, 8), "text"]

pytestmark = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@torch.no_grad()
def operators_of_a_step(model, inputs) -> Operators:
    """The operators that `generate` runs for one more token."""
    counts = []
    for max_new_tokens in (4, 5):
        with Operators() as seen:
            model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                suppress_tokens=[IMAGE, VIDEO],
                eos_token_id=-1,
            )
        counts.append(seen)
    counts[1].count -= counts[0].count
    counts[1].waiting = counts[1].waiting[len(counts[0].waiting) :]
    return counts[1]


def test_a_decoding_step_costs_what_upstreams_does(family):
    """Compared with upstream on a text of the kept length.

    Our model looks for placeholders and counts positions, with up to three more operators; nothing waits.
    """
    model, inputs = family.model(), family.inputs(PROMPT)
    kept = model(**inputs, use_cache=True)[CACHE].num_cached()
    text = {"input_ids": torch.full((1, kept), 5), "attention_mask": torch.ones(1, kept, dtype=torch.long)}
    if "mm_token_type_ids" in inputs:  # `generate` extends them in every step
        text["mm_token_type_ids"] = torch.zeros(1, kept, dtype=torch.long)
    ours, upstream = operators_of_a_step(model, inputs), operators_of_a_step(family.upstream(model), text)
    assert upstream.count > 200 and ours.count <= upstream.count + 3
    assert len(ours.waiting) <= len(upstream.waiting)


@pytest.fixture
def attention_calls(monkeypatch):
    """Mask, queries and keys of every call of the attention function of transformers that runs sdpa."""
    calls = []

    def spy(module, query, key, value, attention_mask=None, **kwargs):
        calls.append((attention_mask, query.shape[2], key.shape[2]))
        return sdpa_attention_forward(module, query, key, value, attention_mask=attention_mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", spy)
    return calls


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_no_mask_where_nothing_is_padded(family, attention_calls, batch):
    """In the prefill and in decoding, in all layers. The layers from the pruning layer on attend to fewer columns."""
    model, inputs = family.model(), family.inputs(*[PROMPT] * batch)
    report = model(**inputs).report
    attention_calls.clear()
    model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert all(mask is None for mask, _, _ in attention_calls)
    depth, layer = model.config.get_text_config().num_hidden_layers, model.config.pruning_layer
    of_text = attention_calls[-3 * depth :]
    kept = inputs["input_ids"].shape[1] - report.tokens[0] + report.entered[0]
    left = kept - report.entered[0] + report.remained[0]
    assert left < kept
    for step in range(3):
        keys = [keys for _, _, keys in of_text[step * depth : (step + 1) * depth]]
        assert keys == [kept + step] * layer + [left + step] * (depth - layer)


@torch.no_grad()
def test_masks_where_something_is_padded(family, attention_calls):
    family.model()(**family.inputs(PROMPT, ["text", (2, 8, 4), "text"]))
    assert any(mask is not None for mask, _, _ in attention_calls)


@torch.no_grad()
def test_no_more_frames_no_more_waits(family):
    """Except the waits of upstream, whose Qwen3-VL computes the positions of every frame separately."""
    model, waits = family.model(), {}
    for num_frames in (4, 16):
        inputs = family.inputs(["text", (num_frames, 8, 8), "text"])
        for ratio in (0.25, 1.0):
            with Operators() as seen:
                model(**inputs, retention_ratio=ratio)
            waits[num_frames, ratio] = len(seen.waiting)
    assert waits[16, 0.25] - waits[4, 0.25] <= waits[16, 1.0] - waits[4, 1.0]


@torch.no_grad()
@pytest.mark.slow
def test_no_more_memory_than_without_compression(family):
    """For a long video. At the widths of real models it also holds for a single frame, see benchmarks/."""
    model, inputs, peaks = family.model(), family.inputs(["text", (64, 16, 16), "text"]), {}
    for ratio in (1.0, 0.25):
        with PeakMemory() as memory:
            model(**inputs, retention_ratio=ratio)
        peaks[ratio] = memory.bytes
    assert peaks[0.25] <= peaks[1.0]
