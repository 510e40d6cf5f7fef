"""A record of what the compression did with every token of a video, and its picture.

Legend: T frames (for Qwen: temporal grids), N = height * width tokens a frame, M kept tokens, h and w height and width
of a picture in pixels. A flat index is t * N + n.
"""
