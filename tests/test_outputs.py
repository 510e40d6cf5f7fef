"""The outputs of the models: every field of upstream's outputs, and the cache under both of its names."""

import copy
import pickle
from typing import Any

import pytest
import torch
from families import FAMILIES
from transformers.utils import ModelOutput

from flashvid_hf.models.upstream import CACHE

PROMPT = ["text", "image", (1, 8, 8), "text", (4, 8, 8), "text"]
# The fields of upstream's outputs that hold the result of the vision tower, in different versions.
TOWERS = {"image_outputs", "video_outputs", "image_hidden_states", "video_hidden_states"}

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
each_upstream_family = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.name != "llava_video"], ids=lambda family: family.name
)
each_part = pytest.mark.parametrize("part", ["generative model", "base model"])


def assert_same_values(found: Any, expected: Any) -> None:
    """Assert equal tensors in equal fields; `found` may have more fields."""
    if isinstance(expected, ModelOutput):
        assert expected.keys() <= found.keys()
        for name, value in expected.items():
            assert_same_values(found[name], value)
    elif isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            assert_same_values(mine, theirs)
    elif isinstance(expected, torch.Tensor):
        if isinstance(found, tuple):  # one tensor for each video; upstream stacks videos of one length
            found = torch.stack(found)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    elif expected is None:
        assert found is None
    else:  # the cache
        for mine, theirs in zip(found.layers, expected.layers, strict=True):
            assert_same_values([mine.keys, mine.values], [theirs.keys, theirs.values])


@pytest.mark.parametrize("off", ["by the configuration", "by the call"])
@each_part
@each_upstream_family
def test_without_compression_every_field_of_upstreams_output_is_returned(family, part, off):
    model = family.model(retention_ratio=1.0) if off == "by the configuration" else family.model()
    upstream = family.upstream(model)
    call = {} if off == "by the configuration" else {"retention_ratio": 1.0}
    inputs = family.inputs(PROMPT)
    theirs = family.upstream_inputs(upstream, inputs)
    if part == "base model":
        model, upstream = model.model, upstream.model
    wanted = {"output_hidden_states": True, "use_cache": True}
    with torch.no_grad():
        found, expected = model(**inputs, **wanted, **call), upstream(**theirs, **wanted)
    if part == "generative model":  # also for properties, which are no fields
        assert isinstance(found, type(expected))
        assert [name for name in found if name in expected.keys()] == list(expected)
    assert_same_values(found, expected)
    assert found.report.entered == found.report.tokens


def test_the_outputs_of_experts_are_in_upstreams_order():
    family = next(family for family in FAMILIES if family.name == "qwen3_vl_moe")
    model, inputs = family.model(retention_ratio=1.0), family.inputs(["text"])
    wanted = {"output_router_logits": True, "labels": inputs["input_ids"]}
    with torch.no_grad():
        found, expected = model(**inputs, **wanted), family.upstream(model)(**inputs, **wanted)
    assert [name for name in found if name in expected.keys()] == list(expected)
    assert_same_values(found, expected)


@each_part
@each_family
def test_a_compressed_output_has_what_the_tower_returned_where_upstreams_has(family, part):
    model = family.model()
    model = model.model if part == "base model" else model
    with torch.no_grad():
        found = model(**family.inputs(PROMPT))
    fields = {name for name in type(found).__dataclass_fields__ if name in TOWERS}
    assert fields <= found.keys() and {CACHE, "token_index", "report"} <= found.keys()
    if "video_outputs" in fields:
        assert [len(rows) for rows in found.video_outputs.pooler_output] == list(found.report.entered)


@each_family
def test_outputs_can_be_copied_and_pickled(family):
    model, inputs = family.model(), family.inputs(["text", (4, 8, 8), "text"])
    with torch.no_grad():
        found = model(**inputs, use_cache=False)
    for made in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert type(made) is type(found) and made.keys() == found.keys()
        assert torch.equal(made.logits, found.logits) and made.report.entered == found.report.entered


@each_family
def test_the_cache_is_passed_and_read_under_either_name(family):
    """Without a warning: upstream's warnings about its own old name are errors here."""
    model, inputs = family.model(), family.inputs(["text", (4, 8, 8), "text"])
    step = torch.tensor([[7]])
    with torch.no_grad():
        found = model(**inputs, use_cache=True)
        assert found.cache is found[CACHE]
        answers = [model(step, **{name: copy.deepcopy(found.cache)}).logits for name in ("cache", "past_key_values")]
        assert torch.equal(*answers)
        base = [
            model.model(step, **{name: copy.deepcopy(found.cache)}).last_hidden_state
            for name in ("cache", "past_key_values")
        ]
        assert torch.equal(*base)
        with pytest.raises(ValueError, match="`cache` and `past_key_values` are both given"):
            model(step, cache=found.cache, past_key_values=found.cache)


@each_family
def test_generate_goes_on_from_a_cache_under_either_name(family):
    model, inputs = family.model(), family.inputs(["text", (4, 8, 8), "text"])
    wanted = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    first = model.generate(**inputs, **wanted)
    ids = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    found = [
        model.generate(ids, **{name: copy.deepcopy(first[CACHE])}, **wanted).sequences
        for name in ("cache", "past_key_values")
    ]
    assert torch.equal(*found)
    again = model.generate(ids, cache=None, past_key_values=copy.deepcopy(first[CACHE]), **wanted).sequences
    assert torch.equal(again, found[0])
    with pytest.raises(ValueError, match="`cache` and `past_key_values` are both given"):
        model.generate(ids, cache=first[CACHE], past_key_values=first[CACHE], **wanted)
