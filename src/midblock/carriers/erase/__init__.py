"""The soft prompt that switches a behaviour off again, and what that shows: the verb `erase`."""
