"""The verb `flow`: gradients over the first steps, compared with one another."""
