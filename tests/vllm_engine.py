"""Runs vLLM's engine in a separate process, because an engine leaves threads, hooks and process groups behind.

The job is a dictionary: "options" has the arguments of `LLM`, and "rounds" has lists of requests, one list for each
call.
"""

import os
import pickle
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from flashvid_hf.publishing.prepared_interpreter import PreparedInterpreter

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines share the cores
    "TORCH_COMPILE_DISABLE": "1",  # the models run eagerly; without this the sampler compiles for seconds
}
TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}  # one core each

_PROGRAM = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import vllm_engine; vllm_engine.main()"


# vLLM takes more time to import than most engines here take to answer.
_MODULES = (
    "vllm",
    "vllm.v1.engine.core",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
    "flashvid_hf.vllm_plugin.plugin",
)


@cache
def _interpreter() -> PreparedInterpreter:
    return PreparedInterpreter({**os.environ, **ENVIRONMENT}, modules=_MODULES, read=("HF_",))


class Answer(NamedTuple):
    """The answer to one request.

    Args:
        prompt: the ids of the prompt as the engine saw them.
        tokens, logprobs: the generated tokens and their log-probabilities.
        positions: the last positions that the model set, with shape (3, prompt); `None` if the model has no such axes,
            or there is no video.
        interrupted: whether the request lost its place in the cache, and was computed once more.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    positions: list[list[int]] | None = None
    interrupted: bool = False


def run_engine(*rounds: list[dict[str, Any]], max_tokens: int = 8, **options: Any) -> list[list[Answer]]:
    """Answers to rounds of requests, as `LLM.generate` takes them, by an engine with these options."""
    # A model sets no positions for what the prefix cache has: `Answer.positions` would have those of the rest only.
    options = {"enable_prefix_caching": False, **options}
    options = {
        "dtype": "float32",
        "max_model_len": 2048,
        "enforce_eager": True,
        "max_num_seqs": 8,
        "seed": 0,
        **options,
    }
    ranks = TWO_RANKS if options.get("tensor_parallel_size") == 2 else {}
    with tempfile.TemporaryDirectory() as folder:
        job, answers = Path(folder, "job.pickle"), Path(folder, "answers.pickle")
        job.write_bytes(pickle.dumps({"options": options, "rounds": rounds, "max_tokens": max_tokens}))
        ended = _interpreter().run(
            _PROGRAM,
            *map(str, (job, answers)),
            directory=Path(folder),
            environment={**os.environ, **ENVIRONMENT, **ranks},
            time_limit=600,
        )
        assert ended.status == 0, ended.output[-3000:] + ended.errors[-6000:]
        return [[Answer(*answer) for answer in of_round] for of_round in pickle.loads(answers.read_bytes())]


PLACED: dict[tuple[int, ...], list[list[int]]] = {}


def record_positions(model: Any) -> None:
    """Note in `PLACED` the positions that a model gives the rows of a prompt, by the ids of the prompt."""
    place = getattr(model, "recompute_mrope_positions", None)
    if place is None:
        return

    def place_and_note(input_ids: Any, **kwargs: Any) -> Any:
        outputs = place(input_ids=input_ids, **kwargs)
        PLACED[tuple(input_ids)] = outputs[1].tolist()
        return outputs

    model.recompute_mrope_positions = place_and_note


def record_interruptions() -> set[str]:
    """The ids of the requests that the engine in this process puts back to wait, collected as it does."""
    from vllm.v1.core.sched.scheduler import Scheduler

    interrupt, interrupted = Scheduler._preempt_request, set()

    def note_and_interrupt(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        interrupted.add(request.request_id.split("-")[0])  # the engine adds a suffix to the id in the output
        interrupt(self, request, *args, **kwargs)

    Scheduler._preempt_request = note_and_interrupt
    return interrupted


def main() -> None:
    from vllm import LLM, SamplingParams

    job, interrupted = pickle.loads(Path(sys.argv[1]).read_bytes()), record_interruptions()
    engine = LLM(limit_mm_per_prompt={"image": 2, "video": 3}, **job["options"])
    if job["options"].get("tensor_parallel_size", 1) == 1:  # then the model is in this process
        engine.apply_model(record_positions)
    sampling = SamplingParams(temperature=0, max_tokens=job["max_tokens"], ignore_eos=True, logprobs=0)
    rounds = []
    for requests in job["rounds"]:
        answers = []
        for output in engine.generate(requests, sampling, use_tqdm=False):
            (completion,) = output.outputs
            chosen = zip(completion.token_ids, completion.logprobs, strict=True)
            logprobs = [of_token[token].logprob for token, of_token in chosen]
            prompt = list(output.prompt_token_ids)
            placed = PLACED.get(tuple(prompt))
            answers.append((prompt, list(completion.token_ids), logprobs, placed, output.request_id in interrupted))
        rounds.append(answers)
    Path(sys.argv[2]).write_bytes(pickle.dumps(rounds))
