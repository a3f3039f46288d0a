"""rollouts/: what the policy wrote, to be read by people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_amft.data.golds import readable
from nemo_amft.observe.files import write_atomically

if TYPE_CHECKING:
    from nemo_amft.algorithms.methods.base import Group
    from nemo_amft.tasks.base import Images
    from nemo_amft.types import Example


class RolloutWriter:
    """Writes one JSON object a response to rollouts/{train,validation,test}_{step}.jsonl. A file is written whole, so a step
    that is repeated after a resume replaces its own. Images are beside them, in rollouts/images/."""

    def __init__(self, run_dir: Path, limit: int, enabled: bool):
        """`limit`: responses a file; 0 none, -1 all. `enabled`: on rank 0 only."""
        self.folder, self.limit, self.enabled = run_dir / "rollouts", limit, enabled and limit != 0

    def write(self, step: int, groups: Sequence[Group], kind: str = "train", images: Images | None = None) -> None:
        if not self.enabled:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "id": group.example.id,
                "prompt": group.example.messages[-1]["content"],
                "response": sample.text,
                "answer": readable(group.example.answer),
                "reward": sample.verdict.reward,
                "correct": sample.verdict.correct,
                "status": sample.verdict.status,
                "finished": sample.finished,
                "tokens": sample.num_tokens,
                **({} if pictures is None else {"images": pictures}),
            }
            for group in groups
            for pictures in [None if images is None else self._saved(group.example, images)]
            for sample in group.samples
        ]
        kept = rows if self.limit < 0 else rows[: self.limit]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        write_atomically(self.folder / f"{kind}_{step:06d}.jsonl", text)

    def _saved(self, example: Example, images: Images) -> list[str]:
        """Names of an example's images under rollouts/, in place of those of an earlier evaluation."""
        (self.folder / "images").mkdir(exist_ok=True)
        names = []
        for number, image in enumerate(images(example)):
            names.append(f"images/{example.id.replace('/', '_')}-{number:02d}.png")
            image.save(self.folder / names[-1])
        return names
