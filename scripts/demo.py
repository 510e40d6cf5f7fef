"""Ask a model about a video, without FlashVID and with it, and show what each costs.

make demo                                            the demo checkpoint (random weights), no download
make demo FAMILY=qwen3_vl                            the same in the shape of another family
make demo MODEL=Qwen/Qwen2.5-VL-3B-Instruct          real weights, of upstream or with FlashVID
make demo VIDEO=holiday.mp4 ARGS='--question "Where is this?" --num-frames 64'
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from build_demo_model import SHAPES, build_demo_model
from tqdm import tqdm
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from flashvid_hf import find_family, load_processor

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; default: the demo checkpoint, built once")
    parser.add_argument("--family", default="qwen2_5_vl", choices=SHAPES, help="of the demo checkpoint")
    parser.add_argument("--video", default=ROOT / "examples" / "clip.mp4", help="a video file")
    parser.add_argument("--question", default="What happens in this video?")
    parser.add_argument("--num-frames", type=int, default=32)
    parser.add_argument("--retention-ratio", type=float, default=0.1)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    return parser.parse_args()


def prepare_demo_model(family: str) -> Path:
    """The demo checkpoint, built once and again where the code that it carries has changed."""
    folder = ROOT / "build" / ("flashvid-demo" if family == "qwen2_5_vl" else f"flashvid-demo-{family}")
    weights = folder / "model.safetensors"
    sources = [*(ROOT / "flashvid_hf").glob("*.py"), ROOT / "scripts" / "build_demo_model.py"]
    if not weights.exists() or weights.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        build_demo_model(folder, family)
    return folder


def main() -> None:
    arguments = parse_arguments()
    transformers_logging.set_verbosity(logging.ERROR)
    name = arguments.model or str(prepare_demo_model(arguments.family))

    on_gpu = torch.cuda.is_available()
    placement = {"device_map": "auto", "dtype": "auto"} if on_gpu else {}
    model = find_family(name).generative_model.from_pretrained(name, **placement)
    pipe = pipeline("video-text-to-text", model=model, processor=load_processor(name))

    settings = {"num_frames": arguments.num_frames, "do_sample": False}
    runs = {"without FlashVID": 1.0, f"with FlashVID, {arguments.retention_ratio:.0%}": arguments.retention_ratio}
    answers = {}
    for label, retention_ratio in tqdm(runs.items(), desc="answering"):
        model.config.retention_ratio = retention_ratio  # 1.0 is the upstream model
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
    if arguments.model is None:
        print(
            "\nThe demo checkpoint has random weights: the answers mean nothing, the token counts are those of any "
            "model.\nFor real answers pass a model, for example MODEL=Qwen/Qwen2.5-VL-3B-Instruct."
        )


if __name__ == "__main__":
    main()
