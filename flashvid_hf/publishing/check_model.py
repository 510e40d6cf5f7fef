"""Checks of the folder's model, by the findings of `clean_probe` in a process without the package."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from ..models.family import VideoGeometry
from .clean_probe import NUM_FRAMES
from .hub_folder import CheckFailure, CheckSkipped, HubFolder, is_of_the_commit, last_lines

# Differences from upstream up to this share of the largest logit count as rounding. For float16 and bfloat16 the share
# is four times the machine epsilon (2^-10 and 2^-7).
ROUNDING = {"float32": 2e-5, "float16": 4 * 2**-10, "bfloat16": 4 * 2**-7}
# A difference up to this share of the largest logit counts as none: the rounding of float32.
LEAST_DIFFERENCE = 2e-5


def check_loads_from_path(folder: HubFolder) -> Iterator[str]:
    """The Auto classes load the folder from its path, with its own code."""
    if "loading" not in folder.findings:
        raise CheckFailure(f"the folder does not load: {last_lines(folder.findings['errors']['local'])}")
    expected = str((folder.config.get("auto_map") or {}).get("AutoModelForImageTextToText"))
    found = folder.findings["loading"]["class"]
    if not (found.startswith("transformers_modules.") and found.endswith(f".{expected}")):
        yield f"the folder loads as `{found}`, not by its own code as `{expected}`: correct `auto_map` in config.json"


def check_loads_from_hub(folder: HubFolder) -> Iterator[str]:
    """The folder loads by a Hub id at a revision, and gives the same logits as from its path."""
    if "hub_loading" not in folder.findings:
        if "loading" not in folder.findings:
            raise CheckSkipped("the folder does not even load from its path, see above")
        raise CheckFailure(f"the folder does not load by a Hub id: {last_lines(folder.findings['errors']['hub'])}")
    found = folder.findings["hub_loading"]["class"]
    if not is_of_the_commit(found):
        yield f"by a Hub id with a revision it loads as `{found}`, not by the code of that revision"
    elif not folder.findings["loading"]["missing_keys"]:  # missing weights would be random
        local, hub = folder.finding("compressed"), folder.finding("hub_compressed", "hub")
        if not torch.equal(local["logits"], hub["logits"]):
            yield "by a Hub id it gives other logits than from its path: look for code that depends on its location"


def check_keys(folder: HubFolder) -> Iterator[str]:
    """The model uses every weight of the folder, and the folder has every weight of the model."""
    steps = {
        "missing_keys": "they would be random, save them",
        "unexpected_keys": "nothing reads them, remove them",
        "mismatched_keys": "their shapes are others, correct the sizes in config.json",
    }
    loading = folder.finding("loading")
    for kind, step in steps.items():
        if loading[kind]:
            first = ", ".join(loading[kind][:3])
            yield f"the weights have {len(loading[kind])} {kind.replace('_', ' ')}, first {first}: {step}"


def check_equals_upstream(folder: HubFolder) -> Iterator[str]:
    """With `retention_ratio=1.0` the logits equal upstream's: bit for bit in exact families, else up to rounding."""
    own = folder.finding("whole")
    if folder.family.upstream_settings:
        own = folder.finding("whole_as_upstream")
    upstream, dtype = folder.finding("upstream"), folder.finding("loading")["dtype"]
    tolerance = 0.0 if folder.family.is_exact else ROUNDING.get(dtype, 0.0) * _scale(upstream)
    difference = _difference(own, upstream)
    if not difference <= tolerance:  # also where it is NaN
        yield (
            f"with `retention_ratio=1.0` the logits differ from upstream's by up to {difference:.3g} in {dtype}, at "
            f"most {tolerance:.3g} is rounding: the model must compute what upstream's does"
        )


def check_differs_from_upstream(folder: HubFolder) -> Iterator[str]:
    """At the configured ratio the compression changes the output."""
    compressed, whole = folder.finding("compressed"), folder.finding("whole")
    if _difference(compressed, whole) <= LEAST_DIFFERENCE * _scale(whole):
        ratio = folder.config.get("retention_ratio")
        yield f"with `retention_ratio` {ratio} the output is that of the upstream model: the compression does nothing"


def check_counts(folder: HubFolder) -> Iterator[str]:
    """The report and the caches have as many video tokens as the configuration says, and fewer at every stage."""
    config, compressed = folder.full_config, folder.finding("compressed")
    if compressed["counts"] is None:
        raise CheckFailure("the output of `generate` has no `report`: the model does not say what it compressed")
    ((total,), (entered,), (remained,)) = compressed["counts"]
    if not 0 < entered < total:
        yield f"{entered} of {total} video tokens entered the language model: it compresses nothing"
    if not 0 < remained < entered:
        yield f"{remained} of {entered} video tokens remained in the upper layers: it prunes nothing"
    if config.behavior != "paper":
        return  # there the counts depend on the video
    expected = expect_counts(folder.family.geometry, config, folder.finding("inputs"), entered)
    if (total, entered, remained) != expected:
        yield (
            f"the report has {total} video tokens, {entered} entered, {remained} remained; by config.json they are "
            f"{expected[0]}, {expected[1]}, {expected[2]}"
        )
    text = folder.finding("prompt_length") - expected[0]
    for layer, columns in enumerate(compressed["prompt_columns"]):
        wanted = text + expected[1 if layer < config.pruning_layer else 2]
        if columns != wanted:
            yield f"layer {layer} caches {columns} columns of the prompt; by config.json they are {wanted}"
            break


def expect_counts(
    geometry: VideoGeometry, config: Any, inputs: dict[str, torch.Tensor], entered: int
) -> tuple[int, int, int]:
    """Total, entered and remaining video tokens of the probe's video in behavior "paper", from the settings alone.

    Args:
        geometry: of the family.
        config: of the folder's model.
        inputs: of the model, without the pixels.
        entered: the reported number of tokens that entered. It is used only if the family drops newlines, because the
            number of dropped newlines depends on the video.
    """
    ((rows, columns),) = geometry.grids_of_call(config, inputs, 1)
    num_grids, num_tokens = math.ceil(NUM_FRAMES / geometry.frames_per_grid(config)), rows * columns
    kept = num_grids * min(num_tokens, math.ceil(num_tokens * config.retention_ratio * config.expansion))
    newlines = kept_newlines = geometry.num_newlines(config, num_grids, rows)
    if geometry.drops_newlines(config):
        kept_newlines = max(1, min(newlines, entered - kept))
    remained = math.ceil(config.llm_retention_ratio * kept)
    return num_grids * num_tokens + newlines, kept + kept_newlines, remained + kept_newlines


def _difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    return (one["logits"] - other["logits"]).abs().max().item()


def _scale(observed: dict[str, Any]) -> float:
    return max(1.0, observed["logits"].abs().max().item())
