"""`study`: a grid of tunings, each evaluated alike, and which of them is best."""
