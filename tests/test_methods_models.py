"""Every compression method inside the models of all families, and the steps of methods between layers."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from families import FAMILIES, VIDEO
from test_model import BATCHES, LARGE, SMALL, assert_same, generate, logits

from flashvid_hf.methods.compression_method import CompressionMethod, LayerPruning
from flashvid_hf.methods.flashvid import FlashVID
from flashvid_hf.methods.registry import METHODS, available_methods, register_method
from flashvid_hf.models.layer_pruning import merge_dropped

# FastV sees all tokens in two or three of the six layers.
RATIOS = {"fastv": 0.6}
NUM_LAYERS, STEPS = 6, 3
PROMPTS = BATCHES["videos of different length"]

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
each_method = pytest.mark.parametrize("name", available_methods())


def settings_of(name: str) -> dict:
    return {"compression_method": name, "retention_ratio": RATIOS.get(name, 0.4)}


@cache
def model_of(family, method: str = "flashvid", **settings):
    """One model for all tests that do not change it. Its random weights do not depend on the settings."""
    return family.model(compression_method=method, **settings)


@each_family
@each_method
def test_a_call_and_a_configuration_mean_the_same(family, name):
    """As many tokens enter, and a layer sees as many on average. The call does not change the configuration."""
    settings = settings_of(name)
    configured, called = model_of(family, name, retention_ratio=settings["retention_ratio"]), model_of(family)
    inputs = family.inputs(*PROMPTS)
    with torch.no_grad():
        ours, theirs = called(**inputs, **settings), configured(**inputs)
    assert torch.equal(ours.logits, theirs.logits) and str(ours.report) == str(theirs.report)
    answers = [
        generate(called, inputs, max_new_tokens=STEPS, **settings),
        generate(configured, inputs, max_new_tokens=STEPS),
    ]
    assert_same(*answers)
    assert called.config.compression_method == "flashvid" and configured.config.method.name == name

    method, parts = configured.config.method, (LARGE, SMALL)
    report = theirs.report
    for video, part in enumerate(parts):
        newlines, sizes = family.newlines(part), family.tokens(part)
        assert report.entered[video] == method.exact_num_tokens(*sizes) + newlines
        average = report.retained[video] * report.tokens[video] - newlines
        if name == "none":
            assert report.remained == report.tokens and not report.compressed
        else:  # FlashVID rounds up for every frame; EVS keeps the whole first frame
            budget = max(settings["retention_ratio"] * sizes[0] * sizes[1], sizes[1] if name == "evs" else 0)
            assert abs(average - budget) < (1.5 + sizes[0] if name == "flashvid" else 1.5)
            assert report.compressed


@each_family
@each_method
def test_batch_equals_singles_and_cache_equals_none(family, name):
    model, settings = model_of(family), settings_of(name)
    inputs = family.inputs(*PROMPTS)
    together = generate(model, inputs, max_new_tokens=STEPS, **settings)
    assert_same(together, generate(model, inputs, max_new_tokens=STEPS, use_cache=False, **settings))
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, family.inputs(prompt, seed=row), max_new_tokens=STEPS, **settings)
        torch.testing.assert_close(logits(alone)[0], logits(together)[row], atol=2e-5, rtol=1e-5)
        assert torch.equal(alone.sequences[0, -STEPS:], together.sequences[row, -STEPS:])


@torch.no_grad()
@each_family
def test_ratio_one_is_upstream(family):
    """Bit for bit where the configuration says so."""
    family = family.as_upstream()
    inputs = family.inputs(*PROMPTS)
    model = family.model()
    upstream, config = family.upstream(model), model.config
    theirs = upstream(**family.upstream_inputs(upstream, inputs)).logits
    for name in available_methods():
        ours = model(**inputs, compression_method=name, retention_ratio=1.0)
        assert not ours.report.compressed
        torch.testing.assert_close(ours.logits, theirs, rtol=0, atol=family.upstream_atol or 2e-5)
        model.config = model.model.config = config.override(compression_method=name, retention_ratio=1.0)
        torch.testing.assert_close(model(**inputs).logits, theirs, rtol=0, atol=family.upstream_atol)
        model.config = model.model.config = config


@torch.no_grad()
@each_family
def test_no_compression_is_upstream_bit_for_bit(family):
    """With videos of one length, because upstream's LLaVA models cannot take others."""
    family = family.as_upstream()
    model, inputs = family.model(compression_method="none"), family.inputs(["text", LARGE, "text"], ["text", LARGE])
    upstream = family.upstream(model)
    assert torch.equal(model(**inputs).logits, upstream(**inputs).logits)
    ours, theirs = (generate(one, inputs, max_new_tokens=STEPS) for one in (model, upstream))
    assert torch.equal(ours.sequences, theirs.sequences) and torch.equal(logits(ours), logits(theirs))


