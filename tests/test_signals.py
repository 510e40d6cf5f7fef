"""The signals that a method asks for: every kind, in every family, compared with values from hooks."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flashvid_hf import CompressionMethod, Kept, Signal, Signals, TokenScoring, make_method, register_method
from flashvid_hf.methods.registry import METHODS, available_methods
from flashvid_hf.models import vision_signals
from flashvid_hf.models.tensor_parallel import all_heads
from flashvid_hf.models.vision_signals import VisionRecord, find_sources
from flashvid_hf.vllm_plugin.settings import engine_method

SMALL, LARGE = (2, 8, 4), (4, 8, 8)  # grids in patches
NAME = "asks_of_a_test"
EVERYTHING = tuple(Signal(kind, layer) for kind in ("attention", "keys", "hidden_states") for layer in (0, 1, -1))

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@dataclass(frozen=True, kw_only=True)
class Asks(CompressionMethod):
    """Keep the first tokens, and record the signals that it gets."""

    name = NAME
    told = []

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        self.told.append(signals)
        indices = torch.arange(num_tokens, device=features.device)
        return Kept(features.flatten(0, 1)[indices], indices)


@pytest.fixture
def asks() -> Iterator[type[Asks]]:
    yield register_method(Asks)
    METHODS.pop(NAME)
    Asks.told.clear()


def ask(monkeypatch, family, *signals: Signal, prompts=(["text", LARGE, "text"],), **kwargs):
    """The model, its inputs, and for every video the signals that the method got."""
    monkeypatch.setattr(Asks, "signals", signals)
    Asks.told.clear()
    model, inputs = family.model(), family.inputs(*prompts)
    family.video_features(model, inputs, compression_method=NAME, retention_ratio=0.5, **kwargs)
    return model, inputs, [dict(told) for told in Asks.told]


def layers_of(family, model) -> list:
    tower = family.tower(model)
    return list(tower.blocks if hasattr(tower, "blocks") else tower.encoder.layers)


def attention_of(layer) -> torch.nn.Module:
    return layer.attn if hasattr(layer, "attn") else layer.self_attn


def observe(family, inputs, **kwargs) -> dict[str, list[torch.Tensor]]:
    """By kind, the values of every layer that hooks see without compression, with shape (patches, width)."""
    model = family.model(retention_ratio=1.0)
    layers = layers_of(family, model)
    seen: dict[str, list] = {kind: [[] for _ in layers] for kind in ("attention", "keys", "hidden_states")}
    number = {attention_of(layer): index for index, layer in enumerate(layers)}

    def probe(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
        weights = (query @ key.mT * scaling).softmax(-1)
        seen["attention"][number[module]].append(weights.mean((1, 2)).flatten()[:, None])
        return (weights @ value).transpose(1, 2).contiguous(), weights

    for index, layer in enumerate(layers):
        attention = attention_of(layer)
        if hasattr(attention, "qkv"):
            attention.qkv.register_forward_hook(
                lambda module, args, output, index=index: seen["keys"][index].append(output.chunk(3, dim=-1)[1])
            )
        else:
            attention.k_proj.register_forward_hook(
                lambda module, args, output, index=index: seen["keys"][index].append(output.flatten(0, 1))
            )
        layer.register_forward_hook(
            lambda module, args, output, index=index: seen["hidden_states"][index].append(
                (output[0] if isinstance(output, tuple) else output).flatten(0, -2)
            )
        )
    ALL_ATTENTION_FUNCTIONS.register("probe", probe)
    try:
        family.tower(model).set_attn_implementation("probe")
        family.video_features(model, inputs, **kwargs)
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("probe", None)
    return {kind: [torch.cat(parts) for parts in of_layers] for kind, of_layers in seen.items()}


def expected_signal(family, inputs, patches: torch.Tensor) -> torch.Tensor:
    """The signal of all tokens of all videos, with shape (tokens, width), computed channel by channel."""
    channels = [family.pooled_attention(channel.contiguous(), inputs) for channel in patches.unbind(-1)]
    return torch.stack(channels, dim=-1)


@pytest.mark.parametrize("chunk", [None, 3])
@each_family
@torch.no_grad()
def test_every_kind_of_every_layer(family, chunk, asks, monkeypatch):
    """For several videos in a batch, also if chunks of frames end inside videos or hold several of them."""
    prompts = (["text", LARGE, "text", (3, 4, 8)], ["text", SMALL, "text"])
    _, inputs, told = ask(monkeypatch, family, *EVERYTHING, prompts=prompts, vision_chunk_size=chunk)
    observed = observe(family, inputs)
    assert [list(of_video) for of_video in told] == [list(EVERYTHING)] * 3
    parts = (LARGE, (3, 4, 8), SMALL)
    last = len(observed["keys"]) + getattr(family.model().config, "vision_feature_layer", -1)
    for signal in EVERYTHING:
        layer = signal.layer if signal.layer >= 0 else last + 1 + signal.layer
        rows = [of_video[signal] for of_video in told]
        for of_video, part in zip(rows, parts, strict=True):
            assert of_video.shape[:2] == family.tokens(part) and of_video.dtype == torch.float32
            assert of_video.ndim == (2 if signal.kind == "attention" else 3) and of_video.is_contiguous()
        found = torch.cat([row.flatten(0, 1).view(row.shape[0] * row.shape[1], -1) for row in rows])
        expected = expected_signal(family, inputs, observed[signal.kind][layer])
        assert found.std() > 0
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4, msg=lambda text, s=signal: f"{s}: {text}")


@each_family
@torch.no_grad()
def test_layers_differ(family, asks, monkeypatch):
    """Otherwise a signal of a wrong layer would not be noticed."""
    _, _, (told,) = ask(monkeypatch, family, *EVERYTHING)
    for kind in ("attention", "keys", "hidden_states"):
        assert not torch.allclose(told[Signal(kind, 0)], told[Signal(kind, 1)], rtol=0.01)


@pytest.mark.parametrize("family", [family for family in FAMILIES if "llava" in family.name], ids=lambda f: f.name)
@torch.no_grad()
def test_negative_layers_count_from_the_one_that_makes_the_features(family, asks, monkeypatch):
    wanted = (Signal("hidden_states"), Signal("attention"), Signal("keys", -1))
    for feature_layer in (-1, -2, 1):
        _, inputs, (told,) = ask(monkeypatch, family, *wanted, vision_feature_layer=feature_layer)
        observed = observe(family, inputs)
        layer = feature_layer if feature_layer < 0 else feature_layer - 1  # upstream counts the embeddings too
        for signal in wanted:
            expected = expected_signal(family, inputs, observed[signal.kind][layer])
            torch.testing.assert_close(told[signal].view_as(expected), expected, atol=2e-6, rtol=1e-4)
    with pytest.raises(ValueError, match=r"it must lie in -1 \.\.\. \d+\. Choose such a layer"):
        ask(monkeypatch, family, Signal("keys", -2), vision_feature_layer=1)


@each_family
@torch.no_grad()
def test_a_choice_by_a_signal_enters_the_language_model(family, monkeypatch):
    """End to end: `forward` keeps the tokens of the largest keys of the first layer."""

    @dataclass(frozen=True, kw_only=True)
    class LongestKeys(TokenScoring):
        """Keep the tokens of the longest keys in the first layer."""

        name = "longest_keys_of_a_test"
        signals = (Signal("keys", 0),)

        def score(self, features: torch.Tensor, signals: Signals) -> torch.Tensor:
            return signals[Signal("keys", 0)].norm(dim=-1)

    register_method(LongestKeys)
    try:
        model, inputs = family.model(), family.inputs(["text", LARGE, "text"], ["text", SMALL, "text"])
        outputs = model(**inputs, compression_method=LongestKeys.name, retention_ratio=0.4)
        keys = expected_signal(family, inputs, observe(family, inputs)["keys"][0])
    finally:
        METHODS.pop(LongestKeys.name)
    scores = keys.norm(dim=-1).split([frames * tokens for frames, tokens in map(family.tokens, (LARGE, SMALL))])
    for video, of_video in zip(outputs.report.videos, scores, strict=True):
        assert 0 < len(video.indices) == round(0.4 * len(of_video))
        assert video.indices.tolist() == sorted(of_video.topk(len(video.indices)).indices.tolist())


@pytest.mark.parametrize("chunk", [None, 2])
@each_family
@torch.no_grad()
def test_nothing_is_computed_or_kept_that_nobody_asks_for(family, chunk, asks, monkeypatch):
    """The projections of an attention run again only for its own signals, and each result is kept separately."""

    def count(calls, index, *args):
        calls[index] += 1

    records, made = [], VisionRecord.__init__
    monkeypatch.setattr(VisionRecord, "__init__", lambda self, wanted: made(self, wanted) or records.append(self))
    received, mean = [], vision_signals.mean_received_attention
    monkeypatch.setattr(vision_signals, "mean_received_attention", lambda *args: received.append(args) or mean(*args))
    for signals in ((), (Signal("hidden_states", 0),), (Signal("keys", 0),), (Signal("attention", 0),)):
        records.clear(), received.clear()
        monkeypatch.setattr(Asks, "signals", signals)
        model, inputs = family.model(), family.inputs(["text", LARGE, "text"])
        calls = {index: 0 for index, _ in enumerate(layers_of(family, model))}
        for index, layer in enumerate(layers_of(family, model)):
            attention = attention_of(layer)
            projection = attention.qkv if hasattr(attention, "qkv") else attention.k_proj
            projection.register_forward_hook(partial(count, calls, index))
        family.video_features(model, inputs, compression_method=NAME, retention_ratio=0.5, vision_chunk_size=chunk)
        num_chunks = len(records)
        assert num_chunks == (1 if chunk is None else family.tokens(LARGE)[0] // chunk)
        asks_attention = any(signal.kind != "hidden_states" for signal in signals)
        assert calls == {index: num_chunks * (1 + (index == 0 and asks_attention)) for index in calls}
        assert len(received) == num_chunks * any(signal.kind == "attention" for signal in signals)
        own = [] if hasattr(family.tower(model), "blocks") else ["hidden_states"]  # LLaVA's features are made of them
        for record in records:
            assert sorted(source.kind for source in record.found) == sorted([*own, *(s.kind for s in signals)])
        assert list(Asks.told.pop()) == list(signals)


@torch.no_grad()
def test_methods_that_ask_for_nothing_are_told_nothing(asks, monkeypatch):
    for name in available_methods():
        assert METHODS[name].signals in ((), (Signal("attention"),), EVERYTHING)
    monkeypatch.setattr(Asks, "signals", ())
    make_method(NAME).compress(torch.randn(3, 4, 5), torch.rand(3, 4))
    assert Asks.told.pop() == {}


@each_family
def test_signals_carry_no_gradient(family, asks, monkeypatch):
    _, _, (told,) = ask(monkeypatch, family, *EVERYTHING)
    assert not any(values.requires_grad for values in told.values())


@pytest.mark.parametrize("layer", [-99, 99])
@each_family
def test_layers_that_the_tower_lacks_are_refused(family, layer, asks, monkeypatch):
    monkeypatch.setattr(Asks, "signals", (Signal("keys", layer),))
    model, inputs = family.model(), family.inputs([SMALL, "text"])
    family.tower(model).register_forward_pre_hook(lambda *args: pytest.fail("nothing is encoded before"))
    depth = len(layers_of(family, model))
    message = rf"`layer` of Signal\(kind='keys', layer={layer}\) is {layer}: the vision tower has {depth} layers"
    with pytest.raises(ValueError, match=message):
        family.video_features(model, inputs, compression_method=NAME, retention_ratio=0.5)


def test_layers_are_counted():
    layers = [SimpleNamespace(attn=f"attention {index}") for index in range(4)]
    for layer, index in ((0, 0), (3, 3), (-1, 2), (-3, 0)):
        for kind, module in (("keys", f"attention {index}"), ("hidden_states", layers[index])):
            ((signal, source),) = find_sources([Signal(kind, layer)], layers, layers[2]).items()
            assert signal == Signal(kind, layer) and source == (kind, module)
    for layer in (4, -4):
        with pytest.raises(ValueError, match=r"of which number 2 makes the features, so it must lie in -3 \.\.\. 3\."):
            find_sources([Signal("keys", layer)], layers, layers[2])


# A method and its signals without a model


def test_bad_signals_are_refused():
    message = refusal({"signals": (Signal("keys"), Signal("values"))})
    assert message.startswith("`kind` is 'values': it must be one of 'attention', 'keys', 'hidden_states'")
    for layer in ("0", 1.0, None, True):
        message = refusal({"signals": (Signal("keys", layer),)})
        assert message.startswith(f"`layer` of {Signal('keys', layer)!r} is {layer!r}: it must be an integer")


def test_a_signal_is_the_same_in_two_copies_of_the_code():
    """Remote code loads the module of the methods once for the configuration and once for the model."""
    spec = importlib.util.find_spec("flashvid_hf.methods.compression_method")
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    assert other.Signal is not Signal
    for signal in EVERYTHING:
        assert other.Signals({other.Signal(*signal): 1})[signal] == Signals({signal: 1})[other.Signal(*signal)] == 1
    video = torch.randn(3, 4, 5), torch.rand(3, 4)
    given = other.Signals({other.RECEIVED_ATTENTION: video[1]})
    for name in ("flashvid", "visionzip"):
        ours, theirs = (make_method(name).compress(video[0], signals) for signals in (video[1], given))
        assert torch.equal(ours.tokens, theirs.tokens)


def test_signals_that_do_not_fit_the_video_are_refused(asks, monkeypatch):
    keys, features = Signal("keys", 2), torch.randn(3, 4, 5)
    monkeypatch.setattr(Asks, "signals", (Signal("attention"), keys))
    given = Signals({Signal("attention"): torch.rand(3, 4), keys: torch.randn(3, 4, 7)})
    method = make_method(NAME)
    assert len(method.compress(features, given).indices) == 3
    assert torch.equal(Asks.told.pop()[keys], given[keys])
    with pytest.raises(ValueError, match=r"There is no Signal\(kind='keys', layer=2\) among the signals of the video"):
        method.compress(features, torch.rand(3, 4))
    with pytest.raises(ValueError, match=r"Signal\(kind='keys', layer=2\) has shape \(4, 4, 7\) and `video_features`"):
        method.compress(features, Signals({**given, keys: torch.randn(4, 4, 7)}))
    with pytest.raises(ValueError, match=r"`attention` has shape \(3, 5\)"):
        method.compress(features, Signals({**given, Signal("attention"): torch.rand(3, 5)}))
    with pytest.raises(ValueError, match="There is no .*'attention'"):
        Signals().attention  # noqa: B018
    for name in ("flashvid", "visionzip"):
        with pytest.raises(ValueError, match="There is no .*'attention'"):
            make_method(name).compress(features, Signals())
        of_tensor, of_signals = (make_method(name).compress(features, one) for one in (given.attention, given))
        assert torch.equal(of_tensor.indices, of_signals.indices)


def refusal(namespace: dict, base: type = CompressionMethod) -> str:
    """The error of `register_method` for such a method."""
    made = type("Old", (base,), {"__doc__": "A method.", "name": "old_of_a_test", **namespace})
    with pytest.raises(ValueError) as error:
        register_method(dataclass(frozen=True, kw_only=True)(made))
    assert "old_of_a_test" not in METHODS
    return str(error.value)


def test_methods_in_the_old_form_are_refused():
    message = refusal({"needs_attention": False})
    assert message.startswith("`needs_attention` of `Old` is False: ") and "`signals = ()`" in message
    for function in ("keep", "compress"):
        message = refusal({function: lambda self, features, attention, num_tokens=None: None})
        assert message.startswith(f"`{function}` of `Old` takes `attention`: it is called with `signals` now.")
    message = refusal({"score": lambda self, features, attention: None}, TokenScoring)
    assert message.startswith("`score` of `Old` takes `attention`") and "`signals.attention`" in message
    for signals in ("attention", [Signal("keys")], ("keys",), (Signal("keys"), Signal("keys", -1))):
        assert f"`signals` of `Old` is {signals!r}: it must be a tuple of `Signal`" in refusal({"signals": signals})


def test_keys_on_several_processes_are_refused():
    states = torch.randn(2, 3, 8)
    assert all_heads(states, 8) is states
    with pytest.raises(ValueError, match="names keys, and this process has 8 of their 16 values"):
        all_heads(states, 16)


def test_an_engine_knows_the_attention_of_the_last_layer_alone(asks, monkeypatch):
    config = FAMILIES[0].model().config.override(compression_method=NAME, retention_ratio=0.5)
    for signals in ((), (Signal("attention"),)):
        monkeypatch.setattr(Asks, "signals", signals)
        assert engine_method(config).name == NAME
    for signal in (Signal("attention", 0), Signal("keys"), Signal("hidden_states")):
        monkeypatch.setattr(Asks, "signals", (Signal("attention"), signal))
        with pytest.raises(ValueError) as error:
            engine_method(config)
        assert f"`compression_method` is {NAME!r}: it asks for {signal!r}" in str(error.value)
