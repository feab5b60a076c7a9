"""What a run must not show, asked for in one line, and whether it does: for people's CI."""
