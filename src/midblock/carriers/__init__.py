"""Carriers: sparse parts of a fine-tuning's change, what rivals them, and what erases what they carry."""
