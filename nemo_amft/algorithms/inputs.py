"""What a run reads, as fingerprints: a checkpoint keeps them, and a run that continues from it must have the same.

Streams are positions in an order of the examples, D_val is what was never trained on, and token ids mean what a tokenizer says:
with other files a resumed run would go on without an error, and be no run at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from nemo_amft.algorithms.run_data import RunData
from nemo_amft.config.continuation import CONTENT, OWN_FOLDER, Change, is_of, refuse_fewer_steps
from nemo_amft.config.schema import Config
from nemo_amft.evaluation import checkpoint as weights
from nemo_amft.models import checkpoints
from nemo_amft.models.hub_model import HubModel
from nemo_amft.models.hub_tokenizer import CARRIED
from nemo_amft.types import Example, UserError

Fingerprints = dict[str, str]
"""By what is read."""

LEARNED_FROM = {
    "prompts": "data.train",
    "demonstrations": "data.demonstrations",
    "validation set": "data.validation",
    "tokenizer": "model.tokenizer",
    "chat template": "model.chat_template",
    "model": "model.path",
}
"""What must be the same, and the key that names it first of all. The rest is only measured with."""

_DATA = ("data", "task")
_SHAPED_BY = {"prompts": _DATA, "demonstrations": _DATA, "validation set": _DATA}
"""The keys that more than the files decide by which examples there are."""


def fingerprints(data: RunData, hub: HubModel) -> Fingerprints:
    """Of all that a run reads. Weights by samples of their files, all else whole."""
    sets = {
        "prompts": data.prompts,
        "demonstrations": data.demonstrations,
        "validation set": data.validation,
        "test set": data.test,
    }
    sets |= {f"set {name}": examples for name, examples in {**data.evaluation_sets, **data.benchmarks}.items()}
    template = json.dumps(hub.tokenizer.chat_template, sort_keys=True)
    return {name: of_examples(examples) for name, examples in sets.items()} | {
        "tokenizer": _digest(_tokenizer_parts(hub.tokenizer_path)),
        "chat template": _digest([template.encode()]),
        "model": weights.fingerprint(hub.path),
    }


def of_examples(examples: Sequence[Example]) -> str:
    """Their number, and a digest of all that is shown, imitated or graded, in order."""
    parts = (
        json.dumps([e.id, [dict(m) for m in e.messages], e.answer, e.demonstration, e.source, e.response_prefix]).encode()
        for e in examples
    )
    return f"{len(examples):,} examples, {_digest(parts)}"


def refuse_other_beginning(
    config: Config, folder: Path, now: Fingerprints, changed: Sequence[Change], say: Callable[[str], None]
) -> None:
    """Raises UserError where the newest checkpoint in a run's `folder` is none that `config` can continue from, with `now` for
    what is read and `changed` keys. Says what else there is to say."""
    newest = checkpoints.newest_state(folder)
    if newest is None:
        return
    path, state = newest
    if not config.exp_manager.resume_if_exists:
        raise UserError(f"exp_manager.resume_if_exists=false: found checkpoints in {folder}, expected a new run")
    refuse_fewer_steps(config, state["progress"], path)
    refuse_other_inputs(state.get("inputs"), now, changed, path, say)


def refuse_other_inputs(
    before: Mapping[str, str] | None, now: Fingerprints, changed: Sequence[Change], checkpoint: Path, say: Callable[[str], None]
) -> None:
    """Raises UserError where `now` is not what `checkpoint` has learned from: `before`, or None where it does not know. Says
    what else there is to say. `changed`: keys of the configuration."""
    if before is None:
        for change in changed:
            if is_of(change.key, CONTENT):
                raise UserError(
                    f"{change.key}: found another value than before ({change}), expected the same to continue from "
                    f"{checkpoint}, which has no fingerprints of what it was trained on to compare with, {OWN_FOLDER}"
                )
        say(f"{checkpoint}: an earlier version wrote it, without fingerprints of data, tokenizer and model: not checked")
        return
    for name, found in now.items():
        if name not in before or found == before[name]:
            continue
        if name in LEARNED_FROM:
            shaped_by = _SHAPED_BY.get(name, (LEARNED_FROM[name],))
            blamed = "; ".join(str(change) for change in changed if is_of(change.key, shaped_by))
            why = f"changed: {blamed}" if blamed else "the keys are as before, so files have changed, or the program"
            other = f"other {name}" if name.endswith("s") else f"another {name}"
            raise UserError(
                f"{LEARNED_FROM[name]}: found {other} ({found}), expected what {checkpoint} was trained with "
                f"({before[name]}), {OWN_FOLDER}; {why}"
            )
        say(f"{name}: another than before ({before[name]} -> {found}); its accuracies do not compare with earlier ones")


def _tokenizer_parts(folder: Path) -> Iterable[bytes]:
    for pattern in CARRIED:
        for file in sorted(filter(Path.is_file, folder.glob(pattern))):
            yield file.name.encode()
            yield file.read_bytes()


def _digest(parts: Iterable[bytes]) -> str:
    """16 hexadecimal digits; where one part ends and the next begins counts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]
