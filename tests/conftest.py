"""Settings of the whole suite."""

from hypothesis import settings

# A deadline an example measures the machine, which others use too.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
