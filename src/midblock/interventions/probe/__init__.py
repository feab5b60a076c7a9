"""Early exit: a model read off, or cut off, at every depth."""
