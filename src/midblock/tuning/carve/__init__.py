"""LCDD: which channels of a fine-tuned model's change carry it, found with the change itself."""
