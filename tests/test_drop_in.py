"""`flashvid` on a loaded model: the results of the FlashVID class, the model's own weights, and no other change."""

import copy
import gc
import inspect
import json
import pickle
import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from checkpoints import build_flashvid_folder, device_map, run_program, video_inputs
from families import FAMILIES, IMAGE, VIDEO
from hub_cache import RECIPES
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText, AutoProcessor

from flashvid_hf import CompressionConfig, flashvid
from flashvid_hf.families import family_named
from flashvid_hf.models.upstream import CACHE

# Videos of one length, which upstream needs in some families.
PROMPTS = (["text", (4, 8, 8), "text"], ["text", (4, 8, 8), "text", "text"])
# Upstream has no LLaVA-Video. For both LLaVA families `flashvid` turns upstream's class into LLaVA-OneVision.
UPSTREAM = [f for f in FAMILIES if f.config_class.base_model_type == f.upstream_config_class.model_type]

each_family = pytest.mark.parametrize("family", UPSTREAM, ids=lambda family: family.name)


def settings_of(model) -> dict:
    """All settings of a FlashVID model, as arguments of `flashvid`."""
    names = list(inspect.signature(flashvid).parameters)[1:]
    return {name: getattr(model.config, name) for name in names}


@torch.no_grad()
def answer(model, inputs) -> tuple:
    """Logits, greedy ids, the logits that chose them, and the reports, to compare bit for bit."""
    found = model.generate(
        **inputs,
        max_new_tokens=4,
        do_sample=False,
        suppress_tokens=[IMAGE, VIDEO],
        output_logits=True,
        return_dict_in_generate=True,
    )
    reports = [(r.tokens, r.entered, r.remained, r.segment_lengths) for r in getattr(found.get(CACHE), "reports", ())]
    return model(**inputs).logits, found.sequences, torch.stack(found.logits), reports


def assert_same(found: tuple, expected: tuple) -> None:
    assert found[-1] == expected[-1]
    for ours, theirs in zip(found[:-1], expected[:-1], strict=True):
        assert torch.equal(ours, theirs)


def assert_compressed(found: tuple) -> None:
    ((tokens, entered, remained, _),) = found[-1]
    assert all(all_ > in_ > left for all_, in_, left in zip(tokens, entered, remained, strict=True))


def test_arguments_and_defaults_are_the_reference_s():
    parameters = inspect.signature(flashvid).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "model": inspect.Parameter.empty,
        "retention_ratio": 0.25,
        "do_segment": True,
        "segment_threshold": 0.9,
        "min_segment_num": 8,
        "complementary_segment": True,
        "token_selection_method": "attn_div_v2",
        "alpha": 0.7,
        "temporal_threshold": 0.8,
        "expansion": 1.25,
        "pruning_layer": 20,
        "llm_retention_ratio": 0.3,
        "behavior": "paper",
        "vision_chunk_size": 32,
        "compression_method": "flashvid",
        "method_settings": None,
    }
    own = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    assert own == ["behavior", "vision_chunk_size", "compression_method", "method_settings"]
    for field in fields(CompressionConfig):
        assert parameters[field.name].default == field.default


@pytest.mark.parametrize("behavior", ["paper", "released"])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@each_family
def test_equals_the_flashvid_class(family, attn_implementation, behavior):
    native = family.model(attn_implementation, behavior=behavior)
    upstream = family.upstream(native)
    upstream.set_attn_implementation(attn_implementation)
    model = flashvid(upstream, **settings_of(native))
    assert type(model) is type(native) and type(model.base_model) is type(native.base_model)
    assert model.config.to_dict() == native.config.to_dict()
    for module, expected in zip(model.modules(), native.modules(), strict=True):
        if hasattr(expected, "config"):
            assert module.config._attn_implementation == expected.config._attn_implementation == attn_implementation
    inputs = family.inputs(*PROMPTS)
    found = answer(model, inputs)
    assert_compressed(found)
    assert_same(found, answer(native, inputs))


