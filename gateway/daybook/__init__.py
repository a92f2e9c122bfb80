"""Daybook: logs as files, one a day (UTC), packed when the day is over and removed when they are old.

They are conveniences, and the journal is the truth: a line that cannot be written in time is dropped and
counted, and the file says so. Nothing here ever slows or fails a request, and no line holds content, a key or
the value of a header.
"""
