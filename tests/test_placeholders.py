"""Placeholders of images and videos that the call does not have, in a prompt and in what the model itself writes."""

import copy

import pytest
import torch
from families import FAMILIES, IMAGE, VIDEO
from transformers import LogitsProcessor

from flashvid_hf.models.upstream import CACHE

PROMPT = ["text", "image", (1, 8, 8), "text", (4, 8, 8), "text"]

pytestmark = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)

each_ratio = pytest.mark.parametrize("ratio", [0.4, 1.0])


def without(inputs: dict, kind: str) -> dict:
    pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    return {name: value for name, value in inputs.items() if name != pixels}


def generate(model, inputs, **kwargs):
    settings = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return model.generate(**inputs, **{**settings, "eos_token_id": -1, **kwargs})


@pytest.mark.parametrize("kind", ["image", "video"])
@each_ratio
def test_placeholders_without_pixels_are_refused(family, ratio, kind):
    model = family.model(retention_ratio=ratio)
    inputs = without(family.inputs(PROMPT), kind)
    found = int((inputs["input_ids"] == {"image": IMAGE, "video": VIDEO}[kind]).sum())
    message = f"`input_ids` has {found} {kind} placeholders and the call has no {kind}: .*Pass `pixel_values"
    embedded = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    del embedded["input_ids"]
    family.remove_tower(model)  # the error costs no run of it
    for call in (model, model.model, lambda **given: generate(model, given)):
        with pytest.raises(ValueError, match=message):
            call(**inputs)
    with pytest.raises(ValueError, match=message):
        model(**embedded)
    with pytest.raises(ValueError, match=message):
        model(**inputs, labels=inputs["input_ids"])
    for settings in ({"use_cache": False}, {"num_beams": 2}, {"do_sample": True}):
        with pytest.raises(ValueError, match=message):
            generate(model, inputs, **settings)


@each_ratio
def test_placeholders_of_a_later_turn_without_pixels_are_refused(family, ratio):
    model = family.model(retention_ratio=ratio)
    first = generate(model, family.inputs(["text", (2, 8, 4)]), suppress_tokens=[IMAGE, VIDEO])
    second = family.inputs(["text", (2, 8, 4), "text"], seed=3)["input_ids"]
    ids = torch.cat([first.sequences, second], dim=1)
    found = int((second == VIDEO).sum())
    with pytest.raises(ValueError, match=f"`input_ids` has {found} video placeholders and the call has no video"):
        generate(model, {"input_ids": ids}, cache=first[CACHE])


class Write(LogitsProcessor):
    """Makes the model write these ids, one after the other, behind a prompt of this length."""

    def __init__(self, ids: list[int], length: int):
        self.ids, self.length = ids, length

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.ids[input_ids.shape[1] - self.length]] = 0
        return forced


@pytest.mark.parametrize("parts", [PROMPT, ["text", (4, 8, 8), "text"], ["text", "image", (1, 8, 8), "text"], ["text"]])
@each_ratio
def test_a_model_may_write_the_ids_of_placeholders(family, ratio, parts):
    """With and without a cache, and with another turn behind them. They are tokens like any other."""
    model, inputs = family.model(retention_ratio=ratio), family.inputs(parts)
    ids = [VIDEO, 7, IMAGE, VIDEO, 8, VIDEO]
    write = Write(ids, inputs["input_ids"].shape[1])
    cached, whole = (generate(model, inputs, use_cache=use, logits_processor=[write]) for use in (True, False))
    assert cached.sequences[0, -6:].tolist() == whole.sequences[0, -6:].tolist() == ids
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(whole.logits), atol=3e-5, rtol=1e-4)
    assert str(cached.report) == str(whole.report)
    for settings in ({"num_beams": 2}, {"do_sample": True}):
        found = generate(model, inputs, logits_processor=[write], **settings)
        assert found.sequences[0, -6:].tolist() == ids
    ids = torch.cat([cached.sequences, torch.tensor([[20, 21]])], dim=1)
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        more["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, ids.shape[1] - types.shape[1]))
    following = generate(model, more, cache=copy.deepcopy(cached[CACHE]), suppress_tokens=[IMAGE, VIDEO])
    assert following.sequences.shape[1] == ids.shape[1] + 6


@each_ratio
def test_candidates_may_be_the_ids_of_placeholders(family, ratio):
    """Prompt lookup proposes what followed the same tokens before: here the placeholders of the video."""
    model, inputs = family.model(retention_ratio=ratio), family.inputs(["text", (4, 8, 8), "text"])
    ids = inputs["input_ids"]
    ids[0, -2:] = ids[0, ids[0].tolist().index(VIDEO) - 2 : ids[0].tolist().index(VIDEO)]
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = 2 * (ids == VIDEO)
    settings = {"suppress_tokens": [IMAGE, VIDEO]}
    plain, looked_up = (
        generate(model, inputs, **settings),
        generate(model, inputs, prompt_lookup_num_tokens=3, max_matching_ngram_size=2, **settings),
    )
    assert torch.equal(looked_up.sequences, plain.sequences)
    assert str(looked_up.report) == str(plain.report)


def test_text_that_says_a_placeholder_needs_no_pixels_in_a_cached_turn(family):
    """`forward` on a cache does not know who wrote the token."""
    model = family.model()
    with torch.no_grad():
        cache = model(**family.inputs(["text", (2, 8, 4), "text"]), use_cache=True)[CACHE]
        assert model(torch.tensor([[VIDEO]]), cache=cache).logits.isfinite().all()
