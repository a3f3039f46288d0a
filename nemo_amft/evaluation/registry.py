"""The known benchmarks: where each comes from, how often its problems are drawn."""

from __future__ import annotations

from dataclasses import dataclass

IN, OUT = "in distribution", "out of distribution"


@dataclass(frozen=True)
class Benchmark:
    title: str
    hub: str
    """Hub id, with ":config" where the set has several."""
    split: str
    problems: int
    """How many the published protocol has: another number is pointed out."""
    samples: int = 1
    """Responses a problem: 32 on the small sets, whose single draws say little."""
    choice: bool = False
    """Answered by an option's letter."""
    group: str = ""
    """Which summary average it counts in, besides that of all."""


BENCHMARKS = {
    "aime24": Benchmark("AIME 2024", "HuggingFaceH4/aime_2024", "train", 30, 32, group=IN),
    "aime25": Benchmark("AIME 2025", "math-ai/aime25", "test", 30, 32, group=IN),
    "amc": Benchmark("AMC", "AI-MO/aimo-validation-amc", "train", 83, 32, group=IN),
    "math500": Benchmark("MATH-500", "HuggingFaceH4/MATH-500", "test", 500, group=IN),
    "minerva": Benchmark("Minerva", "math-ai/minervamath", "test", 272, group=IN),
    "olympiadbench": Benchmark("OlympiadBench", "Hothan/OlympiadBench:OE_TO_maths_en_COMP", "train", 675, group=IN),
    "arc_c": Benchmark("ARC-C", "allenai/ai2_arc:ARC-Challenge", "test", 1172, choice=True, group=OUT),
    "gpqa_diamond": Benchmark("GPQA-D", "Idavidrein/gpqa:gpqa_diamond", "train", 198, choice=True, group=OUT),
    "mmlu_pro": Benchmark("MMLU-Pro", "TIGER-Lab/MMLU-Pro", "test", 12032, choice=True, group=OUT),
    "gsm8k": Benchmark("GSM8K", "openai/gsm8k:main", "test", 1319),
}
"""By the name that stands under `benchmarks` in a configuration."""
