"""The verb `evaluate`: models on tasks, compared item by item, and what tuning made them forget."""
