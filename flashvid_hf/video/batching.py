"""Batches of videos with different numbers of frames."""

from typing import Any

import torch
from transformers import BatchFeature


def convert_to_tensors(inputs: BatchFeature, tensor_type: Any) -> BatchFeature:
    """Convert the output of a processor that ran without `return_tensors`; tensors of different shapes stay a list.

    Some upstream processors stack the videos themselves, and raise an error where the shapes differ.
    """
    if tensor_type is None:
        return inputs
    ragged = [
        name
        for name, values in inputs.items()
        if isinstance(values, list) and len({v.shape for v in values if isinstance(v, torch.Tensor)}) > 1
    ]
    return inputs.convert_to_tensors(tensor_type, skip_tensor_conversion=ragged)
