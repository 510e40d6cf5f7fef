"""The contract with transformers: each assumption about it is a test of a few lines.

If a new release breaks something, the name of the failing test says what has changed. No test generates text, so the
whole file takes seconds. Run it first: `python -m pytest -n 0 tests/test_upstream.py`.
"""

import functools
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    Pipeline,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import ModelOutput
from transformers.utils.chat_template_utils import Chat
from transformers.video_utils import VideoMetadata
from transformers.vision_utils import get_vision_window_index

from flashvid_hf import FAMILIES as CLASSES
from flashvid_hf.models import upstream
from flashvid_hf.models.upstream import (
    CACHE,
    TAKES_ENCODED_VIDEOS,
    output_class,
    rename_cache,
    takes_arguments_of,
)
from flashvid_hf.video.pipeline_flashvid import generate_arguments

PACKAGE = Path(upstream.__file__).parent
QWEN = [family for family in FAMILIES if family.name.startswith("qwen")]
LLAVA = [family for family in FAMILIES if family.name == "llava_onevision"]
MODELS = [model for classes in CLASSES for model in (classes.base_model, classes.generative_model)]

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
each_qwen = pytest.mark.parametrize("family", QWEN, ids=lambda family: family.name)
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@functools.cache
def upstream_model(family: Any) -> Any:
    """A tiny model of upstream's class with random weights."""
    return family.upstream_class(family.make_config(family.upstream_config_class)).eval()


def takes_others(function: Any) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters(function).values())


def upstream_of(model: type) -> Any:
    """The class of transformers from which a class of ours derives."""
    return next(base for base in model.__mro__ if base.__module__.startswith("transformers.models."))


# The name of the cache.


def test_upstream_has_one_of_the_two_names_for_the_cache():
    assert len({"cache", "past_key_values"} & parameters(create_causal_mask).keys()) == 1


@each_model
def test_forward_names_the_cache_alike_everywhere(model):
    assert CACHE in parameters(upstream_of(model).forward)


@each_family
def test_the_language_model_and_its_layers_name_the_cache_alike(family):
    language_model = upstream_model(family).model.language_model
    assert CACHE in parameters(language_model.forward)
    assert CACHE in parameters(language_model.layers[0].forward)


def test_the_outputs_of_generate_name_the_cache_alike():
    assert CACHE in transformers.generation.GenerateDecoderOnlyOutput.__dataclass_fields__
    assert CACHE in transformers.generation.GenerateBeamDecoderOnlyOutput.__dataclass_fields__


@each_family
def test_accelerate_leaves_the_cache_where_it_is(family):
    assert CACHE in upstream_model(family)._skip_keys_device_placement


# `forward`.


@each_model
def test_forward_takes_what_upstreams_takes_in_its_order(model):
    theirs, ours = (parameters(function) for function in (upstream_of(model).forward, model.forward))
    shared = [name for name in theirs if name != "kwargs"]
    assert list(ours)[: len(shared)] == shared and list(ours)[-1] == "kwargs"
    assert {"mm_encoder_outputs", "use_cache", "query_index"} <= ours.keys()
    assert all(ours[name].default == theirs[name].default for name in shared)


@each_model
def test_every_argument_of_upstreams_forward_means_something_to_us(model):
    """If a new version adds an argument, it is refused for compressed videos until `known_inputs` has it."""
    base = next(m for m in MODELS if m.__module__ == model.__module__ and hasattr(m, "known_inputs"))
    theirs = {"cache" if name == CACHE else name for name in parameters(upstream_of(model).forward)}
    own = {"self", "kwargs", "labels", "logits_to_keep", "output_router_logits"}
    assert theirs - own <= base.known_inputs()


@each_family
def test_an_unknown_argument_is_refused_with_compressed_videos(family, monkeypatch):
    model = family.model().model
    inputs = family.inputs(("text", (4, 4, 4), "text"))
    known = type(model).known_inputs() - {"pixel_values_videos"}
    monkeypatch.setattr(type(model), "known_inputs", classmethod(lambda cls: known))
    with pytest.raises(ValueError, match="`pixel_values_videos` is given, and FlashVID does not know .* Leave it out"):
        model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values_videos")})


