"""Blocks of two models exchanged by reference: where in depth does tuning matter?"""
