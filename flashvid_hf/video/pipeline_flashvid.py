"""`pipeline("video-text-to-text")`: ask a model about video files, decoded frames or chats."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, Pipeline
from transformers.utils import logging

from .batching import convert_to_tensors
from .limits import MediaLimits
from .message_parts import Picture, check_sizes, fill_grids, read_image_part, read_video_part
from .reading import VideoClip
from .sources import FILE_TYPES
from .video_settings import VIDEO_SETTINGS

logger = logging.get_logger(__name__)

TASK = "video-text-to-text"
# Frames of more bytes are processed on the CPU, because processing takes many times their size in memory.
_MOST_BYTES_ON_GPU = 512 * 2**20
# An entry of the configuration: `pipeline` finds the class below by it in a folder with code.
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_flashvid.VideoTextToTextPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
}


@dataclass(frozen=True)
class _Request:
    """One conversation with its videos and images read, and the seconds that reading them took."""

    messages: list[dict[str, Any]]
    clips: list[VideoClip]
    pictures: list[Picture]
    seconds: float


def generate_arguments(pipeline: Any, generate_kwargs: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """A pipeline's arguments for `generate`: its generation settings, then those of the call, then `overrides`."""
    if hasattr(pipeline, "_prepare_generate_kwargs"):  # transformers 5.20 and later
        return pipeline._prepare_generate_kwargs(generate_kwargs, **overrides)
    return {"generation_config": pipeline.generation_config, **generate_kwargs, **overrides}


