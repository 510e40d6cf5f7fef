"""The model `flashvid` of lmms-eval. It runs every family through this package's pipeline.

    pip install "flashvid-hf[lmms-eval]"
    python -m lmms_eval --model flashvid --model_args pretrained=Qwen/Qwen2.5-VL-7B-Instruct,retention_ratio=0.1 ...

lmms-eval (0.7 series) finds the model by the entry point `lmms_eval.models`. Nothing else in the package imports this
module or lmms-eval. It is tested with random weights on local tasks; nothing has been run on real weights.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger
from tqdm import tqdm
from transformers import GenerationConfig, pipeline

from ..compression.validation import check_number
from ..families import find_family
from ..loading import load_model
from ..video.pipeline_flashvid import TASK

MANIFEST = ModelManifest("flashvid", chat_class_path="flashvid_hf.evaluation.lmms_eval_model.FlashVIDForLmmsEval")
# The arguments of the model; the others are fields of FlashVID.
_OWN = ("attn_implementation", "batch_size", "device", "device_map", "dtype", "num_frames", "pretrained", "revision")
_STAGES = ("total", "entered", "remained")


class FlashVIDForLmmsEval(lmms):
    """Answers the chat requests of lmms-eval, greedily unless a task asks for sampling.

    Each process of `torchrun` or `accelerate launch` has its own model, on the accelerator of its number or on the CPU,
    and its part of the samples. Under `throughput` the results have the seconds in `generate`, and
    `avg_video_tokens_total`, `_entered` and `_remained`: means over the answers of the first process.

    Args:
        pretrained: folder or Hub id of a FlashVID or an upstream checkpoint.
        num_frames: frames of every video, spread evenly; a shorter video gives all of its frames. FlashVID's scripts
            give LLaVA-Video 64.
        dtype: dtype of the weights; "auto" is the checkpoint's.
        device: device of the model if there is one process, as torch names it; "auto" spreads it over the accelerators.
        device_map: the same, under the name that other models of lmms-eval use; it takes precedence over `device`.
        attn_implementation: as in `from_pretrained`; `None` for its default.
        revision: branch, tag or commit of a model on the Hub.
        batch_size: answers that are generated together (`--batch_size`).
        max_batch_size: passed by lmms-eval; not used.
        settings: FlashVID's fields that differ from the checkpoint's, `method_settings` as JSON. "None" is `None`.

    Raises:
        ValueError: an argument is missing, unknown or out of range. The error comes before the weights are loaded,
            unless the check needs the configuration.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        num_frames: int = 32,
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **settings: Any,
    ):
        super().__init__()
        if pretrained is None:
            raise ValueError(
                "`pretrained` is missing: `--model_args pretrained=FOLDER_OR_ID,...` names the checkpoint."
            )
        check_number("num_frames", num_frames, least=1, integer=True)
        self.batch_size: Any = int(batch_size) if str(batch_size).isdigit() else batch_size  # the shell passes text
        check_number("batch_size", self.batch_size, least=1, integer=True)
        self.num_frames = num_frames
        hub = {} if revision is None else {"revision": revision}
        settings = _read_settings(settings, find_family(pretrained, **hub).config.method_fields)
        if attn_implementation is not None:
            settings["attn_implementation"] = attn_implementation

        place = device_map or device or "auto"
        self.accelerator = Accelerator(cpu=place == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1:
            place = str(self.accelerator.device)
        model, processor = load_model(pretrained, device=place, dtype=dtype, revision=revision, **settings)
        self.device = self.accelerator.device if self._world_size > 1 else model.device
        self.pipe = pipeline(TASK, model=model, processor=processor)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, each cut before the first of the strings in `until`."""
        groups: dict[str, list[int]] = {}  # requests with the same generation arguments
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(i)
        texts = [""] * len(requests)
        seconds, new_tokens, counts = 0.0, 0, []
        with tqdm(total=len(requests), desc="Model Responding", disable=self.rank != 0) as bar:
            for members in groups.values():
                until, generation = _read_generation(requests[members[0]].args[2])
                chats = (self._chat(requests[i]) for i in members)
                answers = self.pipe(chats, num_frames=self.num_frames, batch_size=self.batch_size, **generation)
                for number, (i, (answer,)) in enumerate(zip(members, answers, strict=True)):
                    new_tokens += len(self.pipe.tokenizer(answer["generated_text"])["input_ids"])
                    counts.append(answer["video_tokens"])
                    if number % self.batch_size == 0:  # all answers of a batch have its time
                        seconds += answer["seconds"]["generate"]
                    texts[i] = _cut(answer["generated_text"], until)
                    self.cache_hook.add_partial("generate_until", (requests[i].args[0], requests[i].args[2]), texts[i])
                    bar.update()
        means = {f"video_tokens_{s}": sum(c[s] for c in counts) / len(counts) for s in _STAGES} if counts else {}
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=new_tokens,
            avg_speed=new_tokens / seconds if seconds else 0,
            additional_metrics=means,
        )
        return texts

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        raise NotImplementedError(
            "`flashvid` generates answers and scores no given ones. Choose the task's variant with "
            "`output_type: generate_until`, for instance `egoschema_subset` instead of `egoschema_subset_mcppl`."
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
        raise NotImplementedError("`flashvid` answers in one round. Choose a task with `output_type: generate_until`.")

    def clean(self) -> None:
        del self.pipe
        super().clean()

    def _chat(self, request: Any) -> list[dict[str, Any]]:
        """The messages of a request, as the pipeline takes them."""
        _, to_messages, _, doc_id, task, split = request.args
        messages = to_messages(self.task_dict[task][split][doc_id])
        return [{"role": message["role"], "content": [*_parts(message["content"])]} for message in messages]


def _parts(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for part in content:
        kind = part["type"]
        if kind == "text":
            yield {"type": "text", "text": part["text"]}
        elif kind not in ("image", "video"):
            raise ValueError(f"A request has {kind!r}: `flashvid` reads text, images and videos. Choose another task.")
        elif isinstance(part["url"], dict) or part.get("start_time") or part.get("end_time"):
            raise ValueError(
                f"A request asks about a part of a video: {part!r:.200}. `flashvid` reads whole files: cut the video "
                "beforehand, or choose another task."
            )
        else:
            yield {"type": kind, kind: part["url"]}


def _read_settings(given: dict[str, Any], fields: frozenset[str]) -> dict[str, Any]:
    """FlashVID's fields from the strings and numbers of `--model_args`.

    Raises:
        ValueError: there is no such argument, or `method_settings` is no JSON.
    """
    for name in sorted(given.keys() - fields):
        known = ", ".join(sorted({*fields, *_OWN}))
        raise ValueError(f"`{name}` is no argument of the model `flashvid`: choose from {known}.")
    settings = {name: None if value == "None" else value for name, value in given.items()}
    if isinstance(settings.get("method_settings"), str):
        text = settings["method_settings"]
        try:
            settings["method_settings"] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"`method_settings` is {text!r}, which is no JSON ({error}): write it like "
                """'method_settings={"pruning_layer": 2}', and quote it for the shell."""
            ) from error
    return settings


def _read_generation(given: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The strings that end an answer, and the arguments of `generate`, from a task's `generation_kwargs`."""
    generation = dict(given)
    until = generation.pop("until", None) or ()
    temperature = generation.get("temperature")
    generation["do_sample"] = temperature != 0 and generation.get("do_sample", bool(temperature))
    if not generation["do_sample"]:
        generation = {k: v for k, v in generation.items() if k not in ("temperature", "top_p", "top_k")}
    for name in sorted(generation.keys() - vars(GenerationConfig()).keys()):
        logger.warning(f"`{name}` of the task's `generation_kwargs` is no setting of `generate`: it is left out.")
        del generation[name]
    return ((until,) if isinstance(until, str) else tuple(until)), generation


def _cut(text: str, until: Sequence[str]) -> str:
    for end in until:
        text = text.partition(end)[0] if end else text
    return text.strip()
