"""Holding on to the pretrained weights: RPSFT's penalty and the singular factors it needs."""
