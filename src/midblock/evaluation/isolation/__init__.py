"""Programs that models write, each run in a process of its own that can do next to nothing."""
