"""LLaVA-Video from its original repository, on a tenth of the tokens of 64 frames.

The repository brings a tokenizer and no processor: `load_processor` makes one.

python examples/llava_video.py [MODEL] [VIDEO]
"""

import sys

from transformers import pipeline

from flashvid_hf import FlashVIDLlavaVideoForConditionalGeneration, load_processor

name = sys.argv[1] if len(sys.argv) > 1 else "lmms-lab/LLaVA-Video-7B-Qwen2"
video = sys.argv[2] if len(sys.argv) > 2 else "examples/clip.mp4"

model = FlashVIDLlavaVideoForConditionalGeneration.from_pretrained(
    name, dtype="auto", device_map="auto", retention_ratio=0.1
)
processor = load_processor(name)
pipe = pipeline("video-text-to-text", model=model, processor=processor)
(answer,) = pipe(video, text="What happens in this video?", num_frames=64, max_new_tokens=64)
print(answer["generated_text"])
print(answer["video_tokens"])
