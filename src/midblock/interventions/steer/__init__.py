"""Directions added to the residual stream: does one of them do what tuning did?"""
