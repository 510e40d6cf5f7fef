"""The cache of a compressed batch: its rows and columns stay consistent, whatever is done with them."""

import copy

import pytest
import torch
from families import FAMILIES
from scenarios import SCENARIOS
from test_model import LARGE, SMALL, generate
from test_scenarios import find_device

from flashvid_hf.models.upstream import CACHE

BATCH = [["text", LARGE, "text"], ["text", "text"], ["text", SMALL, "text"]]
ROUNDING = {"atol": 2e-5, "rtol": 1e-5}
# Operations on the rows of a cache, and the old row that each new row comes from.
CHANGES = {
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1])), [2, 0, 1]),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
}

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
pytestmark = each_family


def prefill(model, inputs):
    with torch.no_grad():
        return model(**inputs, use_cache=True)[CACHE]


@torch.no_grad()
def continue_with(model, cache, ids: torch.Tensor) -> torch.Tensor:
    """Logits of more text on a copy of the cache, after the model has seen another prompt."""
    if getattr(model.model, "rope_deltas", None) is not None:
        model.model.rope_deltas = torch.full((1, 1), 77)  # upstream keeps those of the last prompt
    return model(input_ids=ids, **{CACHE: copy.deepcopy(cache)}).logits


@pytest.mark.parametrize("change", CHANGES)
def test_rows_that_move_take_everything_along(family, change):
    """Later text gets the same answer as in the old row."""
    model = family.model()
    cache = prefill(model, family.inputs(*BATCH))
    old = copy.deepcopy(cache)
    move, rows = CHANGES[change]
    move(cache)
    for name in ("lower_mask", "upper_mask", "rope_deltas"):
        values = getattr(old, name)
        if name == "rope_deltas" and values is None:
            assert not model.model.positions_need_grids
            continue
        assert len(values.unique(dim=0)) == len(BATCH)  # all rows differ
        assert torch.equal(getattr(cache, name), values[rows])
    ids = torch.randint(1, 90, (len(BATCH), 3), generator=torch.Generator().manual_seed(0))
    expected = continue_with(model, old, ids)
    torch.testing.assert_close(continue_with(model, cache, ids[rows]), expected[rows], **ROUNDING)


def following(inputs, first, rows: list[int]):
    """The inputs of a second turn of text, on the cache of the first turn with its rows in another order."""
    ids = torch.cat([first.sequences, torch.tensor([[20, 21, 22]]).expand(len(first.sequences), -1)], 1)[rows]
    grown = ids.shape[1] - inputs["input_ids"].shape[1]
    prompt = {"input_ids": ids}
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            of_row = inputs[name].repeat_interleave(len(ids) // len(inputs[name]), 0)[rows]
            prompt[name] = torch.nn.functional.pad(of_row, (0, grown), value=value)
    return prompt


@pytest.mark.parametrize("beams", [1, 2])
def test_a_second_turn_after_the_samples_changed_places(family, beams):
    """`generate` returns one beam of each sample, and the cache of all beams side by side."""
    model, inputs = family.model(), family.inputs(*BATCH)
    first = generate(model, inputs, num_beams=beams, num_return_sequences=beams)
    cache = first[CACHE]
    rows = [row * beams + beam for row in (2, 0, 1) for beam in range(beams)]
    moved = copy.deepcopy(cache)
    moved.reorder_cache(torch.tensor(rows))
    if cache.rope_deltas is not None:
        deltas = prefill(model, inputs).rope_deltas
        assert torch.equal(cache.rope_deltas, deltas.repeat_interleave(beams, 0)) and len(deltas.unique()) == 3
    stay = list(range(len(rows)))
    expected = generate(model, following(inputs, first, stay), **{CACHE: cache})
    found = generate(model, following(inputs, first, rows), **{CACHE: moved})
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs[rows], **ROUNDING)
    assert torch.equal(found.sequences, expected.sequences[rows])


def test_cropping_takes_columns_from_the_end(family):
    """If text is added to a cache and cropped again, the cache is as before."""
    model = family.model()
    cache = prefill(model, family.inputs(*BATCH))
    ids = torch.randint(1, 90, (len(BATCH), 3), generator=torch.Generator().manual_seed(0))
    expected, length = continue_with(model, cache, ids), cache.get_seq_length()
    masks = cache.lower_mask, cache.upper_mask
    with torch.no_grad():
        model(input_ids=ids[:, :2] + 1, **{CACHE: cache})
    assert cache.get_seq_length() == length + 2
    cache.crop(-2)
    assert cache.get_seq_length() == length
    assert torch.equal(cache.lower_mask, masks[0]) and torch.equal(cache.upper_mask, masks[1])
    torch.testing.assert_close(continue_with(model, cache, ids), expected, **ROUNDING)


def test_an_offloaded_cache_is_one(family, monkeypatch):
    device = find_device(next(s for s in SCENARIOS if s.name == "offloaded cache"), monkeypatch)
    model, inputs = family.model().to(device), family.inputs(["text", LARGE, "text"])
    inputs = {name: value.to(device) for name, value in inputs.items()}
    for name in ("offloaded", "dynamic"):
        cache = generate(model, inputs, cache_implementation=name, max_new_tokens=2)[CACHE]
        assert cache.compressed and cache.offloading == (name == "offloaded")


@torch.no_grad()
@pytest.mark.parametrize("ranked_by", ["the end", "an earlier column"])
def test_videos_on_the_cache_of_a_padded_batch(family, ranked_by):
    """Padding of an earlier turn without videos is not seen, ranks nothing, and is not mistaken for new padding."""
    model = family.model()
    turns = [[["text", "text", "text"], ["text"]], [["text", LARGE, "text"], ["text", "text", LARGE]]]
    first, second = (family.inputs(*turn, seed=10 * i) for i, turn in enumerate(turns))
    old, new = (turn["input_ids"].shape[1] for turn in (first, second))
    real = second["attention_mask"].bool()
    assert real.all() and (first["attention_mask"][1] == 0).any()  # padded in the first turn only
    names = [name for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in first]
    whole = {**second, **{name: torch.cat([first[name], second[name]], 1) for name in names}}
    query = old + new - (1 if ranked_by == "the end" else 4)
    positions = family.positions(model, whole)
    if positions is None:
        positions = (whole["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    following = {**second, "attention_mask": whole["attention_mask"], "position_ids": positions[..., old:]}
    cache = prefill(model, {**first, "position_ids": positions[..., :old]})
    found = model(**following, query_index=query, **{CACHE: cache})
    expected = model(**whole, query_index=query, use_cache=False)
    if ranked_by != "the end":  # the query alone decides
        last = model(**whole, query_index=old + new - 1, use_cache=False)
        assert not torch.equal(expected.token_index, last.token_index)
    for row in range(2):
        theirs = expected.token_index[row] >= old
        ours = found.token_index[row] >= 0
        assert (found.token_index[row, ours] + old).tolist() == expected.token_index[row, theirs].tolist()
        torch.testing.assert_close(found.logits[row, ours], expected.logits[row, theirs], **ROUNDING)
