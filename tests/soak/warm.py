"""Imported by the server of ranks: reads a configuration once, so that its grammars and plug-ins are there in every rank."""

from nemo_amft.config.load import load

load(["--config-name", "quickstart", "task.modulus=2"], check=False)