class Operations(TorchDispatchMode):
    """Lists the operations of torch that compute or allocate."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@each_family
def test_shares_all_tensors_and_allocates_none(family):
    upstream = family.upstream(family.model())
    before = dict(upstream.named_parameters()), dict(upstream.named_buffers())
    with Operations() as operations:
        model = flashvid(upstream)
    assert not operations.names
    for found in (model, upstream):
        for ours, expected in zip((found.named_parameters(), found.named_buffers()), before, strict=True):
            ours = dict(ours)
            assert ours.keys() == expected.keys() and all(ours[name] is expected[name] for name in expected)
    assert model.get_input_embeddings() is upstream.get_input_embeddings()
    assert model.get_output_embeddings() is upstream.get_output_embeddings()


@each_family
def test_upstream_and_the_other_models_of_its_class_are_as_before(family):
    native = family.model()
    upstream, other = family.upstream(native), family.upstream(native)
    inputs = family.inputs(*PROMPTS)
    with torch.no_grad():  # installs upstream's own hooks for hidden states, before those of FlashVID
        hidden_states = upstream(**inputs, output_hidden_states=True).hidden_states
        expected_states = native(**inputs, output_hidden_states=True).hidden_states
    expected, config = answer(upstream, inputs), upstream.config.to_dict()
    attributes, base_attributes = vars(upstream).copy(), vars(upstream.base_model).copy()
    classes = {c: dict(vars(c)) for module in upstream.modules() for c in type(module).__mro__}

    model = flashvid(upstream, **settings_of(native))
    assert_compressed(answer(model, inputs))
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
        assert all(torch.equal(*pair) for pair in zip(states, expected_states, strict=True))
        states = upstream(**inputs, output_hidden_states=True).hidden_states
        assert all(torch.equal(*pair) for pair in zip(states, hidden_states, strict=True))
    assert_same(answer(upstream, inputs), expected)
    assert upstream.config.to_dict() == config
    assert vars(upstream) == attributes
    assert vars(upstream.base_model).keys() == base_attributes.keys()
    assert all(dict(vars(c)) == before for c, before in classes.items())
    assert_same(answer(other, inputs), expected)
    assert not any(module._forward_pre_hooks for module in other.modules())


@each_family
def test_called_again_gives_another_model_of_the_same_weights(family):
    native = family.model()
    upstream = family.upstream(native)
    inputs = family.inputs(*PROMPTS)
    settings = settings_of(native)
    other_settings = {**settings, "retention_ratio": 0.2, "pruning_layer": 4}
    uncompressed, expected = answer(upstream, inputs), answer(native, inputs)
    other_expected = answer(family.model(retention_ratio=0.2, pruning_layer=4), inputs)

    model = flashvid(upstream, **settings)
    hooks = [len(module._forward_pre_hooks) for module in upstream.modules()]
    again, nested, back = (
        flashvid(upstream, **other_settings),
        flashvid(model, **other_settings),
        flashvid(flashvid(model), **settings),
    )
    assert [len(module._forward_pre_hooks) for module in upstream.modules()] == hooks
    cases = [(upstream, uncompressed), (model, expected), (again, other_expected), (nested, other_expected)]
    cases += [(back, expected)]
    for found, of_found in cases + cases[::-1]:
        assert_same(answer(found, inputs), of_found)
    with ThreadPoolExecutor(3) as pool:
        jobs = [(pool.submit(answer, found, inputs), of_found) for found, of_found in 2 * cases[:3]]
        for job, of_found in jobs:
            assert_same(job.result(), of_found)
    assert model.config.retention_ratio == settings["retention_ratio"]


@each_family
def test_copies_and_pickles(family):
    native = family.model()
    model = flashvid(family.upstream(native), **settings_of(native))
    inputs = family.inputs(*PROMPTS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(answer(other, inputs), answer(native, inputs))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_flashvid_models_change_their_settings_and_keep_the_rest(family):
    native = family.model()
    model = flashvid(native, **{**settings_of(native), "retention_ratio": 0.2})
    assert model is not native and type(model) is type(native)
    assert model.config.to_dict() == {**native.config.to_dict(), "retention_ratio": 0.2}
    inputs = family.inputs(*PROMPTS)
    assert_same(answer(model, inputs), answer(family.model(retention_ratio=0.2), inputs))
    assert_same(answer(native, inputs), answer(family.model(), inputs))


@each_family
def test_base_models(family):
    native = family.model()
    upstream = family.upstream(native).base_model
    model = flashvid(upstream, **settings_of(native))
    assert type(model) is type(native.base_model)
    inputs = family.inputs(*PROMPTS)
    with torch.no_grad():
        before, found, expected = (m(**inputs) for m in (upstream, model, native.base_model))
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(found.token_index, expected.token_index)
        assert torch.equal(upstream(**inputs).last_hidden_state, before.last_hidden_state)


@each_family
def test_what_loading_and_the_user_set_comes_along(family):
    upstream = family.upstream(family.model()).bfloat16().train()
    upstream.generation_config.max_new_tokens = 3
    upstream.name_or_path = "somewhere"
    upstream.notes = {"a": 1}  # like `hf_device_map` and `peft_config`
    upstream.loss_function = lambda **kwargs: torch.tensor(7.0)
    upstream.config.text_config.use_cache = False
    model = flashvid(upstream)
    assert model.training and model.dtype == torch.bfloat16 and model.name_or_path == "somewhere"
    assert model.loss_function is upstream.loss_function and model.notes == upstream.notes
    assert model.config.name_or_path == upstream.config.name_or_path
    for name in upstream.config.sub_configs:  # the towers', which read them
        assert getattr(model.config, name) is getattr(upstream.config, name)
    assert model.generation_config.to_dict() == upstream.generation_config.to_dict()
    model.generation_config.max_new_tokens = 4
    model.notes["b"] = 2
    assert upstream.generation_config.max_new_tokens == 3 and upstream.notes == {"a": 1}


@each_family
def test_upstream_can_be_compiled_and_deleted(family):
    native = family.model()
    upstream = family.upstream(native)
    upstream.compile(backend="eager")  # compiles this instance only: the result is not compiled
    model = flashvid(upstream, **settings_of(native))
    gone = weakref.ref(upstream), weakref.ref(upstream.base_model)
    del upstream
    gc.collect()
    assert not any(ref() for ref in gone)
    inputs = family.inputs(*PROMPTS)
    assert_same(answer(model, inputs), answer(native, inputs))


@each_family
def test_the_result_is_saved_as_a_flashvid_folder(family, tmp_path):
    native = family.model()
    family.upstream(native).save_pretrained(tmp_path / "upstream")
    # Loading notes the checkpoint's own names of the weights, and saving uses them again.
    upstream = AutoModelForImageTextToText.from_pretrained(tmp_path / "upstream")
    model = flashvid(upstream, **settings_of(native))
    expected = family.model_class.from_pretrained(tmp_path / "upstream", **settings_of(native))
    assert model.config.to_dict() == expected.config.to_dict() and vars(model).keys() == vars(expected).keys()
    model.save_pretrained(tmp_path / "flashvid")
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "flashvid", output_loading_info=True)
    assert type(loaded) is type(native) and not info["missing_keys"] and not info["unexpected_keys"]
    assert settings_of(loaded) == settings_of(native)
    inputs = family.inputs(*PROMPTS)
    assert_same(answer(loaded, inputs), answer(native, inputs))
    assert upstream.config.model_type == family.upstream_config_class.model_type


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # in torch's own compiler
@each_family
def test_quantized_models(family, tmp_path):
    """BitNet's quantizer stands for all: it is the one in transformers that runs on a CPU without another package.

    It rounds weights to three values and activations to eight bits in each linear layer of both towers.
    """
    native = family.model()
    family.upstream(native).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    upstream = AutoModelForImageTextToText.from_pretrained(tmp_path)
    expected = family.model_class.from_pretrained(tmp_path, **settings_of(native))
    model = flashvid(upstream, **settings_of(native))
    assert type(model.base_model.language_model.layers[0].self_attn.q_proj).__name__ == "AutoBitLinear"
    assert model.hf_quantizer is upstream.hf_quantizer
    assert model.config.quantization_config is upstream.config.quantization_config
    assert model.is_quantized and model.quantization_method == expected.quantization_method
    assert vars(model).keys() == vars(expected).keys()
    inputs = family.inputs(*PROMPTS)
    with torch.compiler.set_stance("force_eager"):  # it compiles its rounding
        found = answer(model, inputs)
        assert_same(found, answer(expected, inputs))
        assert not torch.equal(found[0], answer(native, inputs)[0])
        model.save_pretrained(tmp_path / "flashvid")
        assert_same(answer(AutoModelForImageTextToText.from_pretrained(tmp_path / "flashvid"), inputs), found)


@torch.no_grad()
def assert_logits(model, inputs, expected: torch.Tensor) -> None:
    """Equal within rounding: offloaded weights return to other addresses, where kernels may sum in another order."""
    torch.testing.assert_close(model(**inputs).logits, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules:UserWarning")
@pytest.mark.parametrize("offloaded", ["every other layer", "the base model", "everything"])
@each_family
def test_dispatched_models(family, offloaded, tmp_path):
    native = family.model()
    inputs = family.inputs(*PROMPTS)
    expected, ids, _, _ = answer(native, inputs)
    uncompressed, *_ = answer(family.upstream(native), inputs)
    family.upstream(native).save_pretrained(tmp_path / "upstream")
    places = device_map(native, offloaded)
    upstream = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "upstream", device_map=places, offload_folder=tmp_path / "offload"
    )
    model = flashvid(upstream, **settings_of(native))
    on_disk = {name for name, parameter in upstream.named_parameters() if parameter.is_meta}
    assert on_disk and on_disk == {name for name, parameter in model.named_parameters() if parameter.is_meta}
    assert model.hf_device_map == upstream.hf_device_map
    assert_logits(model, inputs, expected)
    assert_logits(upstream, inputs, uncompressed)
    again = flashvid(model, **settings_of(native))
    del model, upstream
    again.save_pretrained(tmp_path / "flashvid")
    assert_logits(again, inputs, expected)
    assert_logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "flashvid"), inputs, expected)
    if offloaded == "every other layer":  # in some families `generate` reads parameters outside upstream's hooks
        assert torch.equal(answer(again, inputs)[1], ids)


@each_family
def test_models_that_accelerate_offloads_or_dispatches(family, tmp_path):
    native = family.model()
    inputs = family.inputs(*PROMPTS)
    expected, *_ = answer(native, inputs)
    for dispatch in (
        lambda model: cpu_offload(model, torch.device("cpu")),
        lambda model: disk_offload(model, tmp_path / "whole", torch.device("cpu")),
        lambda model: dispatch_model(model, {"": "cpu"}, force_hooks=True),
        lambda model: dispatch_model(
            model, {"": "cpu", "model.language_model.layers.1": "disk"}, offload_dir=str(tmp_path / "layer")
        ),
    ):
        upstream = family.upstream(native)
        uncompressed, *_ = answer(upstream, inputs)
        dispatch(upstream)
        model = flashvid(upstream, **settings_of(native))
        assert_logits(model, inputs, expected)
        assert_logits(upstream, inputs, uncompressed)
        # The result has its own hook, which notes where the inputs of a call came from.
        assert model._hf_hook is not upstream._hf_hook


class Wrapper(torch.nn.Module):
    """Shows the attributes of what it wraps, as PEFT's models do."""

    def __init__(self, model):
        super().__init__()
        self.wrapped = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.wrapped, name)


