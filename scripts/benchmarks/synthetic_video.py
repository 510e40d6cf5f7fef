"""Makes a clip of moving noise and a model's inputs about it, without a tokenizer and without a download."""

from typing import Any

import numpy as np
import torch

from flashvid_hf.families import family_of_config

TEXT_BEFORE, TEXT_AFTER = 16, 48  # tokens of the prompt around the video
TIMESTAMP = 6  # tokens of "<0.5 seconds>"; if a video has several runs of placeholders, one stands before each
MAX_TEXT_ID = 200  # below all special tokens, in all vocabularies


def make_clip(num_frames: int, size: str) -> np.ndarray:
    """Smooth noise that moves, with a cut every 16 frames: frames with shape (T, H, W, 3), uint8."""
    width, height = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(0)
    frames = []
    for start in range(0, num_frames, 16):
        length = min(16, num_frames - start)
        coarse = torch.rand(1, 3, height // 16 + 2, (width + 64) // 16 + 2, generator=generator)
        world = torch.nn.functional.interpolate(coarse, (height, width + 64), mode="bicubic")
        world = (world + 0.02 * torch.randn(world.shape, generator=generator)).clamp(0, 1)[0].mul(255).byte()
        frames += [world[:, :, 4 * i : 4 * i + width].permute(1, 2, 0) for i in range(length)]
    return torch.stack(frames).numpy()


def write_clip(path: str, frames: np.ndarray) -> bool:
    """Encode the frames at 30 fps; returns False if PyAV is not installed."""
    try:
        import av
    except ImportError:
        return False
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return True


def make_inputs(model: Any, pixels: dict[str, torch.Tensor], keep_pixels: bool = False) -> dict[str, torch.Tensor]:
    """The inputs that a processor makes for one question about one video, with random text.

    Args:
        model: a FlashVID model.
        pixels: what the video processor returned.
        keep_pixels: leave the pixels where they are, instead of moving them to the model.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    geometry = family_of_config(config).geometry
    (num_tokens,) = (int(count) for count in model.model.placeholder_counts("video", pixels))

    def write(length: int) -> list[int]:
        return torch.randint(1, MAX_TEXT_ID, (length,), generator=generator).tolist()

    ((rows, columns),) = geometry.grids_of_call(config, pixels, 1)
    runs = geometry.num_runs(num_tokens // (rows * columns))
    start, end = [[getattr(config, name)] for name in geometry.run_marks] or ([], [])
    run = [*start, *[config.video_token_id] * (num_tokens // runs), *end]
    video = [token for _ in range(runs) for token in (*write(TIMESTAMP if runs > 1 else 0), *run)]
    ids = torch.tensor([[*write(TEXT_BEFORE), *video, *write(TEXT_AFTER)]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    if "video_grid_thw" in pixels:  # these models also take the kind of every token
        inputs["mm_token_type_ids"] = 2 * (ids == config.video_token_id).long()
    inputs["pixel_values_videos"] = pixels["pixel_values_videos"].to(model.dtype)
    stay = {"pixel_values_videos"} if keep_pixels else set()
    return {name: tensor if name in stay else tensor.to(model.device) for name, tensor in inputs.items()}
