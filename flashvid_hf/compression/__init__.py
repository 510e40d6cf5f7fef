"""The compression of one video, as the paper describes it. Tensors in, tensors out: it needs torch only."""