@each_model
def test_outputs_have_every_field_that_the_code_of_forward_gives_them(model):
    """The code of `forward` makes an output by the name of its class; the annotation may name another class."""
    found = output_class(upstream_of(model))
    assert issubclass(found, ModelOutput) and issubclass(model.output_class, found)
    forward = inspect.unwrap(upstream_of(model).forward)
    named = (forward.__globals__.get(name) for name in forward.__code__.co_names)
    made = [part for part in named if isinstance(part, type) and issubclass(part, ModelOutput)]
    assert made or found is BaseModelOutputWithPast  # 5.23 hands the output of the language model on
    for part in made:
        assert set(part.__dataclass_fields__) <= set(model.output_class.__dataclass_fields__)
    assert {CACHE, "hidden_states", "attentions"} <= set(found.__dataclass_fields__)


@each_model
def test_an_output_registers_itself_whatever_its_fields(model):
    values = {name: torch.ones(1) for name in model.output_class.__dataclass_fields__}
    found = model.output_class(**values)
    assert list(found) == list(values) and found.token_index is values["token_index"]


@each_family
def test_layers_hand_unknown_arguments_on(family):
    language_model = upstream_model(family).model.language_model
    assert takes_others(language_model.forward) and takes_others(language_model.layers[0].forward)


@each_family
def test_layers_have_what_ranks_the_tokens(family):
    layer = upstream_model(family).model.language_model.layers[0]
    assert isinstance(layer.input_layernorm, torch.nn.Module) and layer.self_attn.layer_idx == 0
    assert all(hasattr(layer.self_attn, name) for name in ("q_proj", "k_proj", "head_dim", "scaling"))
    assert {"attention_mask", "position_ids", "position_embeddings"} <= parameters(layer.forward).keys()


@each_family
def test_models_find_placeholders_in_embeddings(family):
    assert {"input_ids", "inputs_embeds"} <= parameters(upstream_model(family).model.get_placeholder_mask).keys()


@each_qwen
def test_qwen_places_prompts_by_one_function(family):
    names = {"input_ids", "inputs_embeds", "attention_mask", CACHE, "image_grid_thw", "video_grid_thw"}
    model = family.model().model
    assert names | set(model.position_inputs) <= parameters(upstream_model(family).model.compute_3d_position_ids).keys()
    assert hasattr(upstream_model(family).model, "rope_deltas")


def test_causal_masks_can_be_made_for_one_layer():
    names = {"config", "inputs_embeds", "attention_mask", CACHE, "layer_idx"}
    assert names <= parameters(create_causal_mask).keys()


# The cache.


def test_a_dynamic_cache_has_the_methods_that_ours_extends():
    for name, argument in {
        "get_seq_length": "layer_idx",
        "get_query_offset": "layer_idx",
        "crop": "tokens_to_remove",
        "reorder_cache": "beam_idx",
        "batch_repeat_interleave": "repeats",
        "batch_select_indices": "indices",
    }.items():
        assert argument in parameters(getattr(DynamicCache, name)), name
    assert not set(parameters(DynamicCache.reset)) - {"self"}


@each_family
def test_a_dynamic_cache_is_made_from_a_configuration_and_has_layers(family):
    cache = DynamicCache(config=upstream_model(family).config.get_text_config())
    assert len(cache.layers) == 6 and cache.offloading is False
    cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    assert cache.layers[0].keys.shape == (1, 2, 3, 4) and cache.get_seq_length() == 3


# `generate`.


def test_generate_begins_with_inputs_and_generation_config():
    assert list(parameters(GenerationMixin.generate))[:3] == ["self", "inputs", "generation_config"]


def test_generate_calls_the_methods_that_ours_override():
    for name, arguments in {
        "_validate_model_kwargs": {"model_kwargs"},
        "_get_candidate_generator": {"model_kwargs"},
        "_prepare_cache_for_generation": {"generation_config", "model_kwargs"},
        "_expand_inputs_for_generation": {"expand_size", "is_encoder_decoder", "input_ids"},
        "_prepare_position_ids_for_generation": {"inputs_tensor", "model_kwargs"},
        "prepare_inputs_for_generation": {"inputs_embeds", "is_first_iteration"},
    }.items():
        assert arguments <= parameters(getattr(GenerationMixin, name)).keys(), name


def test_generate_compares_its_arguments_with_the_signature_of_forward():
    source = inspect.getsource(GenerationMixin._validate_model_kwargs)
    assert "inspect.signature(self.forward).parameters" in source


def test_generate_marks_the_cache_of_the_caller():
    assert "_is_user_defined = True" in inspect.getsource(GenerationMixin._prepare_cache_for_generation)


@pytest.mark.skipif(not TAKES_ENCODED_VIDEOS, reason="before transformers 5.18 videos are encoded in `forward`")
def test_generate_repeats_encoded_videos_by_one_function():
    names = {"input_ids", "mm_encoder_output"}
    assert names <= parameters(GenerationMixin._expand_multimodal_outputs).keys()


