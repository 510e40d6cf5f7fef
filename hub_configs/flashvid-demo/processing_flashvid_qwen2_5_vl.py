"""The processor of Qwen2.5-VL with FlashVID.

Generated from flashvid_hf 0.1.0: do not edit. The sections are its modules:

    hub/processing_flashvid.py
    models/qwen/processing_flashvid_qwen2_5_vl.py
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin, Qwen2_5_VLProcessor
from transformers.image_utils import is_pil_image
from transformers.video_utils import VideoMetadata

from .configuration_flashvid_qwen2_5_vl import follow_base, hub_arguments, read_config, save_code
from .pipeline_flashvid import (
    FILE_TYPES,
    IMAGE_SETTINGS,
    IMAGE_SOURCES,
    VIDEO_SOURCES,
    MediaLimits,
    Picture,
    VideoClip,
    check_sizes,
    convert_to_tensors,
    fill_grids,
    is_list_of_files,
    read_image_part,
    read_video,
    read_video_part,
    resizing_of,
)

# hub/processing_flashvid.py -------------------------------------------------------------------------------------------

"""What the processors of all families share: they read videos, and are saved with their code."""

# Arguments of a call that this class uses itself, because it samples files while it reads them.
_SAMPLING = ("num_frames", "fps", "do_sample_frames", "video_metadata")
# Arguments of a call that change how upstream resizes videos. Without them the frames are resized while they are read.
_SIZES = (
    *("do_resize", "size", "resample", "min_pixels", "max_pixels", "cap_pixels_per_frame", "max_video_tokens"),
    *("patch_size", "merge_size", "temporal_patch_size", "input_data_format"),
)
# More frames than a video has. As `min_frames` it asks for all of them.
_ALL_FRAMES = 2**31


class FlashVIDProcessor(ProcessorMixin):
    """Goes before upstream's class among the bases of a family's processor, which then takes videos as `read_video`.

    ```python
    processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True, num_frames=16)
    processor(text="<|video_pad|> What happens?", videos=["clip.mp4"], num_frames=16)
    ```

    Everything else is upstream's. Upstream itself needs torchcodec for files. Videos are paths, URLs, bytes or lists of
    pictures' files, in messages or under `videos`; images in messages too. `num_frames` and `fps` choose the frames as
    `read_video` does. Without them the settings of the video processor do, if it samples (`do_sample_frames`);
    otherwise all frames are taken, as by upstream. The settings beside a video or image in a message, which
    `video_settings.py` lists, replace those of the call. `limits` bounds what is read, see `MediaLimits`. Frames get
    the size that upstream gives them as soon as they are decoded. Decoded frames go to upstream as they are.

    The processor of a weightless folder is made from that of its base. Settings in the folder's own
    `processor_config.json`, under "video_processor", "image_processor" or "tokenizer", replace those of the base.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs: Any) -> Any:
        """Load the processor of a folder, of an upstream checkpoint, or of the base of a weightless folder.

        Args:
            pretrained_model_name_or_path: the folder or Hub id.
            kwargs: as upstream.

        Raises:
            ValueError: the folder has no processor and names no base.
        """
        hub = hub_arguments(kwargs)
        base = follow_base(read_config(pretrained_model_name_or_path, hub), hub)
        own, _ = cls.get_processor_dict(pretrained_model_name_or_path, **hub)
        if base is None:
            if "auto_map" in own and "image_processor" not in own:
                raise ValueError(
                    f"`config.json` of {str(pretrained_model_name_or_path)!r} has no `base_model_name_or_path`, and "
                    "`processor_config.json` says that the processor is that of the base. Save the processor into the "
                    "folder with its `save_pretrained`."
                )
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        others = {name: value for name, value in kwargs.items() if name not in hub and name != "_from_auto"}
        source, from_base = base
        processor = super().from_pretrained(source, **others, **from_base)
        for part, settings in own.items():
            if isinstance(settings, dict) and hasattr(processor, part):
                vars(getattr(processor, part)).update(settings)
        return processor

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """Save the processor with its code, so that it loads without this package with `trust_remote_code=True`."""
        modules = ((ancestor, ancestor.__module__.rpartition(".")[2]) for ancestor in type(self).__mro__)
        own, module = next(found for found in modules if found[1].startswith("processing_flashvid_"))
        self.auto_map = {"AutoProcessor": f"{module}.{own.__name__}"}
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_file(self, json_file_path):
        """Write `processor_config.json` and the code that it names. Upstream may upload the folder right after."""
        super().to_json_file(json_file_path)
        save_code(self, Path(json_file_path).parent)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoProcessor"):
        """Does nothing, because `save_pretrained` always writes the code and names the class."""

    def apply_chat_template(self, conversation, *args: Any, **kwargs: Any) -> Any:
        """As upstream; with `tokenize=True` it reads the videos and images of the messages, with their settings."""
        conversation = _with_readers(conversation) if kwargs.get("tokenize") else conversation
        return super().apply_chat_template(conversation, *args, **kwargs)

    def __call__(self, images=None, text=None, videos=None, audio=None, return_tensors=None, **kwargs: Any) -> Any:
        clips: list[VideoClip] = []
        pictures: list[Picture] = []
        limits = kwargs.pop("limits", None)
        if videos is not None:
            found = list(_find_videos(videos))
            if any(isinstance(video, _PartReader) or _is_file(video) for video in found):
                clips = self._read_videos(found, kwargs, limits)
                videos = [clip.frames for clip in clips]
        if images is not None:
            images = self._read_images(images, pictures, limits)
        inputs = super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)
        check_sizes(inputs, clips, pictures, self)
        return convert_to_tensors(inputs, return_tensors)

    def _read_images(self, images: Any, pictures: list[Picture], limits: MediaLimits | None) -> Any:
        """The images in the same lists, with those of messages read; all of them are added to `pictures`."""
        if isinstance(images, (list, tuple)):
            return [self._read_images(image, pictures, limits) for image in images]
        is_part = isinstance(images, _PartReader)
        picture = read_image_part(images.part, self, limits=limits) if is_part else Picture(images)
        pictures.append(picture)
        return picture.image

    def _read_videos(self, videos: list[Any], kwargs: dict[str, Any], limits: MediaLimits | None) -> list[VideoClip]:
        """Read and sample videos, and put what upstream has to know into the arguments `kwargs` of a call."""
        nested = kwargs["videos_kwargs"] = dict(kwargs.get("videos_kwargs") or {})
        given = {name: source.pop(name) for source in (nested, kwargs) for name in _SAMPLING if name in source}
        sampling = {name: given[name] for name in ("num_frames", "fps") if given.get(name) is not None}
        is_sampled = given.get("do_sample_frames")
        if is_sampled is False and sampling:
            raise ValueError(f"`do_sample_frames` is False with {sampling}: leave one of them out")
        if not sampling:
            sampling = self._default_sampling(is_sampled)
        metadata = given.get("video_metadata") or [None] * len(videos)
        metadata = [metadata] if isinstance(metadata, (Mapping, VideoMetadata)) else [*_flatten(metadata)]
        if len(metadata) != len(videos):
            raise ValueError(f"`video_metadata` has {len(metadata)} entries for {len(videos)} videos: pass one each")
        resize = not any(source.get(name) is not None for source in (nested, kwargs) for name in _SIZES)
        resizing = resizing_of(self) if resize else None
        clips = []
        for video, described in zip(videos, metadata, strict=True):
            if isinstance(video, _PartReader):
                part = video.part if described is None else {"video_metadata": described, **video.part}
                clips.append(read_video_part(part, sampling, self, limits, resize))
            else:
                sampled = sampling if _is_file(video) else {}
                clip = read_video(video, video_metadata=described, limits=limits, resizing=resizing, **sampled)
                clips.append(clip)
        kwargs["do_sample_frames"] = False
        if all(clip.is_resized for clip in clips):
            nested["do_resize"] = False
        clips = fill_grids(clips, self)
        kwargs["video_metadata"] = [clip.metadata for clip in clips]
        return clips

    def _default_sampling(self, is_sampled: bool | None) -> dict[str, Any]:
        """The sampling of files if a call asks for none: that of the video processor, or all frames."""
        settings = self.video_processor
        if is_sampled is None:
            is_sampled = settings.do_sample_frames
        rate = {name: getattr(settings, name, None) for name in ("num_frames", "fps")}
        rate = {name: value for name, value in rate.items() if value is not None}
        if not is_sampled or not rate:
            return {"min_frames": _ALL_FRAMES}
        if "num_frames" in rate:
            return {"num_frames": rate["num_frames"]}
        return {**rate, **{name: getattr(settings, name, None) for name in ("min_frames", "max_frames")}}


