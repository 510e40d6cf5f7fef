"""Runs vLLM's engine in a process of its own: an engine leaves threads, hooks and process groups behind.

    python tests/vllm_engine.py job.pickle answers.pickle

The job is a dictionary: the arguments of `LLM` as "options", and "rounds" of requests, each round in one call.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


class Answer(NamedTuple):
    """Of one request: ids of the prompt as the engine saw it, and the generated tokens with their log-probabilities."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


def run_engine(*rounds: list[dict[str, Any]], max_tokens: int = 8, **options: Any) -> list[list[Answer]]:
    """Answers to rounds of requests, as `LLM.generate` takes them, by an engine with these options."""
    options = {
        "dtype": "float32",
        "max_model_len": 2048,
        "enforce_eager": True,
        "max_num_seqs": 8,
        "seed": 0,
        **options,
    }
    with tempfile.TemporaryDirectory() as folder:
        job, answers = Path(folder, "job.pickle"), Path(folder, "answers.pickle")
        job.write_bytes(pickle.dumps({"options": options, "rounds": rounds, "max_tokens": max_tokens}))
        finished = subprocess.run(
            [sys.executable, __file__, job, answers],
            env={**os.environ, **ENVIRONMENT, "VLLM_CACHE_ROOT": folder},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-6000:]
        return [[Answer(*answer) for answer in of_round] for of_round in pickle.loads(answers.read_bytes())]


def main() -> None:
    from vllm import LLM, SamplingParams

    job = pickle.loads(Path(sys.argv[1]).read_bytes())
    engine = LLM(limit_mm_per_prompt={"image": 2, "video": 3}, **job["options"])
    sampling = SamplingParams(temperature=0, max_tokens=job["max_tokens"], ignore_eos=True, logprobs=0)
    rounds = []
    for requests in job["rounds"]:
        answers = []
        for output in engine.generate(requests, sampling, use_tqdm=False):
            (completion,) = output.outputs
            chosen = zip(completion.token_ids, completion.logprobs, strict=True)
            logprobs = [of_token[token].logprob for token, of_token in chosen]
            answers.append((list(output.prompt_token_ids), list(completion.token_ids), logprobs))
        rounds.append(answers)
    Path(sys.argv[2]).write_bytes(pickle.dumps(rounds))


if __name__ == "__main__":
    main()
