"""Ask about a video file: the pipeline reads it, the model answers on a tenth of its tokens.

    python examples/answer_with_pipeline.py [MODEL] [VIDEO]

A FlashVID folder or Hub repository brings its code along, so nothing but transformers is needed: read the code there,
then allow it with `trust_remote_code=True`.
"""

import sys

from transformers import pipeline

model = sys.argv[1] if len(sys.argv) > 1 else "hub_configs/flashvid-demo"
video = sys.argv[2] if len(sys.argv) > 2 else "examples/moving_shapes.mp4"

pipe = pipeline("video-text-to-text", model=model, trust_remote_code=True)
question = "What colour does the triangle turn into? Answer with one word."
(answer,) = pipe(video, text=question, num_frames=16, max_new_tokens=32)
print(answer["generated_text"])
print(answer["video_tokens"])
