"""Ratios to what nobody can beat: the bare forward pass, the disk's read speed, Python's own start."""
