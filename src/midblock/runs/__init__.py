"""The life of a run: what is asked for, where it goes, what is read, and how it is opened, resumed and finished.

Nothing is re-exported here, so that the table of verbs can be read without loading anything.
"""
