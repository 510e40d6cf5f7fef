"""The models with FlashVID: what all families share, and a folder for each group of families."""
