"""The known benchmarks: where each comes from, how its rows are read, how often its problems are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_amft.data import schemas
from nemo_amft.data.schemas import Schema

IN, OUT = "in distribution", "out of distribution"


@dataclass(frozen=True)
class Benchmark:
    title: str
    hub: str
    """Hub id, with ":config" where the set has several."""
    split: str
    schema: Schema
    """Of the hub's rows. A file of one's own may have any schema that its columns tell."""
    problems: int
    """How many the published protocol has: another number is pointed out."""
    samples: int = 1
    """Responses a problem: 32 on the small sets, whose single draws say little."""
    choice: bool = False
    """Answered by an option's letter."""
    group: str = ""
    """Which summary average it counts in, besides that of all."""


BENCHMARKS = {
    "aime24": Benchmark("AIME 2024", "HuggingFaceH4/aime_2024", "train", schemas.problem, 30, 32, group=IN),
    "aime25": Benchmark("AIME 2025", "math-ai/aime25", "test", schemas.problem, 30, 32, group=IN),
    "amc": Benchmark("AMC", "AI-MO/aimo-validation-amc", "train", schemas.problem, 83, 32, group=IN),
    "math500": Benchmark("MATH-500", "HuggingFaceH4/MATH-500", "test", schemas.problem, 500, group=IN),
    "minerva": Benchmark("Minerva", "math-ai/minervamath", "test", schemas.plain, 272, group=IN),
    "olympiadbench": Benchmark(
        "OlympiadBench", "Hothan/OlympiadBench:OE_TO_maths_en_COMP", "train", schemas.olympiad, 675, group=IN
    ),
    "arc_c": Benchmark("ARC-C", "allenai/ai2_arc:ARC-Challenge", "test", schemas.arc, 1172, choice=True, group=OUT),
    "gpqa_diamond": Benchmark("GPQA-D", "Idavidrein/gpqa:gpqa_diamond", "train", schemas.gpqa, 198, choice=True, group=OUT),
    "mmlu_pro": Benchmark("MMLU-Pro", "TIGER-Lab/MMLU-Pro", "test", schemas.mmlu_pro, 12032, choice=True, group=OUT),
    "gsm8k": Benchmark("GSM8K", "openai/gsm8k:main", "test", schemas.gsm8k, 1319),
}
"""By the name that stands under `benchmarks` in a configuration."""
