"""Loads a folder as its users do, and records the findings. The text of this file is run as a program.

`Workplace.run` runs it in an interpreter that cannot import `flashvid_hf`, so it imports nothing of the package. It
does not judge the findings: `check_model.py` does.

    python -c <this text> REQUEST FINDINGS    # JSON that `HubFolder.findings` writes, a file that `torch.load` reads
"""

import gc
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, set_seed
from transformers.cache_utils import Cache

# The probe's video: height and width are multiples of 28 pixels, the side of a Qwen2.5-VL token.
NUM_FRAMES, HEIGHT, WIDTH, NUM_SCENES = 16, 168, 224, 3
NUM_NEW_TOKENS = 4  # tokens that each answer of the probe has
MOST_FLOAT32_PARAMETERS = 2e9  # 8 GB in float32; a larger model is compared in the dtype of its checkpoint


def make_scenes(num_frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """A video of smooth random pictures that move sideways, one for each scene, with shape (T, H, W, 3), uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(NUM_SCENES, 3, max(2, height // 28), max(2, width // 28), generator=generator) * 255
    pictures = nn.functional.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1)
    frames = [pictures[t * NUM_SCENES // num_frames].roll(3 * t, dims=1) for t in range(num_frames)]
    return torch.stack(frames).round().to(torch.uint8)


def make_inputs(processor: Any) -> dict[str, torch.Tensor]:
    """One question about the scenes, through the folder's processor."""
    content = [{"type": "video"}, {"type": "text", "text": "What moves in this video?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    metadata = {"total_num_frames": NUM_FRAMES, "fps": 4.0, "frames_indices": list(range(NUM_FRAMES))}
    inputs = processor(
        text=[prompt],
        videos=[make_scenes().numpy()],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    return {name: torch.as_tensor(value) for name, value in inputs.items()}


def observe(model: Any, inputs: dict[str, torch.Tensor], **settings: Any) -> dict[str, Any]:
    """Greedy ids, logits of the prompt's last column (V,), prompt columns in each layer's cache, token counts."""
    inputs = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    outputs = model.generate(
        **inputs,
        **settings,
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    num_new = outputs.sequences.shape[1] - inputs["input_ids"].shape[1]
    report = getattr(outputs, "report", None)
    (cache,) = (value for value in outputs.values() if isinstance(value, Cache))  # its name depends on the version
    return {
        "new_ids": outputs.sequences[0, -num_new:].tolist(),
        "logits": outputs.logits[0][0].float(),
        "prompt_columns": [layer.keys.shape[-2] - (num_new - 1) for layer in cache.layers],
        "counts": None if report is None else [list(x) for x in (report.tokens, report.entered, report.remained)],
    }


def load_model(source: str, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """The model in evaluation mode, with its class and the faulty keys that loading reported."""
    model, info = AutoModelForImageTextToText.from_pretrained(
        source, trust_remote_code=True, output_loading_info=True, dtype="auto", **kwargs
    )
    model = model.eval()
    if model.dtype != torch.float32 and model.num_parameters() <= MOST_FLOAT32_PARAMETERS:
        model = model.float()
    found: dict[str, Any] = {"class": f"{type(model).__module__}.{type(model).__name__}"}
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found[kind] = sorted(map(str, info[kind]))
    return model, found


def load_reference(model: Any, base: str | None, revision: str | None) -> Any:
    """Upstream's model, from the base if upstream can read that, otherwise with the weights of `model`."""
    upstream: Any = next(c for c in type(model).__mro__ if c.__module__.startswith("transformers.models."))
    if base:
        config_dict, _ = PreTrainedConfig.get_config_dict(base, revision=revision)
        if config_dict.get("model_type") == upstream.config_class.model_type:
            return upstream.from_pretrained(base, revision=revision, dtype="auto").to(model.dtype).eval()
    fields = {k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "auto_map", "architectures")}
    config = upstream.config_class.from_dict(fields)
    config._attn_implementation = model.config._attn_implementation
    reference = upstream.from_pretrained(None, config=config, state_dict=model.state_dict(), dtype=model.dtype)
    reference.generation_config = model.generation_config
    return reference.eval()


def use_settings(model: Any, source: str, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Set fields of the model's configuration and of the processor; return the inputs that this processor makes."""
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    for name, value in settings.items():
        setattr(model.config, name, value)
        setattr(processor, name, value)
    return make_inputs(processor)


def probe_local(request: dict[str, Any], note: Callable[[str, Any], None]) -> None:
    """Load from the path, and compare with upstream."""
    source = request["folder"]
    inputs = make_inputs(AutoProcessor.from_pretrained(source, trust_remote_code=True))
    note("inputs", {name: x for name, x in inputs.items() if not x.is_floating_point()})
    note("prompt_length", inputs["input_ids"].shape[1])
    model, found = load_model(source)
    note("loading", {**found, "dtype": str(model.dtype).removeprefix("torch.")})
    note("compressed", observe(model, inputs))
    note("whole", observe(model, inputs, retention_ratio=1.0))
    if request["upstream_settings"]:  # upstream has no model with the settings of the folder
        inputs = use_settings(model, source, request["upstream_settings"])
        note("whole_as_upstream", observe(model, inputs, retention_ratio=1.0))
    reference = load_reference(model, request["base"], request["base_revision"])
    del model
    note("upstream", observe(reference, inputs))


def probe_hub(request: dict[str, Any], note: Callable[[str, Any], None]) -> None:
    """Load by a Hub id at a revision."""
    source, revision = request["hub_id"], request["revision"]
    processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=True)
    model, found = load_model(source, revision=revision)
    note("hub_loading", found)
    note("hub_compressed", observe(model, make_inputs(processor)))


def main(request_file: str, findings_file: str) -> None:
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    findings: dict[str, Any] = {"errors": {}}
    set_seed(0)
    with torch.no_grad():
        for name, probe in (("local", probe_local), ("hub", probe_hub)):
            try:
                probe(request, findings.__setitem__)
            except Exception:  # whatever a broken folder raises is a finding
                findings["errors"][name] = traceback.format_exc()
            gc.collect()
    torch.save(findings, findings_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
