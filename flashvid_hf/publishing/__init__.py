"""What a Hub repository consists of: export, code, card, checks, upload."""
