"""Check that the values of a video are finite and not too large, without waiting for the device."""

import torch

# Largest magnitude that is accepted. The largest product of the compression is D * x**2 * 1e6 * attention, with an
# attention of at most 1. With this bound it stays below float32's maximum of 3.4e38 for the width D of any model.
LARGEST = 1e12


@torch.no_grad()
def check_finite(features: torch.Tensor, attention: torch.Tensor | None) -> torch.Tensor | None:
    """Check that the values of a video are finite and not too large, without waiting for the device.

    On the CPU the values are checked at once. On other devices the extreme values are returned, and the caller passes
    them to `check_extremes` when it has waited for the device.

    Args:
        features: of one video, of any shape.
        attention: that its tokens receive; `None` if the compression does not use it.

    Returns:
        `None` on the CPU. Otherwise the smallest and the largest feature, then the smallest and the largest attention
        if there is one, float32, with shape (2,) or (4,). If a tensor contains NaN, its two extremes are NaN.

    Raises:
        ValueError: a value on the CPU is not finite, or beyond 1e12 in magnitude.
    """
    extremes = [*features.aminmax()] if attention is None else [*features.aminmax(), *attention.aminmax()]
    found = torch.stack(extremes).float()
    if must_wait(found.device):
        return found
    check_extremes(found)
    return None


def must_wait(device: torch.device) -> bool:
    """Whether reading a value would wait for the device, or is impossible because the code is being compiled."""
    return device.type != "cpu" or torch.compiler.is_compiling()


def check_extremes(extremes: torch.Tensor) -> None:
    """Raise a `ValueError` if a value is not finite or too large. Waits for the device, unless it is the CPU.

    Args:
        extremes: see `check_finite`.
    """
    values = extremes.numpy().tolist() if extremes.device.type == "cpu" else extremes.tolist()
    advice = {
        "video_features": "Run the vision tower in bfloat16 or float32 if it runs in float16, which overflows, and "
        "check the pixels and the weights.",
        "attention": "Pass what a softmax returns, averaged.",
    }
    for name, pair in zip(advice, (values[:2], values[2:]), strict=True):
        for value in pair:  # the pair is empty if there is no attention
            if not abs(value) <= LARGEST:  # true for NaN too
                raise ValueError(
                    f"`{name}` has the value {value:g}: all of its values must be finite, and between -{LARGEST:g} and "
                    f"{LARGEST:g}. {advice[name]}"
                )
