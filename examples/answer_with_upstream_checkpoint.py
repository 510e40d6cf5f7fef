"""Drop-in: a published checkpoint of any family loads into its FlashVID class and is compressed from then on.

python examples/answer_with_upstream_checkpoint.py [MODEL] [VIDEO]
"""

import sys

from transformers import pipeline

from flashvid_hf import find_family, load_processor

name = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen2.5-VL-3B-Instruct"
video = sys.argv[2] if len(sys.argv) > 2 else "examples/clip.mp4"

model_class = find_family(name).generative_model
model = model_class.from_pretrained(name, dtype="auto", device_map="auto", retention_ratio=0.1)
pipe = pipeline("video-text-to-text", model=model, processor=load_processor(name))
(answer,) = pipe(video, text="What happens in this video?", num_frames=32, max_new_tokens=32)
print(answer["generated_text"])
print(answer["video_tokens"])

model.config.retention_ratio = 1.0  # off: the upstream model
(answer,) = pipe(video, text="What happens in this video?", num_frames=32, max_new_tokens=32)
print(answer["video_tokens"])
