"""Qwen2-VL as published, on a tenth of the tokens of 32 frames.

python examples/qwen2_vl.py [MODEL] [VIDEO]
"""

import sys

from transformers import AutoProcessor, pipeline

from flashvid_hf import FlashVIDQwen2VLForConditionalGeneration

name = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen2-VL-7B-Instruct"
video = sys.argv[2] if len(sys.argv) > 2 else "examples/clip.mp4"

model = FlashVIDQwen2VLForConditionalGeneration.from_pretrained(
    name, dtype="auto", device_map="auto", retention_ratio=0.1
)
processor = AutoProcessor.from_pretrained(name)
pipe = pipeline("video-text-to-text", model=model, processor=processor)
(answer,) = pipe(video, text="What happens in this video?", num_frames=32, max_new_tokens=64)
print(answer["generated_text"])
print(answer["video_tokens"])
