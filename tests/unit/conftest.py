"""Hypothesis without its time limit for an example, which on a machine with other work says nothing about the code."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
