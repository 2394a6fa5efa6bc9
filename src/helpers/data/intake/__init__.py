"""Intake: what a user's files are, and how many of their rows are read.

- `files`: whether a file can be read line by line, and what to do where it cannot
- `samples`: a seeded sample of more rows than are read
"""
