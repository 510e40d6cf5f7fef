"""FlashVID inside vLLM: the same compression, between vLLM's vision tower and its language model.

Legend: T temporal grids of a video, H and W rows and columns of tokens in a grid, N = H * W tokens of a grid, R rows of
embeddings of an image or a video that enter the language model, S tokens of a prompt, D width.
"""
