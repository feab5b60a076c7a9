"""Which blocks to tune: from runs, from a pilot, or what to keep of a tuned model; rivals, and how advice is scored."""