@each_family
def test_settings_of_another_method_are_refused(family):
    model, inputs = model_of(family), family.inputs(["text", SMALL, "text"])
    family.remove_tower(refusing := family.model())  # before anything is encoded
    for settings, message in (
        ({"compression_method": "evs", "alpha": 0.5}, "`alpha` is 0.5 and `compression_method` is 'evs'"),
        ({"compression_method": "evs", "behavior": "released"}, "`behavior` is 'released' and `compression_method` is"),
        ({"compression_method": "evs", "method_settings": {"seed": 3}}, "`method_settings` has 'seed'"),
        ({"compression_method": "random", "method_settings": {"seed": -3}}, "`seed` is -3"),
        ({"compression_method": "random", "method_settings": [3]}, "`method_settings` is"),
        ({"compression_method": "best"}, "`compression_method` is 'best': it must be one of 'flashvid', "),
        ({"method_settings": {"alpha": 0.5}}, "`method_settings` is .* and `compression_method` is 'flashvid'"),
        ({"compression_method": "fastv", "retention_ratio": 0.15}, "`retention_ratio` is 0.15"),
        ({"compression_method": "fastv", "method_settings": {"pruning_layer": 0}}, "`pruning_layer` is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            refusing(**inputs, **settings)
    for name in sorted(set(available_methods()) - {"flashvid"}):
        for field in sorted(FlashVID.settings().keys() - {"behavior"}):
            with pytest.raises(ValueError, match=f"`{field}` is .* it is a setting of 'flashvid'"):
                model.config.override(**settings_of(name), **{field: getattr(model.config, field)})


@each_family
@each_method
def test_configurations_keep_their_method(family, name, tmp_path):
    """With all settings of the method. Another method, in a call or when loading, begins with its own defaults."""
    given = None if name == "flashvid" else METHODS[name].settings() or None
    config = model_of(family).config.override(**settings_of(name), method_settings=given)
    config.save_pretrained(tmp_path)
    loaded = family.config_class.from_pretrained(tmp_path)
    assert loaded.method == config.method and loaded.method_settings == given
    assert loaded.override(compression_method="uniform").method_settings == (given if name == "uniform" else None)
    reloaded = family.config_class.from_pretrained(tmp_path, compression_method="random", method_settings={"seed": 3})
    assert reloaded.method.name == "random" and reloaded.method.seed == 3
    assert reloaded.override(retention_ratio=0.3).method.seed == 3  # the same method keeps its settings


@torch.no_grad()
@each_family
def test_models_keep_their_method(family, tmp_path):
    model = family.model(compression_method="random", method_settings={"seed": 3}, retention_ratio=0.3)
    inputs = family.inputs(["text", LARGE, "text"])
    model.save_pretrained(tmp_path)
    loaded = family.model_class.from_pretrained(tmp_path)
    assert loaded.config.method == model.config.method and loaded.config.method_settings == {"seed": 3}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    other = family.model_class.from_pretrained(tmp_path, compression_method="uniform")
    assert other.config.method.name == "uniform" and other.config.retention_ratio == 0.3
    expected = model(**inputs, compression_method="uniform")
    assert torch.equal(other(**inputs).logits, expected.logits)
    assert not torch.equal(model(**inputs, method_settings={"seed": 4}).logits, model(**inputs).logits)


# The steps between layers, tested with methods that let all tokens enter


@dataclass(frozen=True, kw_only=True)
class InnerStep(CompressionMethod):
    """All tokens enter; the layers from 3 on see half of them."""

    name = "inner_step_of_a_test"
    signals = ()

    scored_by: str = "last_token"
    merges: bool = False

    @property
    def entering_ratio(self) -> float:
        return 1.0

    @property
    def pruning(self) -> LayerPruning:
        return LayerPruning(3, 0.5, self.scored_by, self.merges)


@pytest.fixture
def inner_step():
    yield register_method(InnerStep).name
    METHODS.pop(InnerStep.name)


def score_by_loops(attention: torch.Tensor, rows: list[int]) -> list[float]:
    """The most attention that any of the rows pays each column, averaged over the heads.

    Args:
        attention: weights of one sample and layer, with shape (heads, S, S).
    """
    num_heads, length, _ = attention.shape
    scores = [0.0] * length
    for column in range(length):
        for row in rows:
            scores[column] = max(scores[column], sum(attention[:, row, column].tolist()) / num_heads)
    return scores


@torch.no_grad()
@each_family
@pytest.mark.parametrize(
    ("batch", "scored_by", "bytes_at_once"),
    [
        ("several videos in a prompt", "last_token", None),
        ("several videos in a prompt", "text_tokens", None),
        ("videos of different length", "text_tokens", 1),  # one row at a time
        ("video at the end", "text_tokens", None),
    ],
)
def test_tokens_are_ranked_as_loops_rank_them(family, batch, scored_by, bytes_at_once, inner_step, monkeypatch):
    """By upstream's own attention weights. Text tokens are the real ones after the last placeholder of a video."""
    if bytes_at_once is not None:
        monkeypatch.setattr("flashvid_hf.models.layer_pruning._MAX_SCORE_BYTES", bytes_at_once)
    family = family.as_upstream()
    model = family.model(compression_method=inner_step, method_settings={"scored_by": scored_by})
    upstream = family.upstream(model)
    upstream.set_attn_implementation("eager")
    inputs = family.inputs(*BATCHES[batch])
    outputs = model(**inputs)
    attention = upstream(**family.upstream_inputs(upstream, inputs), output_attentions=True).attentions[2]
    parts = [[part for part in prompt if part != "text"] for prompt in BATCHES[batch]]
    for row, ids in enumerate(inputs["input_ids"]):
        is_token = family.is_token({"input_ids": ids[None]}, *parts[row])
        columns = range(len(ids))
        last_video = max(column for column in columns if ids[column] == VIDEO)
        readers = [columns[-1]]
        if scored_by == "text_tokens":
            readers = [column for column in columns if column > last_video] or readers
        scores = score_by_loops(attention[row], readers)
        tokens = [column for column in columns if is_token[column]]
        best = sorted(tokens, key=lambda column: -scores[column])[: -(-len(tokens) // 2)]
        real = [column for column in columns if inputs["attention_mask"][row, column]]
        expected = [column for column in real if not is_token[column] or column in best]
        kept = outputs.token_index[row]
        assert kept[kept >= 0].tolist() == expected


@torch.no_grad()
@each_family
def test_padding_among_the_readers_ranks_nothing(family, inner_step):
    """A sample with less text after its video, whose first column is a video token, is ranked as if it were alone."""
    model = family.model(compression_method=inner_step, method_settings={"scored_by": "text_tokens"})
    prompts = [[LARGE, "text"], [SMALL, "text", "text"]]
    together = model(**family.inputs(*prompts)).token_index
    for row, prompt in enumerate(prompts):
        alone = model(**family.inputs(prompt, seed=row)).token_index[0]
        padding = together.shape[1] - int((together[row] >= 0).sum())
        shift = family.inputs(*prompts)["input_ids"].shape[1] - family.inputs(prompt)["input_ids"].shape[1]
        assert (together[row, padding:] - shift).tolist() == alone.tolist()


def merge_by_loops(states: torch.Tensor, prunable: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Merge the dropped tokens one by one, each halfway into the kept token with the largest cosine before any merging.

    Args:
        states: of one sample, with shape (S, D).
        prunable, keep: with shape (S,).
    """
    merged, columns = states.double().clone(), range(len(states))
    targets = [column for column in columns if keep[column] and prunable[column]]
    for column in columns:
        if prunable[column] and not keep[column] and targets:
            similarity = [torch.cosine_similarity(states[column], states[to], dim=0).item() for to in targets]
            to = targets[similarity.index(max(similarity))]
            merged[to] = (merged[to] + states[column].double()) / 2
    return merged


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_tokens_are_merged_as_loops_merge_them(share, dtype):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 40, 16, generator=generator).to(dtype)
    prunable = torch.rand(3, 40, generator=generator) < 0.8
    keep = ~prunable | (torch.rand(3, 40, generator=generator) < share)
    untouched = states.clone()
    merged = merge_dropped(states, prunable, keep)
    assert merged.dtype == dtype and merged.shape == states.shape and torch.equal(states, untouched)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 1e-2}
    for row in range(3):
        expected = merge_by_loops(states[row].float(), prunable[row], keep[row])
        torch.testing.assert_close(merged[row][keep[row]].double(), expected[keep[row]], **tolerance)
        others = keep[row] & ~prunable[row]
        assert torch.equal(merged[row][others], states[row][others])


def test_many_dropped_tokens_in_one():
    """The first merged tokens fade away, and nothing overflows."""
    states = torch.ones(1, 5000, 4)
    prunable = torch.ones(1, 5000, dtype=torch.bool)
    merged = merge_dropped(states, prunable, torch.arange(5000)[None] == 17)
    torch.testing.assert_close(merged[0, 17], torch.ones(4))


@torch.no_grad()
@each_family
def test_merging_between_layers(family, inner_step):
    """Layer 3 gets the merged states of the layer below, sample by sample."""
    model = family.model(compression_method=inner_step, method_settings={"merges": True})
    layer, seen = model.model.language_model.layers[3], {}
    layer.register_forward_pre_hook(lambda _, args: seen.update(before=args[0]), prepend=True)
    layer.input_layernorm.register_forward_pre_hook(lambda _, args: seen.update(merged=args[0]))
    inputs = family.inputs(*BATCHES["several videos in a prompt"])
    kept = model(**inputs).token_index
    parts = [[part for part in prompt if part != "text"] for prompt in BATCHES["several videos in a prompt"]]
    for row, columns in enumerate(kept):
        # All real columns entered.
        entered = inputs["attention_mask"][row].nonzero()[:, 0]
        states = seen["before"][row, -len(entered) :]
        is_token = family.is_token({"input_ids": inputs["input_ids"][row : row + 1]}, *parts[row])[entered]
        keep = torch.isin(entered, columns[columns >= 0])
        expected = merge_by_loops(states, is_token, keep)[keep]
        assert 0 < int((~keep).sum()) and not torch.allclose(expected.float(), states[keep])
        torch.testing.assert_close(seen["merged"][row, columns >= 0].double(), expected, atol=1e-5, rtol=1e-5)
