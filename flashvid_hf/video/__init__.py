"""Videos: files and URLs in, frames out; the pipeline `video-text-to-text`."""