class _PartReader:
    """A video or an image in a message, which upstream carries through the template unseen."""

    def __init__(self, part: Mapping[str, Any]):
        self.part = part


def _with_readers(conversation: Any) -> Any:
    """A copy of one conversation or of several, in which readers are the videos, and the images that are files."""
    if isinstance(conversation, (list, tuple)):
        return [_with_readers(message) for message in conversation]
    if not isinstance(conversation, Mapping) or not isinstance(conversation.get("content"), (list, tuple)):
        return conversation
    return {**conversation, "content": [_with_reader(part) for part in conversation["content"]]}


def _with_reader(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "video" and any(part.get(key) is not None for key in VIDEO_SOURCES):
        return {"type": kind, kind: _PartReader(part)}
    if kind == "image":
        sources = [part[key] for key in IMAGE_SOURCES if part.get(key) is not None]
        has_settings = any(part.get(key) is not None for key in IMAGE_SETTINGS)
        if sources and (has_settings or isinstance(sources[0], FILE_TYPES)):
            return {"type": kind, kind: _PartReader(part)}
    return part


def _is_file(video: Any) -> bool:
    return isinstance(video, FILE_TYPES) or is_list_of_files(video)


def _find_videos(videos: Any) -> Iterator[Any]:
    """The videos of a call, one after the other: files, readers and decoded frames, in lists of any depth.

    A list of files is one video where lists of videos are nested, else several, as upstream has it.
    """
    if isinstance(videos, (list, tuple)):
        first = videos[0] if videos else None
        if isinstance(first, (list, tuple)) and first and is_list_of_files(first[0]):  # batches of lists of pictures
            yield from (video for batch in videos for video in batch)
        elif getattr(first, "ndim", 0) == 3 or is_pil_image(first):  # the frames of one video
            yield videos
        else:
            for video in videos:
                yield from _find_videos(video)
    else:
        yield videos


def _flatten(metadata: Any) -> Iterator[Any]:
    for entry in metadata:
        if isinstance(entry, (list, tuple)):
            yield from _flatten(entry)
        else:
            yield entry


# models/qwen/processing_flashvid_qwen2_5_vl.py ------------------------------------------------------------------------

"""Processor of Qwen2.5-VL: upstream's, which reads videos too."""


class FlashVIDQwen2_5_VLProcessor(FlashVIDProcessor, Qwen2_5_VLProcessor):
    """Upstream's processor. In addition it reads video files, see `FlashVIDProcessor`."""


__all__ = [
    "FlashVIDProcessor",
    "FlashVIDQwen2_5_VLProcessor",
]
