"""Mathematics problems from files or the hub, judged by Math-Verify."""

from nemo_amft.tasks.math.task import MathConfig, MathTask

__all__ = ["MathConfig", "MathTask"]
