"""placeholder"""
CUSTOM_PIPELINES = {}
