"""What a configuration will do, worked out without building anything: batches, memory, communication, time.

Everything here is arithmetic on the configuration and the model's shape. Nothing imports torch.
"""

from nemo_amft.planning.batches import batch_table

__all__ = ["batch_table"]
