"""Mixture of experts: the router's outputs and loss, and official checkpoints, which store the experts transposed."""

import pytest
import torch
from checkpoints import (
    assert_same,
    build_flashvid_folder,
    observe,
    once,
    run_program,
    state,
    upstream_class,
    video_inputs,
)
from families import FAMILIES, VIDEO
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    set_seed,
)
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

from flashvid_hf import FlashVIDQwen3VLMoeForConditionalGeneration, FlashVIDQwen3VLMoeModel
from flashvid_hf.models.upstream import CACHE

FAMILY = next(family for family in FAMILIES if family.name == "qwen3_vl_moe")
LONG, SHORT, TEXT = ["text", (4, 8, 8), "text"], ["text", (2, 8, 4), "text"], ["text", "text"]
BATCH = [LONG, TEXT, SHORT]


def labels(inputs) -> torch.Tensor:
    """Labels of the text except its first token, which a padding row would predict with left padding."""
    mask = inputs["attention_mask"]
    unseen = (inputs["input_ids"] == VIDEO) | (mask == 0) | (mask.cumsum(-1) == 1)
    return inputs["input_ids"].masked_fill(unseen, -100)


# The router's outputs


@pytest.mark.parametrize(
    ("prompts", "flashvid"),
    [
        ([["text", "text"], ["text"]], {}),
        ([["text", "image", (1, 8, 8), "text"], ["image", (1, 4, 8), "text", "text"]], {}),
        (BATCH, {"retention_ratio": 1.0}),
    ],
    ids=["text", "image", "ratio one"],
)
def test_router_outputs_are_upstreams_bit_for_bit(prompts, flashvid):
    model = FAMILY.model(**flashvid)
    upstream = FAMILY.upstream(model)
    inputs = FAMILY.inputs(*prompts)
    inputs["labels"] = labels(inputs)
    with torch.no_grad():
        for flag in (True, False):
            ours, theirs = (m(**inputs, output_router_logits=flag) for m in (model, upstream))
            for name in ("loss", "aux_loss", "logits", "router_logits"):
                assert_same(getattr(ours, name), getattr(theirs, name))
            assert (ours.aux_loss is not None) == (ours.router_logits is not None) == flag
        assert_same(model(**inputs).loss, upstream(**inputs).loss)


def test_router_sees_what_its_layer_sees():
    """Layers 1 and 4 have no experts. From layer 3 on there are fewer tokens."""
    model = FAMILY.model(text={"mlp_only_layers": [1, 4]})
    inputs = FAMILY.inputs(*BATCH)
    with torch.no_grad():
        outputs = model(**inputs, output_router_logits=True, output_hidden_states=True)
        base = model.model(**inputs, output_router_logits=True)
    lower, upper = outputs.hidden_states[0].shape[1], outputs.hidden_states[-1].shape[1]
    assert lower > upper
    assert [r.shape for r in outputs.router_logits] == [(3 * n, 8) for n in (lower, lower, upper, upper)]
    assert_same(base.router_logits, outputs.router_logits)
    text = inputs["attention_mask"].sum() - (inputs["input_ids"] == VIDEO).sum()
    entered, remained = (text + sum(counts) for counts in (outputs.report.entered, outputs.report.remained))
    assert [int(mask.sum()) for mask in base.router_masks] == [entered, entered, remained, remained]
    assert torch.equal(base.router_masks[-1].view(3, upper), outputs.token_index >= 0)
    # Without a request there are none.
    with torch.no_grad():
        assert model(**inputs).router_logits is model(**inputs).aux_loss is model.model(**inputs).router_masks is None


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_does_not_count_in_the_auxiliary_loss(padding_side):
    """The loss of a batch is that of the tokens of its samples, each routed alone."""
    model = FAMILY.model()
    with torch.no_grad():
        together = model(**FAMILY.inputs(*BATCH, padding_side=padding_side), output_router_logits=True)
        alone = [model.model(**FAMILY.inputs(p, seed=i), output_router_logits=True) for i, p in enumerate(BATCH)]
    layers = zip(*(outputs.router_logits for outputs in alone), strict=True)
    expected = load_balancing_loss_func(tuple(torch.cat(rows) for rows in layers), 8, 2, None)
    torch.testing.assert_close(together.aux_loss, expected)
    with_padding = load_balancing_loss_func(together.router_logits, 8, 2, None)
    assert (with_padding - expected).abs() > 1e-3  # so an error would be noticed


