"""Video files and URLs become frames; the pipeline `video-text-to-text`. The legend of letters is in `reading.py`."""
