"""General Points: make 24 of four playing cards, as text or as a picture, in one attempt or several. Needs no data."""

from nemo_amft.tasks.general_points.task import GeneralPointsConfig, GeneralPointsTask

__all__ = ["GeneralPointsConfig", "GeneralPointsTask"]