def test_auxiliary_loss_is_added_and_trains_every_router():
    model = FAMILY.model()
    inputs = FAMILY.inputs(*BATCH)
    inputs["labels"] = labels(inputs)
    plain = model(**inputs)
    outputs = model(**inputs, output_router_logits=True)
    assert plain.aux_loss is None
    torch.testing.assert_close(outputs.loss, plain.loss + 0.001 * outputs.aux_loss, rtol=0, atol=0)
    outputs.aux_loss.backward()
    for layer in model.model.language_model.layers:
        assert layer.mlp.gate.weight.grad.abs().sum() > 0
    model.config.text_config.output_router_logits = True  # requested by the configuration
    assert_same(model(**inputs).loss, outputs.loss)
    assert model(**inputs, output_router_logits=False).aux_loss is None


# The method has this name in transformers 5.17 too.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_gives_the_same_loss_and_gradients():
    model = FAMILY.model().train()
    inputs = FAMILY.inputs(*BATCH)
    inputs["labels"] = labels(inputs)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        outputs = model(**inputs, output_router_logits=True)
        outputs.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((outputs.loss.detach(), outputs.aux_loss.detach(), outputs.token_index, gradients))
    torch.testing.assert_close(found[1], found[0])


def test_generate_with_router_outputs():
    """Decoding steps and later turns also have router logits, for their new columns."""
    model = FAMILY.model()
    inputs = FAMILY.inputs(*BATCH)
    settings = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [90, 91], "return_dict_in_generate": True}
    expected = model.generate(**inputs, **settings)
    found = model.generate(**inputs, **settings, output_router_logits=True)
    assert torch.equal(found.sequences, expected.sequences)
    cache, new = found[CACHE], torch.ones(3, 5, dtype=torch.long)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 3, dtype=torch.long), new], 1)
    assert mask.shape[1] == cache.get_seq_length() + 5
    with torch.no_grad():
        outputs = model(new, attention_mask=mask, cache=cache, output_router_logits=True)
    assert [r.shape for r in outputs.router_logits] == [(15, 8)] * 6
    assert outputs.aux_loss.isfinite()


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_implementation_of_the_experts(implementation, tmp_path):
    model = FAMILY.model()
    model.save_pretrained(tmp_path)
    inputs = FAMILY.inputs(*BATCH)
    config = FAMILY.config_class.from_pretrained(tmp_path)
    config._experts_implementation = implementation
    by_name = FAMILY.model_class.from_pretrained(tmp_path, experts_implementation=implementation).eval()
    by_config = FAMILY.model_class.from_pretrained(tmp_path, config=config, alpha=0.7).eval()
    model.set_experts_implementation(implementation)
    with torch.no_grad():
        expected = FAMILY.model()(**inputs).logits
        for other in (model, by_name, by_config):
            assert other.model.language_model.config._experts_implementation == implementation
            torch.testing.assert_close(other(**inputs).logits, expected, atol=2e-5, rtol=1e-5)


# Official checkpoints

# Runs where `flashvid_hf` cannot be imported.
REMOTE_DOOR = """
from checkpoints import observe, state, video_inputs
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

work = arguments[0]
inputs = video_inputs(AutoProcessor.from_pretrained(f"{work}/official"))
results = {}
for name in ("Model", "ForConditionalGeneration"):
    module = f"modeling_flashvid_qwen3_vl_moe.FlashVIDQwen3VLMoe{name}"
    loader = get_class_from_dynamic_module(module, f"{work}/flashvid")
    assert loader.__module__.startswith("transformers_modules."), loader
    model, info = loader.from_pretrained(f"{work}/official", output_loading_info=True)
    results[name] = {kind: sorted(keys) for kind, keys in info.items() if keys}, state(model)
model.save_pretrained(f"{work}/remote-saved")
saved, info = AutoModelForImageTextToText.from_pretrained(
    f"{work}/remote-saved", trust_remote_code=True, output_loading_info=True
)
results["saved"] = {kind: sorted(keys) for kind, keys in info.items() if keys}, state(saved)
results["observed"] = observe(saved.eval(), inputs)
torch.save(results, f"{work}/results.pt")
"""


