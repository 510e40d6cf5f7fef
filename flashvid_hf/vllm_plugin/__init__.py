"""FlashVID inside vLLM: the same compression core, between vLLM's vision tower and its language model."""
