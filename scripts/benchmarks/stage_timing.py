"""Times the parts of a call: rounds of runs that return their own times, and the stages of a model's `forward`."""

import functools
import gc
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from measuring import alternate, seconds

from flashvid_hf.models.upstream import CACHE


def attempt(run: Callable[[], Any]) -> Any:
    """The result of a run; `None` if the GPU has too little memory for it."""
    try:
        return run()
    except torch.OutOfMemoryError:
        pass  # the memory that the run held is free only after this block
    gc.collect()
    torch.cuda.empty_cache()
    return None


def alternate_stages(
    runs: dict[Any, Callable[[], dict[str, float]]], repeats: int
) -> dict[Any, dict[str, list[float]]]:
    """Like `alternate`, for runs that return the seconds of their stages. Runs out of memory have no result."""
    rounds = alternate({name: functools.partial(attempt, run) for name, run in runs.items()}, repeats=repeats)
    return {
        name: {stage: [stages[stage] for stages in of_run] for stage in of_run[0]} for name, of_run in rounds.items()
    }


def time_answer(model: Any, inputs: dict[str, torch.Tensor], new_tokens: int, device: str, **settings: Any):
    """Seconds of the first token, and the mean of the others. Which tokens are generated makes no difference."""
    outputs: Any = None
    token = inputs["input_ids"][:, -1:]

    def read() -> None:
        nonlocal outputs
        outputs = model(**inputs, use_cache=True, logits_to_keep=1, **settings)
        outputs.logits.argmax(-1)

    def write() -> None:
        for _ in range(new_tokens - 1):
            model(input_ids=token, **{CACHE: outputs[CACHE]}, use_cache=True).logits.argmax(-1)

    first = seconds(read, device)
    return {"time_to_first_token": first, "per_token": seconds(write, device) / (new_tokens - 1)}


@contextmanager
def stopwatch(parts: list[tuple[str, Any, str]], device: str) -> Iterator[dict[str, float]]:
    """Seconds that methods take inside the `with` block, all calls together.

    Args:
        parts: for each stage its name, the object, and the name of the method.
    """
    spent: dict[str, float] = defaultdict(float)

    def watch(stage: str, method: Callable) -> Callable:
        @functools.wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = None

            def run() -> None:
                nonlocal result
                result = method(*args, **kwargs)

            spent[stage] += seconds(run, device)
            return result

        return watched

    for stage, owner, name in parts:
        setattr(owner, name, watch(stage, getattr(owner, name)))
    try:
        yield spent
    finally:
        for _, owner, name in parts:
            delattr(owner, name)  # the method of the class is visible again


def time_stages(model: Any, inputs: dict[str, torch.Tensor], device: str, **settings: Any) -> dict[str, float]:
    base = model.model
    parts = [("features", base, "get_video_features"), ("prefill", base.language_model, "forward")]
    if hasattr(base, "visual"):
        parts += [("vision", base.visual, "forward")]
    else:
        parts += [("vision", module, "forward") for module in (base.vision_tower, base.multi_modal_projector)]
        parts += [("vision", base, "apply_pooling")]
    with stopwatch(parts, device) as spent:
        whole = seconds(lambda: model(**inputs, use_cache=True, logits_to_keep=1, **settings), device)
    stages = {"vision": spent["vision"], "prefill": spent["prefill"]}
    if settings:  # upstream only appends a newline there, which belongs to the rest
        stages["compression"] = spent["features"] - spent["vision"]
    return {**stages, "rest": whole - sum(stages.values())}
