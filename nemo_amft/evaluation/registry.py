"""The known benchmarks: where each comes from, how often its problems are drawn."""

from __future__ import annotations

from dataclasses import dataclass


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


BENCHMARKS = {
    "aime24": Benchmark("AIME 2024", "HuggingFaceH4/aime_2024", "train", 30, 32),
    "aime25": Benchmark("AIME 2025", "math-ai/aime25", "test", 30, 32),
    "amc": Benchmark("AMC", "AI-MO/aimo-validation-amc", "train", 83, 32),
    "math500": Benchmark("MATH-500", "HuggingFaceH4/MATH-500", "test", 500),
    "minerva": Benchmark("Minerva", "math-ai/minervamath", "test", 272),
    "olympiadbench": Benchmark("OlympiadBench", "Hothan/OlympiadBench:OE_TO_maths_en_COMP", "train", 675),
    "arc_c": Benchmark("ARC-C", "allenai/ai2_arc:ARC-Challenge", "test", 1172, choice=True),
    "gpqa_diamond": Benchmark("GPQA-D", "Idavidrein/gpqa:gpqa_diamond", "train", 198, choice=True),
    "mmlu_pro": Benchmark("MMLU-Pro", "TIGER-Lab/MMLU-Pro", "test", 12032, choice=True),
    "gsm8k": Benchmark("GSM8K", "openai/gsm8k:main", "test", 1319),
}
"""By the name that stands under `benchmarks` in a configuration."""

TABLE_2 = ("aime24", "amc", "math500", "minerva", "olympiadbench")
AVERAGES = {
    "in distribution, Table 2": TABLE_2,
    "in distribution, LUFFY": (*TABLE_2, "aime25"),
    "out of distribution": ("arc_c", "gpqa_diamond", "mmlu_pro"),
}
"""The sets of each average, by its name: Table 2 of the paper (arXiv 2508.06944) leaves AIME 2025 out, LUFFY (arXiv 2504.14945)
has it; out of distribution both have the same three."""
