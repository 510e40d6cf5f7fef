"""The processor of a weightless folder: it is the processor of the base."""

from typing import Any

from transformers import AutoProcessor, ProcessorMixin

from .weightless import follow_base, hub_arguments, read_config


class FlashVIDProcessor(ProcessorMixin):
    """A placeholder: `from_pretrained` returns the processor of the base, an object of the class that the base names.

    A weightless folder has no tokenizer and no settings of image and video processing. Settings in its own
    `processor_config.json`, under "video_processor", "image_processor" or "tokenizer", replace those of the base.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs: Any) -> Any:
        """The processor of the base at the commit that the folder names.

        Raises:
            ValueError: the folder names no base.
        """
        hub = hub_arguments(kwargs)
        base = follow_base(read_config(pretrained_model_name_or_path, hub), hub)
        if base is None:
            raise ValueError(
                f"`config.json` of {str(pretrained_model_name_or_path)!r} has no `base_model_name_or_path`, and "
                "`processor_config.json` says that the processor is that of the base. Save the processor into the "
                "folder with its `save_pretrained`."
            )
        others = {name: value for name, value in kwargs.items() if name not in hub and name != "_from_auto"}
        source, from_base = base
        processor = AutoProcessor.from_pretrained(source, **others, **from_base)
        own, _ = cls.get_processor_dict(pretrained_model_name_or_path, **hub)
        for part, settings in own.items():
            if isinstance(settings, dict) and hasattr(processor, part):
                vars(getattr(processor, part)).update(settings)
        return processor


__all__ = ["FlashVIDProcessor"]
