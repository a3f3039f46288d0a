"""Made-up rows in the columns of published sets."""

ROWS = {
    "problem": ({"problem": "What is 1 + 1?", "answer": 2.0, "solution": "Count."}, "2.0"),
    "plain": ({"question": "What is 1 + 1?", "answer": "2"}, "2"),
    "olympiad": ({"question": "Roots?", "final_answer": ["$1$", "$-1$"], "unit": None}, "$1$\x1e$-1$"),
    "math": (
        {
            "problem": "What is 1 / 2?",
            "level": "Level 1",
            "type": "Algebra",
            "solution": "Not $\\boxed{2}$ but $\\boxed{\\frac{1}{2}}$.",
        },
        "\\frac{1}{2}",
    ),
    "gsm8k": ({"question": "What is 1 + 1?", "answer": "Add: <<1+1=2>>2\n#### 2"}, "2"),
}
CHOICES = {
    "arc": {"id": "1", "question": "Which is red?", "choices": {"text": ["sky", "rose", "leaf"], "label": ["1", "2", "3"]},
            "answerKey": "2"},
    "gpqa": {"Question": "Which is red?", "Correct Answer": "rose", "Incorrect Answer 1": "sky", "Incorrect Answer 2": "leaf",
             "Incorrect Answer 3": "snow"},
    "mmlu": {"question": "Which is red?", "subject": "botany", "choices": ["sky", "leaf", "snow", "rose"], "answer": 3},
    "mmlu_pro": {"question_id": 1, "question": "Which is red?", "options": ["sky", "leaf", "snow", "rose"], "answer": "D",
                 "answer_index": 3, "category": "botany"},
    "lettered columns": {"question": "Which is red?", "A": "sky", "B": "rose", "C": "leaf", "answer": "B"},
}  # fmt: skip
BENCHMARK_ROWS = {
    "aime24": ROWS["problem"], "aime25": ROWS["problem"], "amc": ROWS["problem"], "math500": ROWS["problem"],
    "minerva": ROWS["plain"], "olympiadbench": ROWS["olympiad"], "gsm8k": ROWS["gsm8k"],
    "arc_c": (CHOICES["arc"], "C"), "gpqa_diamond": (CHOICES["gpqa"], "A"), "mmlu_pro": (CHOICES["mmlu_pro"], "D"),
}  # fmt: skip
"""By the name of a benchmark: a row and its answer."""
