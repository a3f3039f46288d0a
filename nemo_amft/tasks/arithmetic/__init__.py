"""Generated arithmetic: chains of small operations, with worked steps as demonstrations. Needs no data and no network."""

from nemo_amft.tasks.arithmetic.problems import ALPHABET
from nemo_amft.tasks.arithmetic.task import ArithmeticConfig, ArithmeticTask

__all__ = ["ALPHABET", "ArithmeticConfig", "ArithmeticTask"]