@each_family
def test_other_models_are_refused(family):
    upstream = family.upstream(family.model())
    derived = copy.deepcopy(upstream)
    derived.__class__ = type("Derived", (type(upstream),), {})  # its overrides would be lost
    for model, name in (
        (torch.nn.Linear(1, 1), "Linear"),
        (upstream.base_model.language_model, type(upstream.base_model.language_model).__name__),
        (Wrapper(upstream), "Wrapper"),
        (Wrapper(flashvid(upstream)), "Wrapper"),
        (torch.compile(upstream, backend="eager"), "OptimizedModule"),
        (derived, "Derived"),
        ("a/repository", "str"),
        (None, "NoneType"),
    ):
        with pytest.raises(ValueError, match=f"`model` is a `{name}`: .*'qwen2_5_vl'.*Of a wrapped model pass"):
            flashvid(model)


@each_family
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retention_ratio": 0}, "`retention_ratio` is 0"),
        ({"token_selection_method": "best"}, "`token_selection_method` is 'best'"),
        ({"pruning_layer": 0}, "`pruning_layer` is 0"),
        ({"llm_retention_ratio": 2}, "`llm_retention_ratio` is 2"),
        ({"behavior": "best"}, "`behavior` is 'best'"),
    ],
)
def test_settings_are_checked_before_anything_is_touched(family, settings, message):
    upstream = family.upstream(family.model())
    before = upstream.config.to_dict()
    with pytest.raises(ValueError, match=message):
        flashvid(upstream, **settings)
    assert not any(module._forward_pre_hooks for module in upstream.modules())
    assert upstream.config.to_dict() == before


