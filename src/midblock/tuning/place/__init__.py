"""Where and what to train: plans, budgets, methods, and a model made ready for it."""