class VideoTextToTextPipeline(Pipeline):
    """Answers questions about videos.

    ```python
    pipe = pipeline("video-text-to-text", model="path/or/id", trust_remote_code=True)
    pipe("clip.mp4", text="What happens?", num_frames=32, max_new_tokens=64)
    ```

    Each answer is a list with one dictionary for every returned sequence:

    - `generated_text`: the new text;
    - `video_tokens`: how many video tokens the prompt had (`total`), how many `entered` the language model and how many
      `remained` in its upper layers. The three numbers are equal if the model does not compress;
    - `seconds`: wall-clock time of each stage: `decode` (reading and resizing the videos of this input, and reading its
      images), `preprocess` (template, tokenizer, normalising of the frames) and `generate` (including the conversion of
      the new ids to text). If a video was compressed, `vision`, `compression` and `prefill` stand between them; these
      are stages of `generate`. The inputs of a batch share every stage but `decode`, so each answer has the time of the
      whole batch. A GPU runs asynchronously: work that `preprocess` has only started there counts as `generate`.

    Frames get the size that the model wants as soon as they are decoded. If the model is on a CUDA device, these 8-bit
    frames are copied to the device and normalised there, unless they take more than 512 MiB. Rounding may differ from
    the CPU's.
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model.config, "retention_ratio"):
            logger.warning_once(
                f"`{type(self.model).__name__}` is no FlashVID model: the pipeline runs it, but nothing is compressed."
            )

    def __call__(self, videos: Any = None, text: str | list | None = None, **kwargs: Any):
        """Answer one question or many.

        Args:
            videos: what `read_video` takes: a path, a URL, or decoded frames; or a list of such videos. Or, without
                `text`, a chat (a list of messages whose content has parts like `{"type": "video", "path": ...}`), a
                list of chats, dictionaries with "video" and "text", or a generator or dataset of any of these. A
                `datasets.Dataset` has rows with "video" and "text"; one that streams counts as a generator.
            text: the question; a list of as many questions as videos; or one or more chats.
            num_frames, fps: how to sample the frames of a file, see `read_video`. Settings beside a video, in its part
                of a chat or in its dictionary, replace them: `fps`, `nframes`, `video_start`, `max_pixels` and the
                others of `video_settings.py`, named as in qwen-vl-utils.
            limits: what a video or an image must not exceed, see `MediaLimits`.
            batch_size: number of inputs that run together.
            num_workers: number of processes that read the videos of the next inputs while the model runs; 1 for a
                generator.
            kwargs: arguments of `generate`, such as `max_new_tokens` or `streamer`.

        Returns:
            The answer, a list of dictionaries; a list of answers for a list of inputs.

        Raises:
            ValueError: a video cannot be read, a setting cannot be honoured, or the inputs do not fit together.
        """
        if videos is None and text is None:
            raise ValueError("`videos` and `text` are both None: pass a video and a question, or a chat.")
        videos, text = _rows(videos), _rows(text)
        if any(isinstance(given, (list, tuple)) and len(given) == 0 for given in (videos, text)):
            raise ValueError("The list of inputs is empty: pass at least one video and question, or one chat.")
        if text is None:
            if isinstance(videos, FILE_TYPES) or _is_list_of_videos(videos):
                raise ValueError(f"`text` is None and `videos` is {videos!r:.200}: pass the question as `text=`.")
            return super().__call__(videos, **kwargs)
        if videos is None:
            return super().__call__(text, **kwargs)
        questions = [text] if isinstance(text, str) else text
        if not isinstance(questions, (list, tuple)) or not all(isinstance(question, str) for question in questions):
            raise ValueError(
                f"`text` is {text!r:.200}: with `videos` it must be a question or a list of questions. Put the video "
                "into the chat to pass a chat."
            )
        if not _is_list_of_videos(videos):
            if isinstance(text, str):
                return super().__call__({"video": videos, "text": text}, **kwargs)
            videos = [videos] * len(questions)
        elif isinstance(text, str):
            questions = [text] * len(videos)
        if len(questions) != len(videos):
            raise ValueError(
                f"`text` has {len(questions)} questions and `videos` {len(videos)} videos: pass as many of one as of "
                "the other, or a single one."
            )
        return super().__call__([{"video": v, "text": t} for v, t in zip(videos, questions, strict=True)], **kwargs)

    def _sanitize_parameters(
        self,
        num_frames: int | None = None,
        fps: float | None = None,
        limits: MediaLimits | None = None,
        generate_kwargs: dict | None = None,
        **kwargs: Any,
    ):
        # `num_frames` in a call replaces an `fps` that the pipeline was made with, and the other way round.
        sampling: dict[str, Any] = {}
        if (num_frames, fps) != (None, None):
            sampling = {"num_frames": num_frames, "fps": fps}
        if limits is not None:
            sampling["limits"] = limits
        twice = sorted(kwargs.keys() & (generate_kwargs or {}).keys())
        if twice:
            raise ValueError(f"`{twice[0]}` is given twice, by itself and in `generate_kwargs`: pass it once.")
        return sampling, {**(generate_kwargs or {}), **kwargs}, {}

    def preprocess(self, inputs: Any, limits: MediaLimits | None = None, **sampling: Any) -> dict[str, _Request]:
        clips, pictures, messages, seconds = [], [], [], 0.0
        for message in _to_messages(inputs):
            content = message["content"]
            if isinstance(content, str):  # some templates read text from parts only, and would drop it
                content = [{"type": "text", "text": content}]
            parts = []
            for part in content:
                if part.get("type") not in ("video", "image", "text"):
                    raise ValueError(
                        f"A part of a message has the type {part.get('type')!r}: it must be 'video', 'image' or "
                        f"'text'. Its keys are {sorted(part)}."
                    )
                start = time.perf_counter()
                if part["type"] == "video":
                    clips.append(read_video_part(part, sampling, self.processor, limits))
                elif part["type"] == "image":
                    pictures.append(read_image_part(part, self.processor, limits=limits))
                seconds += time.perf_counter() - start
                parts.append({"type": part["type"]} if part["type"] in ("video", "image") else part)
            messages.append({**message, "content": parts})
        return {"request": _Request(messages, clips, pictures, seconds)}

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, list]:
        request = model_inputs["request"]
        requests = request if isinstance(request, list) else [request]
        start = time.perf_counter()
        inputs = self._process(requests).to(self.device)
        processed = time.perf_counter()
        generate_kwargs = generate_arguments(self, generate_kwargs, return_dict_in_generate=True)
        outputs = self.model.generate(**inputs, **generate_kwargs)
        new = outputs.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        generated = time.perf_counter()
        report = getattr(outputs, "report", None)
        stages = {
            "preprocess": processed - start,
            **(report.seconds if report is not None else {}),
            "generate": generated - processed,
        }
        tokens = self._count_tokens(inputs["input_ids"], report, len(new))
        each = len(new) // len(requests)  # `num_return_sequences`
        answers = [
            {
                "generated_text": text,
                "video_tokens": counts,
                "seconds": {"decode": requests[i // each].seconds, **stages},
            }
            for i, (text, counts) in enumerate(zip(texts, tokens, strict=True))
        ]
        grouped = [answers[i * each : (i + 1) * each] for i in range(len(requests))]
        return {"answers": grouped if isinstance(request, list) else grouped[0]}

    def postprocess(self, model_outputs: dict[str, list]) -> list[dict[str, Any]]:
        return model_outputs["answers"]

    def _process(self, requests: list[_Request]):
        """The model's inputs for these conversations, padded on the left."""
        prompts = [
            self.processor.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=False)
            for request in requests
        ]
        clips = [clip for request in requests for clip in request.clips]
        pictures = [picture for request in requests for picture in request.pictures]
        media = media_arguments(clips, [picture.image for picture in pictures], self.device, self.processor)
        inputs = self.processor(text=prompts, padding=True, padding_side="left", **media)
        check_sizes(inputs, clips, pictures, self.processor)
        return convert_to_tensors(inputs, "pt")

    def _count_tokens(self, input_ids: torch.Tensor, report: Any, num_sequences: int) -> list[dict[str, int]]:
        """Video tokens of every returned sequence at each stage. Upstream models have no report and keep all."""
        if report is None:
            totals = (input_ids == self.model.config.video_token_id).sum(-1).tolist()
            stages = [(total, total, total) for total in totals]
        else:
            expanded = report.num_samples // len(input_ids)  # every beam is a row
            stages = [report.of_sample(row * expanded) for row in range(len(input_ids))]
        each = num_sequences // len(input_ids)
        counts = [dict(zip(("total", "entered", "remained"), of_row, strict=True)) for of_row in stages]
        return [counts[i // each] for i in range(num_sequences)]


def media_arguments(clips: list[VideoClip], images: list[Any], device: torch.device, processor: Any) -> dict[str, Any]:
    """The processor's arguments besides the text: videos, images, and the device that resizes them.

    Args:
        device: of the model. It resizes only if it is a CUDA device: others may not support resizing with antialiasing.
        processor: the model's processor, which gets the arguments.
    """
    media: dict[str, Any] = {}
    if clips:
        filled = fill_grids(clips, processor)
        media["videos"] = [clip.frames for clip in filled]
        media["video_metadata"] = [clip.metadata for clip in filled]
        media["do_sample_frames"] = False  # already sampled; without metadata upstream would assume 24 fps
        if all(clip.is_resized for clip in clips):
            media["videos_kwargs"] = {"do_resize": False}
    if images:
        media["images"] = images
    if media:
        fits = sum(clip.frames.nbytes for clip in clips) <= _MOST_BYTES_ON_GPU
        media["device"] = device if device.type == "cuda" and fits else "cpu"
    return media


class _Rows(torch.utils.data.Dataset):
    """The rows of a `datasets.Dataset`, which transformers' pipelines do not take for a data set."""

    def __init__(self, rows: Any):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


def _rows(inputs: Any) -> Any:
    """A data set of the library `datasets` in a form that transformers goes through, a column of one as a list."""
    if type(inputs).__module__.partition(".")[0] != "datasets":
        return inputs
    if not hasattr(inputs, "column_names"):
        return list(inputs)
    return _Rows(inputs) if hasattr(inputs, "__len__") else (row for row in inputs)


def _is_list_of_videos(videos: Any) -> bool:
    """Whether this is a list of files or of whole clips. A list of frames (pictures or 3D arrays) is one video."""
    if not isinstance(videos, (list, tuple)) or not videos:
        return False
    first = videos[0]
    if isinstance(first, (list, tuple)):  # a list of frames is a video; a list of messages is a chat
        return not (first and isinstance(first[0], dict))
    return isinstance(first, FILE_TYPES) or getattr(first, "ndim", 0) == 4


def _to_messages(inputs: Any) -> list[dict[str, Any]]:
    """The messages of one input, in any form that `__call__` takes."""
    if hasattr(inputs, "messages"):  # upstream's own wrapper of a chat
        return inputs.messages
    if isinstance(inputs, dict):
        inputs = {key: value for key, value in inputs.items() if value is not None}
        known = {"video", "text", "video_metadata", *VIDEO_SETTINGS}
        if isinstance(inputs.get("text"), str) and inputs.keys() <= known:
            video = {key: value for key, value in inputs.items() if key != "text"}
            text = {"type": "text", "text": inputs["text"]}
            return [{"role": "user", "content": [{"type": "video", **video}, text] if video else [text]}]
        if inputs.keys() == {"messages"}:  # a row of a data set of chats
            return _to_messages(inputs["messages"])
    if isinstance(inputs, str):
        return [{"role": "user", "content": [{"type": "text", "text": inputs}]}]
    if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], dict) and "role" in inputs[0]:
        return list(inputs)
    keys = f" with the keys {sorted(map(str, inputs))}" if isinstance(inputs, dict) else ""
    raise ValueError(
        f"The input is a `{type(inputs).__name__}`{keys}: pass a video with `text=`, a chat, or a dictionary with "
        "'video' and 'text' (of a data set `select_columns(['video', 'text'])`)."
    )