REMOTE_MODEL = """
from checkpoints import video_inputs
from transformers import AutoModelForImageTextToText, AutoProcessor

(folder,) = arguments
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)

from flashvid_hf import flashvid

settings = {"retention_ratio": 0.4, "pruning_layer": 2, "llm_retention_ratio": 0.5}
changed = flashvid(model, **settings)
assert type(changed) is type(model) and type(changed.config) is type(model.config)
inputs = video_inputs(AutoProcessor.from_pretrained(folder))
# The default settings of a family are not those of `flashvid`.
fields = {"token_selection_method": "attn_div_v2", "min_segment_num": 8}
expected = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, **settings, **fields).eval()
with torch.no_grad():
    found, before = changed(**inputs), model(**inputs)
    assert torch.equal(found.logits, expected(**inputs).logits)
assert found.report.entered != before.report.entered
"""


def test_models_of_remote_code_keep_their_classes(tmp_path):
    folder = build_flashvid_folder(tmp_path / "tiny")
    run_program(REMOTE_MODEL, folder, home=tmp_path / "home", with_package=True)


@pytest.mark.parametrize("name", RECIPES)
def test_upstream_classes_loaded_from_our_folder(name, tmp_path):
    """Their configuration says the model type of FlashVID, and their class is upstream's."""
    folder, record = build_flashvid_folder(tmp_path / "model", name), family_named(name)
    inputs = video_inputs(AutoProcessor.from_pretrained(folder))
    expected = flashvid(record.generative_model.from_pretrained(folder), retention_ratio=0.3)
    loaded = record.upstream_model.from_pretrained(folder)
    for model, kind in ((loaded, "generative_model"), (loaded.base_model, "base_model")):
        assert not hasattr(model.base_model, "install_hooks")
        made = flashvid(model, retention_ratio=0.3)
        assert type(made) is getattr(record, kind)
        with torch.no_grad():
            outputs, wanted = (model.base_model(**inputs) for model in (made, expected))
        assert torch.equal(outputs.last_hidden_state, wanted.last_hidden_state)
        assert outputs.report.compressed


def test_a_report_is_one_short_line():
    family = FAMILIES[0]
    with torch.no_grad():
        cache = family.model()(**family.inputs(["text", (4, 8, 8), "text"]))[CACHE]
    assert re.fullmatch(
        r"\(<CompressionReport: 1 videos, 64 tokens, \d+ entered, \d+ remained>,\)", repr(cache.reports)
    )
