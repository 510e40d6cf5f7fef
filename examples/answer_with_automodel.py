"""The same by hand: AutoModel, AutoProcessor and `generate`, with the package instead of remote code.

python examples/answer_with_automodel.py [MODEL] [VIDEO]
"""

import sys

from transformers import AutoModelForImageTextToText, AutoProcessor

from flashvid_hf import read_video  # importing the package registers its models with the Auto classes

name = sys.argv[1] if len(sys.argv) > 1 else "hub_configs/flashvid-demo"
video = sys.argv[2] if len(sys.argv) > 2 else "examples/moving_shapes.mp4"

model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto", retention_ratio=0.1)
processor = AutoProcessor.from_pretrained(name)

clip = read_video(video, num_frames=16)
question = "What colour does the triangle turn into? Answer with one word."
content = [{"type": "video"}, {"type": "text", "text": question}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(
    text=[prompt],
    videos=[clip.frames],
    video_metadata=[clip.metadata],
    do_sample_frames=False,  # they are sampled already
    return_tensors="pt",
).to(model.device)

outputs = model.generate(**inputs, max_new_tokens=32, return_dict_in_generate=True)
print(processor.decode(outputs.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
print(outputs.report)
