"""The frozen prefix: blocks below the lowest tuned one run without a graph, or not at all."""