# The vision towers.


@each_qwen
def test_qwens_tower_has_packed_attention_with_a_joint_projection(family):
    visual = upstream_model(family).model.visual
    attention = visual.blocks[-1].attn
    assert all(hasattr(attention, name) for name in ("qkv", "num_heads", "scaling"))
    assert {"hidden_states", "cu_seqlens", "position_embeddings"} <= parameters(attention.forward).keys()
    assert takes_others(visual.forward) and takes_others(visual.blocks[-1].forward)


@pytest.mark.parametrize("family", [family for family in QWEN if family.windows], ids=lambda family: family.name)
def test_qwens_tower_sorts_its_tokens_by_windows(family):
    names = {"spatial_merge_size", "window_size", "patch_size"}
    assert names <= parameters(get_vision_window_index).keys()
    assert all(hasattr(upstream_model(family).model.visual, name) for name in names)


@each_qwen
def test_qwens_features_are_one_tensor_for_every_video(family):
    inputs = family.inputs(["text", (2, 8, 4), "text", (4, 8, 8)])
    found = upstream_model(family).model.get_video_features(
        inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True
    )
    assert [len(rows) for rows in found.pooler_output] == [2 * 8, 4 * 16]
    for level in getattr(found, "deepstack_features", None) or ():
        assert upstream.join_level(level).shape == torch.cat(tuple(found.pooler_output)).shape


@pytest.mark.parametrize("family", LLAVA, ids=lambda family: family.name)
def test_llavas_tower_has_layers_with_split_projections(family):
    model = upstream_model(family).model
    attention = model.vision_tower.encoder.layers[-1].self_attn
    assert model.config.vision_config.model_type == "siglip_vision_model"
    assert all(hasattr(attention, name) for name in ("q_proj", "k_proj", "head_dim", "num_heads", "scale"))
    assert takes_others(model.vision_tower.forward) and takes_others(attention.forward)
    assert isinstance(model.image_newline, torch.nn.Parameter)
    assert "image_features" in parameters(model.apply_pooling)


# Loading and saving.


def test_loading_says_which_weights_were_missing():
    assert "output_loading_info" in inspect.getsource(PreTrainedModel.from_pretrained)
    assert "key_mapping" in inspect.getsource(PreTrainedModel.from_pretrained)


def test_experts_have_a_mapping_of_checkpoint_names():
    assert get_checkpoint_conversion_mapping("qwen3_vl_moe")


def test_configurations_have_the_methods_that_ours_extend():
    for name in ("get_config_dict", "from_dict", "to_dict", "get_text_config"):
        assert callable(getattr(PreTrainedConfig, name))
    found, unused = PreTrainedConfig.from_dict({}, return_unused_kwargs=True, nothing=1)
    assert isinstance(found, PreTrainedConfig) and unused == {"nothing": 1}


@each_family
def test_configurations_keep_the_attention_of_each_tower(family):
    config = upstream_model(family).config
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        assert hasattr(part, "_attn_implementation") and hasattr(part, "_experts_implementation")


def test_remote_code_may_import_the_files_beside_it(tmp_path):
    """The loader copies the files that `from .name import` names, directly or through other files, and no others."""
    (tmp_path / "first.py").write_text("from .second import a\nimport torch\n")
    (tmp_path / "second.py").write_text("from .third import a\n")
    (tmp_path / "third.py").write_text("a = 1\n")
    assert get_relative_imports(tmp_path / "first.py") == ["second"]
    found = {Path(path).name for path in get_relative_import_files(tmp_path / "first.py")}
    assert found == {"second.py", "third.py"}


# Processors and pipelines.


def test_video_metadata_has_the_fields_that_we_fill_in():
    names = {"total_num_frames", "fps", "width", "height", "duration", "video_backend", "frames_indices"}
    assert names <= parameters(VideoMetadata).keys()


def test_processors_have_the_methods_that_we_call():
    names = {"add_generation_prompt", "tokenize", "continue_final_message"}
    assert names <= parameters(ProcessorMixin.apply_chat_template).keys()
    assert callable(ProcessorMixin.get_processor_dict) and callable(ProcessorMixin.register_for_auto_class)


def test_a_pipeline_says_what_it_loads_by_class_attributes():
    for name in ("_load_processor", "_load_image_processor", "_load_feature_extractor", "_load_tokenizer"):
        assert hasattr(Pipeline, name), name
    assert hasattr(Pipeline, "_pipeline_calls_generate")
    assert "_default_generation_config" in inspect.getsource(Pipeline.__init__)


