"""The safetensors of a hub folder: opened as they are needed, and checked against config.json before anything is built."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemo_amft.config.hub_json import read_object
from nemo_amft.models.architecture import Architecture
from nemo_amft.models.hub_files import INDEX_FILE, SINGLE_FILE
from nemo_amft.models.hub_names import EMBEDDING, HEAD, hub_shapes
from nemo_amft.types import UserError

DTYPES = ("F32", "BF16", "F16", "F64")
"""Safetensors' names of the types that hold weights as they are."""

ROWS = 8192
"""Rows of the vocabulary that are compared at one time."""

_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|weight_format|weight_(packed|shape|zero_point)|(weight|input|k|v)_scale(_inv)?"
    r"|weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+))$"
)
"""Tensors that bitsandbytes, GPTQ, AWQ, compressed-tensors and FP8 checkpoints have beside the weights or in their place."""

_BODY = ("embed_tokens.", "layers.", "norm.")
"""What names begin with in a model saved without a head, such as Qwen2Model; others put `model.` in front."""


def check_weights(folder: Path, architecture: Architecture, body_only: bool = False) -> None:
    """See `HubReader.check`. Also, a head of its own in the file of a model whose embeddings are tied must equal them."""
    with contextlib.ExitStack() as stack:
        reader = HubReader(folder, stack)
        reader.check(architecture, body_only)
        if architecture.tied_embeddings and not body_only and HEAD in reader:
            reader.refuse_another_head()


class HubReader:
    """The safetensors of a folder, closed with `stack`. Names are those of a model with a head, `model.norm.weight`."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack):
        self._folder, self._stack, self._opened = folder, stack, {}
        file_of = self._files()
        self._source = folder / (INDEX_FILE if set(file_of.values()) != {SINGLE_FILE} else SINGLE_FILE)
        prefix = "" if EMBEDDING in file_of else "model."
        self._place = {(prefix + name if name.startswith(_BODY) else name): (file, name) for name, file in file_of.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def read(self, name: str) -> Tensor:
        file, stored = self._place[name]
        return self._open(file).get_tensor(stored)

    def check(self, architecture: Architecture, body_only: bool = False) -> None:
        """Compare names, types and shapes in the files' headers with what the config asks for. Reads no tensor.

        `body_only`: heads are left aside, whether a language model's or a reward model's.

        Raises:
            UserError: a tensor is missing, unexpected, quantised, or of another shape.
        """
        shapes = hub_shapes(architecture)
        ignored = {HEAD} if body_only or architecture.tied_embeddings else set()
        # Old Llama files carry the rotary frequencies, which follow from the config.
        found = {name for name in self._place if not name.endswith("rotary_emb.inv_freq")}
        found = {name for name in found if name.startswith("model.") or not body_only} - ignored
        wanted = shapes.keys() - ignored
        self._refuse_quantised(found)
        for kind, names in (("has no tensor", wanted - found), ("has an unexpected tensor", found - wanted)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise UserError(f"{self._source}: {kind} {min(names)!r}{more}; config.json asks for {len(wanted)} tensors")
        for name in sorted(wanted):
            file, stored = self._place[name]
            shape, asked = tuple(self._open(file).get_slice(stored).get_shape()), shapes[name]
            if shape != asked:
                raise UserError(f"{self._folder / file}: tensor {name!r} has shape {shape}; config.json makes it {asked}")

    def refuse_another_head(self) -> None:
        """Raise UserError where the head differs from the embedding. transformers then unties the two, vLLM drops the head."""
        head, embedding = (self._open(file).get_slice(name) for file, name in (self._place[HEAD], self._place[EMBEDDING]))
        rows = embedding.get_shape()[0]
        same = head.get_shape() == embedding.get_shape() and all(
            head[i : i + ROWS].float().equal(embedding[i : i + ROWS].float()) for i in range(0, rows, ROWS)
        )
        if not same:
            raise UserError(
                f"{self._folder / self._place[HEAD][0]}: {HEAD!r} differs from {EMBEDDING!r}, expected the same, as "
                "config.json ties them (model.config_overrides.tie_word_embeddings=false reads it as a head of its own)"
            )

    def _files(self) -> dict[str, str]:
        """The file of each tensor, by the name it has there."""
        index, single = self._folder / INDEX_FILE, self._folder / SINGLE_FILE
        if not index.is_file():
            if not single.is_file():
                raise UserError(f"{self._folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}")
            return dict.fromkeys(self._open(SINGLE_FILE).keys(), SINGLE_FILE)
        file_of = read_object(index).get("weight_map")
        if not isinstance(file_of, dict) or not all(isinstance(file, str) for file in file_of.values()):
            raise UserError(f"{index}: weight_map: found none, or one of another form, expected the file of each tensor")
        files = sorted(set(file_of.values()))
        if single.is_file() and files != [SINGLE_FILE]:
            raise UserError(
                f"{index}: names {files[0]} beside {SINGLE_FILE}, expected one of the two: transformers reads {SINGLE_FILE}, "
                "vLLM what the index names"
            )
        for file in files:
            if not (self._folder / file).is_file():
                raise UserError(f"{index}: names {file}, which is not there")
        for file in files:
            named = {name for name in file_of if file_of[name] == file}
            stored = set(self._open(file).keys())
            if lost := named - stored:
                raise UserError(f"{self._folder / file}: has no tensor {min(lost)!r}, which {INDEX_FILE} names")
            if more := stored - named:
                raise UserError(f"{self._folder / file}: has a tensor {min(more)!r}, which {INDEX_FILE} does not place there")
        return file_of

    def _refuse_quantised(self, names: set[str]) -> None:
        for name in sorted(names):
            file, stored = self._place[name]
            dtype = self._open(file).get_slice(stored).get_dtype()
            if dtype not in DTYPES or _QUANTISED.search(name):
                raise UserError(
                    f"{self._folder / file}: tensor {name!r} ({dtype}) is of a quantised checkpoint, expected weights in fp32, "
                    "bf16 or fp16"
                )

    def _open(self, file: str):
        if file not in self._opened:
            path = self._folder / file
            try:
                self._opened[file] = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                with path.open("rb") as content:
                    pointer = content.read(20).startswith(b"version https://git-")
                reason = "a Git LFS pointer: the file itself was not fetched" if pointer else error
                raise UserError(f"{path}: not readable as safetensors ({reason})") from error
        return self._opened[file]
