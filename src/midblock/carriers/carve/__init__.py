"""`carve`: which channels carry what tuning taught, and is that so: without them, with them alone, with others?"""
