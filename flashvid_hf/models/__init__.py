"""The models with FlashVID: what all families share, and a folder for each group of families.

`modeling.py` has the legend of the letters that all files of this folder use.
"""
