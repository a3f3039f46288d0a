"""V-IRL navigation: follow instructions through a city, from street views or their descriptions (SFTvsRL, arXiv 2501.17161)."""

from nemo_amft.tasks.virl.environment import NavigationEnvironment
from nemo_amft.tasks.virl.published import export, load_routes
from nemo_amft.tasks.virl.task import VirlConfig, VirlTask

__all__ = ["NavigationEnvironment", "VirlConfig", "VirlTask", "export", "load_routes"]
