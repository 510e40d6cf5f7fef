"""Hub repositories: export, generated code, card, checks and upload.

Legend: T frames, H and W height and width of a frame in pixels, V size of the vocabulary.
"""