def test_a_pipeline_wraps_chats():
    messages = [{"role": "user", "content": "Hello"}]
    assert Chat(messages).messages == messages


def test_a_task_is_registered_by_name():
    names = {"task", "pipeline_class", "pt_model", "type"}
    assert names <= parameters(PIPELINE_REGISTRY.register_pipeline).keys()


# Our own side of the boundary.


def test_either_name_of_the_cache_is_renamed():
    cache = DynamicCache()
    for name in ("cache", "past_key_values"):
        assert rename_cache({name: cache, "a": 1}) == {CACHE: cache, "a": 1}
        assert rename_cache({name: None}, "cache") == {"cache": None}
    assert rename_cache({"cache": None, "past_key_values": cache}, "cache") == {"cache": cache}
    assert rename_cache({"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match="`cache` and `past_key_values` are both given.*Pass only one"):
        rename_cache({"cache": cache, "past_key_values": cache})


class Upstream:
    """Takes the place of a model of transformers."""

    def forward(self, first=None, cache=None, labels=None, keep=0, **kwargs) -> tuple:
        raise NotImplementedError


Upstream.forward.__signature__ = inspect.signature(Upstream.forward).replace(
    parameters=[p.replace(name=CACHE) if n == "cache" else p for n, p in parameters(Upstream.forward).items()]
)


def test_a_method_takes_the_arguments_of_upstreams_forward():
    class Model:
        @takes_arguments_of(Upstream)
        def forward(self, inputs, labels=None, query_index=None, **kwargs):
            return inputs, labels, query_index, kwargs

    shown = ["self", "first", CACHE, "labels", "keep", "mm_encoder_outputs", "use_cache", "query_index", "kwargs"]
    assert list(parameters(Model.forward)) == shown
    forward = Model().forward
    assert "self" not in parameters(forward) and parameters(forward)["keep"].default == 0
    none = {"mm_encoder_outputs": None, "use_cache": None}
    assert forward() == ({"first": None, "cache": None, "keep": 0, **none}, None, None, {})
    for call in (
        lambda: forward(1, 2, x=3),
        lambda: forward(1, cache=2, x=3),
        lambda: forward(1, past_key_values=2, x=3),
        lambda: forward(first=1, cache=2, past_key_values=None, x=3),
    ):
        assert call() == ({"first": 1, "cache": 2, "keep": 0, **none}, None, None, {"x": 3})
    expected = ({"first": 1, "cache": None, "keep": 5, **none, "use_cache": True}, 4, 6, {})
    assert forward(1, None, 4, 5, use_cache=True, query_index=6) == expected
    with pytest.raises(TypeError, match=r"takes 4 arguments by place, and 5 were given"):
        forward(1, 2, 3, 4, 5)
    for name in ("cache", "past_key_values"):
        with pytest.raises(TypeError, match="`cache` twice"):
            forward(1, 2, **{name: 3})
    with pytest.raises(ValueError, match="both given"):
        forward(1, cache=2, past_key_values=3)


def test_a_pipeline_prepares_the_arguments_of_generate():
    class Old:
        generation_config = GenerationConfig(max_new_tokens=7)

    class New(Old):
        def _prepare_generate_kwargs(self, generate_kwargs, **overrides):
            return {"prepared": True, **generate_kwargs, **overrides}

    made = generate_arguments(Old(), {"a": 1}, b=2)
    assert made == {"generation_config": Old.generation_config, "a": 1, "b": 2}
    assert generate_arguments(New(), {"a": 1}, b=2) == {"prepared": True, "a": 1, "b": 2}


def test_versions_are_compared_nowhere_else():
    """Differences between versions of transformers are handled in `upstream.py` only.

    `versions.py` reads the versions that cards state, for `check`. The configuration names the cache among the outputs
    that trainers leave out, under both names, and its published file cannot import `upstream.py`.
    """
    compared = re.compile(r"transformers\.__version__|packaging|importlib.metadata|transformers 5\.\d+|past_key_values")
    for path in PACKAGE.rglob("*.py"):
        found = [line for line in path.read_text().splitlines() if compared.search(line)]
        if path.name == "configuration.py":
            found = [line for line in found if line.strip() != '"past_key_values",']
        assert path in (PACKAGE / "upstream.py", PACKAGE / "tools" / "versions.py") or not found, (path, found)
