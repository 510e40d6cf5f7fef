"""What the command line does: every module is a library call, `cli.py` is its surface."""
