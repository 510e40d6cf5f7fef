"""Ask a model about a video, without FlashVID and with it, and show what each costs.

make demo                                            the trained demo model on its own video, no download
make demo FAMILY=qwen3_vl                            random weights in the shape of a family: token counts and times
make demo MODEL=Qwen/Qwen2.5-VL-3B-Instruct          real weights, of upstream or with FlashVID
make demo MODEL=... VIDEO=holiday.mp4 ARGS='--question "Where is this?" --num-frames 64'
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from flashvid_hf import find_family, load_processor
from flashvid_hf.evaluation.arguments import COUNT, SHARE
from flashvid_hf.families import FAMILIES_BY_NAME
from flashvid_hf.tiny_models import build_small_folder

ROOT = Path(__file__).resolve().parent.parent
# The defaults for the trained model, which knows only such videos, with 16 frames.
TRAINED = {
    "model": ROOT / "hub_configs" / "flashvid-demo",
    "video": ROOT / "examples" / "moving_shapes.mp4",
    "question": "What colour does the triangle turn into? Answer with one word.",
    "num_frames": 16,
}
# The defaults for every other model.
ORDINARY = {"video": ROOT / "examples" / "clip.mp4", "question": "What happens in this video?", "num_frames": 32}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--model", help="folder or Hub id; default: hub_configs/flashvid-demo")
    chosen.add_argument(
        "--family", choices=FAMILIES_BY_NAME, help="a checkpoint with random weights in this family's shape"
    )
    parser.add_argument("--video", help=f"a video file; default: {TRAINED['video'].name} for the trained demo model")
    parser.add_argument("--question")
    parser.add_argument("--num-frames", type=COUNT)
    parser.add_argument("--retention-ratio", type=SHARE, default=0.1)
    parser.add_argument("--max-new-tokens", type=COUNT, default=16)
    given = parser.parse_args()
    for name, value in (ORDINARY if given.model or given.family else TRAINED).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def prepare_random_model(family: str) -> Path:
    """A checkpoint with random weights. It is built once, and again when the code in it has changed."""
    folder = ROOT / "build" / f"random-demo-{family}"
    weights = folder / "model.safetensors"
    sources = (ROOT / "flashvid_hf").rglob("*.py")
    if not weights.exists() or weights.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        build_small_folder(folder, family)
    return folder


def main() -> None:
    arguments = parse_arguments()
    transformers_logging.set_verbosity(logging.ERROR)
    name = str(prepare_random_model(arguments.family) if arguments.family else arguments.model)

    on_gpu = torch.cuda.is_available()
    placement = {"device_map": "auto", "dtype": "auto"} if on_gpu else {}
    model = find_family(name).generative_model.from_pretrained(name, **placement)
    pipe = pipeline("video-text-to-text", model=model, processor=load_processor(name))

    settings = {"num_frames": arguments.num_frames, "do_sample": False}
    runs = {"without FlashVID": 1.0, f"with FlashVID, {arguments.retention_ratio:.0%}": arguments.retention_ratio}
    answers = {}
    for label, retention_ratio in tqdm(runs.items(), desc="answering"):
        model.config.retention_ratio = retention_ratio  # 1.0: as upstream's model
        pipe(arguments.video, text=arguments.question, max_new_tokens=1, **settings)  # warm-up, not counted
        seconds = []
        for new_tokens in (1, arguments.max_new_tokens):
            start = time.perf_counter()
            (answer,) = pipe(arguments.video, text=arguments.question, max_new_tokens=new_tokens, **settings)
            seconds.append(time.perf_counter() - start)
        answers[label] = (answer, *seconds)

    print(f"\n{arguments.video}, {arguments.num_frames} frames: {arguments.question}\n")
    print(f"{'':24}{'video tokens':>14}{'entered':>10}{'remained':>10}{'first token':>13}{'answer':>10}")
    for label, (answer, first, whole) in answers.items():
        tokens = answer["video_tokens"]
        row = f"{tokens['total']:>14}{tokens['entered']:>10}{tokens['remained']:>10}{first:>11.2f} s{whole:>8.2f} s"
        print(f"{label:24}{row}")
    print("\nTimes are of one run on this machine, reading the file included.\n")
    for label, (answer, _, _) in answers.items():
        print(f"{label}: {answer['generated_text']!r}")
    if arguments.family:
        print(
            "\nThis checkpoint has random weights: the answers mean nothing, the token counts are those of any model.\n"
            "For real answers pass a model, for example MODEL=Qwen/Qwen2.5-VL-3B-Instruct."
        )
    elif arguments.model == TRAINED["model"]:
        print("\nThe model is small and knows questions about moving shapes: see hub_configs/flashvid-demo/README.md.")


if __name__ == "__main__":
    main()