def build_official_folder(folder):
    """Write an upstream checkpoint as it is published. Upstream itself saves the experts as its modules hold them."""
    from flashvid_hf.tiny_models import build_processor, build_small_config, scramble

    processor = build_processor("qwen3_vl_moe")
    processor.__class__ = upstream_class(type(processor))
    config = build_small_config(processor.tokenizer, "qwen3_vl_moe")
    tokens = {name: value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    parts = {name: getattr(config, name).to_dict() for name in ("text_config", "vision_config")}
    set_seed(0)
    scramble(Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**parts, **tokens))).save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            weights[name] = weight.transpose(1, 2).contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def build_work(work):
    build_official_folder(work / "official")
    build_flashvid_folder(work / "flashvid", family="qwen3_vl_moe")
    run_program(REMOTE_DOOR, work, home=work / "home")


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return once(tmp_path_factory, "moe", build_work)


@pytest.fixture(scope="session")
def upstream(work):
    return load(Qwen3VLMoeForConditionalGeneration, work / "official")


def load(loader, folder, unexpected=frozenset(), **kwargs):
    """Load a model; no weight may be missing, and none left over except `unexpected`."""
    model, info = loader.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert info["unexpected_keys"] == set(unexpected)
    return model.eval()


def test_the_official_layout_is_transposed(work, upstream):
    """The axes are experts, input width, output width. A module of torch has the two widths the other way round."""
    weights, held = load_file(work / "official" / "model.safetensors"), upstream.state_dict()
    experts = [name for name in weights if ".mlp.experts." in name]
    assert len(experts) == 2 * 14 and "lm_head.weight" in weights
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert (weights[name].shape, held[name].shape) == ((8, 64, 96), (8, 96, 64))
    name = "model.language_model.layers.0.mlp.experts.down_proj"
    assert (weights[name].shape, held[name].shape) == ((8, 48, 64), (8, 64, 48))
    for name in experts:
        assert torch.equal(weights[name].transpose(1, 2), held[name])


def test_official_checkpoint_by_the_package(work, upstream, tmp_path):
    inputs = video_inputs(AutoProcessor.from_pretrained(work / "official"))
    model = load(FlashVIDQwen3VLMoeForConditionalGeneration, work / "official", retention_ratio=1.0)
    assert_same(state(model), state(upstream))
    assert_same(observe(model, inputs), observe(upstream, inputs))
    base = load(FlashVIDQwen3VLMoeModel, work / "official", unexpected={"lm_head.weight"})
    assert_same(state(base), state(upstream.model))
    # The model and its base model are saved with their code and loaded again.
    model.save_pretrained(tmp_path / "model")
    base.save_pretrained(tmp_path / "base")
    assert_same(state(load(AutoModelForImageTextToText, tmp_path / "model")), state(upstream))
    assert_same(state(load(FlashVIDQwen3VLMoeModel, tmp_path / "base")), state(upstream.model))
    code = [{path.name for path in folder.glob("*.py")} for folder in (tmp_path / "model", work / "flashvid")]
    assert code[0] == code[1] - {"processing_flashvid_qwen3_vl_moe.py"}  # saved by the processor
    assert "modeling_flashvid_qwen3_vl_moe.py" in code[0]


def test_official_checkpoint_by_remote_code(work, upstream):
    results = torch.load(work / "results.pt")
    faults, found = results["ForConditionalGeneration"]
    assert faults == {}
    assert_same(found, state(upstream))
    faults, found = results["Model"]
    assert faults == {"unexpected_keys": ["lm_head.weight"]}
    assert_same(found, state(upstream.model))
    faults, found = results["saved"]
    assert faults == {}
    assert_same(found, state(upstream))
    # The folder that remote code saved computes the same through the package.
    model = load(AutoModelForImageTextToText, work / "remote-saved")
    assert type(model) is FlashVIDQwen3VLMoeForConditionalGeneration
    observed = observe(model, video_inputs(AutoProcessor.from_pretrained(work / "official")))
    assert observed["reports"]
    assert_same(results["observed"], observed)
