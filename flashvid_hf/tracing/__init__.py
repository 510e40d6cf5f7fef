"""What the compression did with a video: the record and the picture."""
