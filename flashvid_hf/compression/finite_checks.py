"""Whether the compression can compute with the values of a video, asked without waiting for the device."""

import torch

# Largest magnitude that is taken. The largest product inside, D * x**2 * 1e6 times an attention of at most 1, then
# stays below float32's 3.4e38 at any width D of a model.
LARGEST = 1e12


@torch.no_grad()
def check_finite(features: torch.Tensor, attention: torch.Tensor | None) -> torch.Tensor | None:
    """Raise a `ValueError` if a value is not finite or too large, without waiting for the device.

    Args:
        features: of one video.
        attention: that its tokens receive; `None` if nobody looks at it.

    Returns:
        What `check_extremes` has to look at when the device has been waited for: smallest and largest feature, and of
        the attention, float32, with shape (2,) or (4,), NaN where there is any. `None` if all is well on the CPU.
    """
    extremes = [*features.aminmax()] if attention is None else [*features.aminmax(), *attention.aminmax()]
    found = torch.stack(extremes).float()
    if must_wait(found.device):
        return found
    check_extremes(found)
    return None


def must_wait(device: torch.device) -> bool:
    """Whether looking at a value means to wait for the device, or, while compiling, cannot be part of the code."""
    return device.type != "cpu" or torch.compiler.is_compiling()


def check_extremes(extremes: torch.Tensor) -> None:
    """Raise a `ValueError` if a value is not finite or too large. Waits for the device, unless that is the CPU."""
    values = extremes.numpy().tolist() if extremes.device.type == "cpu" else extremes.tolist()
    advice = {
        "video_features": "Run the vision tower in bfloat16 or float32 if it runs in float16, which overflows, and "
        "check the pixels and the weights.",
        "attention": "Pass what a softmax returns, averaged.",
    }
    for name, pair in zip(advice, (values[:2], values[2:]), strict=True):
        for value in pair:  # none of an attention that nobody looks at
            if not abs(value) <= LARGEST:  # also of NaN
                raise ValueError(
                    f"`{name}` has the value {value:g}: all of its values must be finite, and between -{LARGEST:g} and "
                    f"{LARGEST:g}. {advice[name]}"
                )
