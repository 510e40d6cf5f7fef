"""One case of `bench_generation.py`: upstream, FlashVID and the floor on the same weights and the same input."""

import copy
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
from measuring import PeakMemory, seconds, summarize
from stage_timing import alternate_stages, attempt, time_answer, time_stages
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from flashvid_hf import FAMILIES, flashvid

Point = dict[str, Any]


def share_weights(upstream: PreTrainedModel) -> Any:
    """A FlashVID model over the weights of upstream's, with the defaults of the family and of the depth.

    Its modules are copies that hold the same weights, so that upstream's own modules get no hooks.
    """
    tensors = itertools.chain(upstream.parameters(), upstream.buffers())
    twin = copy.deepcopy(upstream, {id(tensor): tensor for tensor in tensors})
    (config_class,) = (f.config for f in FAMILIES if upstream.config.model_type in _model_types(f.config))
    config = config_class.from_dict({**upstream.config.to_dict(), "model_type": config_class.model_type})
    settings = [name for name in inspect.signature(flashvid).parameters if name not in ("model", "retention_ratio")]
    return flashvid(twin, **{name: getattr(config, name) for name in settings})


def _model_types(config_class: Any) -> tuple[str, str]:
    return config_class.model_type, config_class.base_model_type


def mean_tokens(config: Any, entered: int, remained: int) -> int:
    """Video tokens that a layer of the language model sees on average."""
    depth = config.get_text_config().num_hidden_layers
    lower = min(config.pruning_layer, depth)
    return round((lower * entered + (depth - lower) * remained) / depth)


class GenerationCase:
    """One number of frames. It runs upstream, and for every ratio FlashVID and the floor; a run is a name and a ratio.

    Args:
        upstream, compressed: the two models over the same weights.
        inputs: the inputs of one prompt with one video.
        given: the arguments of the program.
    """

    def __init__(self, upstream: Any, compressed: Any, inputs: dict[str, torch.Tensor], given: Any):
        self.upstream, self.inputs, self.given = upstream, inputs, given
        self.config, self.device = compressed.config, given.device
        self.video = [inputs[name] for name in ("pixel_values_videos", "video_grid_thw") if name in inputs]
        self.total = int((inputs["input_ids"] == self.config.video_token_id).sum())
        # For every run its model, and the arguments of a call beside the inputs.
        self.models: dict[Any, tuple[Any, dict[str, Any]]] = {("upstream", None): (upstream, {})}
        self.models.update({("flashvid", ratio): (compressed, {"retention_ratio": ratio}) for ratio in given.ratios})
        self.kept: dict[float, int] = {}  # by ratio: video tokens that a layer sees on average

    @torch.no_grad()
    def measure(self) -> list[Point]:
        points = self.measure_memory()
        self.measure_time(points)
        return [{"run": run, "retention_ratio": ratio, **point} for (run, ratio), point in points.items()]

    def encode(self) -> None:
        self.upstream.model.get_video_features(*self.video)

    def read_kept(self, num_tokens: int) -> None:
        length = self.inputs["input_ids"].shape[1] - self.total + num_tokens
        size = (1, length, self.config.text_config.hidden_size)
        rows = torch.randn(size, device=self.device, dtype=self.upstream.dtype)
        states = self.upstream.model.language_model(inputs_embeds=rows, use_cache=True).last_hidden_state
        self.upstream.lm_head(states[:, -1:])

    def generate(self, model: Any, **settings: Any) -> Any:
        """The report of an answer; upstream's models have none (`None`)."""
        outputs = model.generate(
            **self.inputs,
            **settings,
            max_new_tokens=self.given.new_tokens,
            do_sample=False,
            suppress_tokens=[self.config.image_token_id, self.config.video_token_id],
            return_dict_in_generate=True,
        )
        return getattr(outputs, "report", None)

    def measure_memory(self) -> dict[Any, Point]:
        """A point for each run, with its video tokens and its peak memory."""
        points: dict[Any, Point] = {}
        attempt(self.encode)  # the first call allocates the permanent work space of the GPU's libraries
        for name, (model, settings) in tqdm(self.models.items(), desc="memory", leave=False):
            report, peak = self.find_peak(functools.partial(self.generate, model, **settings))
            counts = {"total": self.total}
            if settings and report is not None:
                counts.update({"entered": report.entered[0], "remained": report.remained[0]})
                self.kept[name[1]] = mean_tokens(self.config, counts["entered"], counts["remained"])
            points[name] = {"video_tokens": counts, **peak}
        for ratio, num_tokens in self.kept.items():
            _, peak = self.find_peak(lambda num_tokens=num_tokens: (self.encode(), self.read_kept(num_tokens)))
            points["floor", ratio] = {"video_tokens": {"total": self.total, "mean": num_tokens}, **peak}
        return points

    def find_peak(self, run: Callable[[], Any]) -> tuple[Any, Point]:
        """The result of a run and its peak memory, or the note that it is out of memory."""

        def measured() -> tuple[Any, Point]:
            with PeakMemory(self.device) as memory:
                result = run()
            return result, {"peak_memory": memory.bytes}

        return attempt(measured) or (None, {"out_of_memory": True})

    def measure_time(self, points: dict[Any, Point]) -> None:
        """Add times to the points, except to those out of memory."""
        device = self.device
        fitting = {name: given for name, given in self.models.items() if "peak_memory" in points[name]}
        calls: dict[Any, Callable[[], dict[str, float]]] = {
            name: functools.partial(time_answer, model, self.inputs, self.given.new_tokens, device, **settings)
            for name, (model, settings) in fitting.items()
        }
        calls["vision"] = lambda: {"seconds": seconds(self.encode, device)}
        for ratio, kept in self.kept.items():
            read = functools.partial(self.read_kept, kept)
            calls["floor", ratio] = lambda read=read: {"seconds": seconds(read, device)}
        whole = alternate_stages(calls, self.given.repeats)
        parts = alternate_stages(
            {name: functools.partial(time_stages, m, self.inputs, device, **s) for name, (m, s) in fitting.items()},
            self.given.repeats,
        )
        for name in fitting:
            if name not in whole:
                points[name]["out_of_memory"] = True
                continue
            points[name].update({stage: summarize(values) for stage, values in whole[name].items()})
            if name in parts:
                points[name]["stages"] = {stage: summarize(values) for stage, values in parts[name].items()}
        for ratio in self.kept:
            if "vision" in whole and ("floor", ratio) in whole:
                vision, prefill = whole["vision"]["seconds"], whole["floor", ratio]["seconds"]
                both = (sum(times) for times in zip(vision, prefill, strict=True))
                stages = {"vision": summarize(vision), "prefill": summarize(prefill)}
                points["floor", ratio].update({"time_to_first_token": summarize(both), "stages": stages})
