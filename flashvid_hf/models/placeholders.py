"""The placeholders of images and videos in a prompt: which columns they are, and whether they fit what was given."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from .columns import count_columns


class FlashVIDPlaceholdersMixin:
    """Finds and checks the placeholders of a call of `forward`."""

    config: Any
    get_placeholder_mask: Any

    # For "image" and "video": the inputs of `forward` that `get_image_features` and `get_video_features` take. The
    # pixels come first.
    encoder_inputs: ClassVar[dict[str, tuple[str, ...]]]

    def placeholder_counts(self, kind: str, inputs: dict[str, Any]) -> tuple[int, ...] | torch.Tensor | None:
        """How many placeholders each image or video in the inputs of `forward` needs, before it is encoded.

        `None` if this is known only after the encoding.

        Args:
            kind: "image" or "video".
            inputs: the named arguments of `forward`.
        """
        raise NotImplementedError

    def check_placeholders(self, kind: str, mask: torch.Tensor, inputs: dict[str, Any]) -> bool:
        """Raise a `ValueError` if the number of placeholders does not fit the pixels.

        Args:
            kind: "image" or "video".
            mask: which columns are placeholders of this kind, with shape (B, S).
            inputs: the named arguments of `forward`.

        Returns:
            Whether the check was possible. If not, it must be made after the encoding.
        """
        counts = self.placeholder_counts(kind, inputs)
        if counts is not None:
            check_placeholders(kind, mask, int(torch.as_tensor(counts).sum()))
        return counts is not None

    def placeholder_masks(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which columns are placeholders of images and of videos, with shape (B, S) each."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id, input_ids == self.config.video_token_id
        image_mask, video_mask = self.get_placeholder_mask(None, inputs_embeds=inputs_embeds)
        return image_mask[..., 0], video_mask[..., 0]

    def find_placeholders(self, inputs: dict[str, Any], num_prompt: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Which columns of a call are placeholders of images and of videos, with shape (B, S) each.

        Args:
            inputs: the named arguments of `forward`.
            num_prompt: how many columns of this call belong to the prompt of `generate`; `None` if all of them do. The
                model itself wrote the others, in which the ids of placeholders are mere tokens.
        """
        length = count_columns(inputs)
        if num_prompt is not None and num_prompt <= 0:
            given = inputs["inputs_embeds"] if inputs["input_ids"] is None else inputs["input_ids"]
            none = torch.zeros(given.shape[:2], dtype=torch.bool, device=given.device)
            return none, none
        masks = self.placeholder_masks(inputs["input_ids"], inputs["inputs_embeds"])
        if num_prompt is None or num_prompt >= length:
            return masks
        is_prompt = torch.arange(length, device=masks[0].device) < num_prompt
        return masks[0] & is_prompt, masks[1] & is_prompt

    def missing_media(self, inputs: Mapping[str, Any], encoded: Mapping[str, Any]) -> tuple[str, ...]:
        """Which of "image" and "video" a call does not have, neither as pixels nor encoded.

        Args:
            inputs: the named arguments of the call.
            encoded: outputs of the vision tower, under "image" and "video".
        """
        return tuple(
            kind
            for kind, (pixels, *_) in self.encoder_inputs.items()
            if inputs.get(pixels) is None and encoded.get(kind) is None
        )

    def check_missing_media(self, missing: Sequence[str], masks: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Raise a `ValueError` if a prompt has placeholders of images or videos that the call does not have.

        Waits for the device once. Code that is being compiled is not checked.

        Args:
            missing: see `missing_media`.
            masks: which columns are placeholders of images and of videos, with shape (B, S) each.
        """
        if not missing or torch.compiler.is_compiling():
            return
        of_kind = dict(zip(("image", "video"), masks, strict=True))
        counts = torch.stack([of_kind[kind].sum() for kind in missing]).tolist()
        for kind, found in zip(missing, counts, strict=True):
            if found:
                pixels = self.encoder_inputs[kind][0]
                raise ValueError(
                    f"`input_ids` has {found} {kind} placeholders and the call has no {kind}: the model would read the "
                    f"placeholders as text. Pass `{pixels}` and all other outputs of the processor, or leave the "
                    f"{kind} out of the prompt."
                )


def check_placeholders(kind: str, mask: torch.Tensor, expected: int) -> None:
    """Raise a `ValueError` unless the prompt has one placeholder for every feature of its videos or images.

    Args:
        kind: "image" or "video".
        mask: which columns are placeholders of this kind, with shape (B, S).
        expected: number of features.
    """
    found = int(mask.sum())
    if found != expected:
        raise ValueError(
            f"`input_ids` has {found} {kind} placeholders: the {kind} inputs need exactly {expected}. Make both with "
            "one call of the processor, and cut neither; on a cache, pass only those of the new turn."
        )
