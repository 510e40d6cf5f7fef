"""The compression of one video, as the paper describes it. Tensors in, tensors out: it needs torch only.

`compressed_video.py` has the legend of the letters that all files of this folder use.
"""
