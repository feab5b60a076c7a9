"""A tuned adapter in the forms that other programs load."""
