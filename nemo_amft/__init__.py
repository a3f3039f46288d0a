"""AMFT on Megatron-Core: supervised fine-tuning and reinforcement learning in one stage, balanced by a learned weight."""

__version__ = "0.1.0"
