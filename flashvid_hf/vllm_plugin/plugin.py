"""vLLM calls this in each of its processes: our architectures are registered, their configurations set engine options.

The entry point `vllm.general_plugins` names `register`.
"""

from typing import Any

from ..families import FAMILIES
from .settings import engine_method, flashvid_config
from .weightless import lead_to_base

# The class that vLLM imports for a name in a checkpoint's `architectures`, as "module:class".
ARCHITECTURES = {family.generative_model.__name__: family.vllm for family in FAMILIES if family.vllm is not None}
# A rate that was computed from a ratio may differ in the last digits.
_TOLERANCE = 1e-6
# Methods of speculative decoding that do not read embeddings.
_BLIND_DRAFTERS = ("ngram", "ngram_gpu", "suffix")


def register() -> None:
    """Register our architectures in vLLM; a second call changes nothing."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for architecture, target in ARCHITECTURES.items():
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, target)
        MODELS_CONFIG_MAP[architecture] = EngineOptions
    _let_the_cpu_runner_prune()


class EngineOptions:
    """The hook that vLLM calls with the options of an engine that runs one of our architectures."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Derive the pruning rate from the model's configuration, and find the files of a weightless folder.

        Raises:
            ValueError: a field of the configuration is out of range, or an option contradicts the configuration.
        """
        config = flashvid_config(model_config.hf_config, model_config.architecture)
        if config is not model_config.hf_config:
            model_config.hf_config, model_config.hf_text_config = config, config.get_text_config()
        options, method = model_config.multimodal_config, engine_method(config)
        rate, given = 1 - method.entering_ratio if method is not None else 0.0, options.video_pruning_rate
        if given is not None and abs(given - rate) > _TOLERANCE:
            raise ValueError(
                f"`video_pruning_rate` is {given} and the model's configuration asks for {rate:g} "
                f"(`retention_ratio` {config.retention_ratio}). Leave the option out, or set the ratio with "
                f'`hf_overrides={{"retention_ratio": {1 - given:g}}}`.'
            )
        options.video_pruning_rate = rate if rate > 0 else None
        lead_to_base(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse options that would give wrong results.

        Raises:
            ValueError: such an option is set; the message names it and what to choose instead.
        """
        model_config = vllm_config.model_config
        options = model_config.multimodal_config
        if not options.is_multimodal_pruning_enabled():
            return
        compilation, parallel = vllm_config.compilation_config, vllm_config.parallel_config
        speculative = vllm_config.speculative_config
        drafter = None if speculative is None else speculative.method
        refused = {
            "mm_encoder_tp_mode": (options.mm_encoder_tp_mode == "data", "'data'", "'weights'"),
            "enable_mm_embeds": (options.enable_mm_embeds, "True", "False"),
            "compile_mm_encoder": (getattr(compilation, "compile_mm_encoder", False), "True", "False"),
            "cudagraph_mm_encoder": (getattr(compilation, "cudagraph_mm_encoder", False), "True", "False"),
            "pipeline_parallel_size": (
                model_config.uses_mrope and parallel.pipeline_parallel_size > 1,
                parallel.pipeline_parallel_size,
                "1, with a larger `tensor_parallel_size`",
            ),
            "speculative_config": (
                drafter is not None and drafter not in _BLIND_DRAFTERS,
                f"{drafter!r}",
                f"one of {', '.join(map(repr, _BLIND_DRAFTERS))}, or none",
            ),
        }
        for name, (is_set, value, instead) in refused.items():
            if is_set:
                raise ValueError(
                    f"`{name}` is {value}, and the videos are compressed: the attention in the vision tower, or the "
                    f"positions of the kept tokens, would be lost. Choose {instead}, or turn the compression off with "
                    '`hf_overrides={"retention_ratio": 1.0}`.'
                )


def _let_the_cpu_runner_prune() -> None:
    """Tell the model runner for CPUs that pruning is on: up to vLLM 0.32 only the runner for GPUs looks by itself."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.models.interfaces import supports_multimodal_pruning
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load_model = CPUModelRunner.load_model
    if getattr(load_model, "asks_for_pruning", False):
        return

    def load_and_ask(self: Any, *args: Any, **kwargs: Any) -> None:
        load_model(self, *args, **kwargs)
        options = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = (
            options is not None
            and supports_multimodal_pruning(self.get_model())
            and options.is_multimodal_pruning_enabled()
        )

    load_and_ask.asks_for_pruning = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load_and_ask
