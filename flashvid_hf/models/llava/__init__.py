"""The LLaVA families."""
