"""What the prompts say. Each asks for the format that the verifier of its source reads.

`published_*` are for comparisons (`--published_prompts`). SciKnowEval's is literal, an interface fact: the published
records carry it. The others are rebuilt from the description of the published prompts (behaviour 1.3): same content, same
traps (a constant limit of one second), words of our own.
"""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase as LETTERS


def lettered(options: Sequence[str], mark: str = ")", between: str = "\n") -> str:
    """Return `A) ..`, `B) ..`, one a line."""
    return between.join(f"{letter}{mark} {option}" for letter, option in zip(LETTERS, options, strict=False))


def listed(letters: Sequence[str]) -> str:
    """Return `A or B`, `A, B, C, or D`."""
    return " or ".join(letters) if len(letters) < 3 else f"{', '.join(letters[:-1])}, or {letters[-1]}"


COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}


def sciknoweval_system(letters: Sequence[str]) -> str:
    """The right number of options; the answer in tags."""
    return (
        f"You get a question and {COUNTS.get(len(letters), len(letters))} options, one of which is right. "
        "Reason first, then answer, like this:\n"
        "<reasoning>\nyour reasoning\n</reasoning>\n<answer>\nthe letter of the right option\n</answer>\n"
        f"Between the answer tags write the letter alone ({listed(letters)}), without the option's text."
    )


def sciknoweval(question: str, choices: Mapping[str, Sequence[str]]) -> str:
    lines = "\n".join(f"{label}: {text}" for label, text in zip(choices["label"], choices["text"], strict=True))
    return f"{question}\n\n{lines}"


PUBLISHED_SCIKNOWEVAL_SYSTEM = (
    "\nGiven a question and four options, please select the right answer. Respond in the following format:\n"
    "<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>\n\n"
    "For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and nothing else. "
    'Do not restate the answer text. For example, if the answer is "A", just output:\n<answer>\nA\n</answer>\n'
)


def with_right_count(system: str, letters: Sequence[str]) -> str:
    """Return the published system prompt with the number of options that there are."""
    return system.replace("four options", f"{COUNTS[len(letters)]} options").replace("(A, B, C, or D)", f"({listed(letters)})")


def published_sciknoweval(question: str, choices: Mapping[str, Sequence[str]]) -> str:
    return f"{sciknoweval(question, choices)}\nPlease reason step by step."


def math(problem: str) -> str:
    return f"{problem}\n\nWork it out step by step. End with the final answer, and nothing but it, in \\boxed{{}}."


def published_math(problem: str) -> str:
    return f"{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."


def gpqa(question: str, options: Sequence[str]) -> str:
    return (
        f"{question}\n\n{lettered(options)}\n\n"
        "Exactly one option is right. Reason step by step, then put its letter, and nothing else, in \\boxed{}."
    )


def published_gpqa(question: str, options: Sequence[str]) -> str:
    asked = "Please reason step by step, and put only the letter of the answer within \\boxed{}."
    return f"{question}\n{lettered(options, between=', ')}\n\n{asked}"


def mmlu_pro(question: str, options: Sequence[str], category: str) -> str:
    return (
        f"A question from the field of {category}, with {len(options)} options, one of which is right.\n\n"
        f"{question}\n\n{lettered(options)}\n\n"
        'Reason step by step and close with the sentence "the answer is (X)", where X is the letter of the right option.'
    )


def published_mmlu_pro(question: str, options: Sequence[str], category: str) -> str:
    return (
        f"The following is a multiple choice question (with an answer) about {category}. Think step by step and then finish your answer "
        f'with "the answer is (X)" where X is the correct letter choice.\n\n'
        f"Question:\n{question}\nOptions:\n{lettered(options, mark='.')}\nAnswer: Let's think step by step."
    )


ASKED = {
    "stdin": "a complete program that reads the input from standard input and writes the answer to standard output",
    "functional": "the function with exactly the given signature, and whatever it needs (imports, helpers)",
    "code": "the complete function, and whatever it needs (imports, helpers)",
}


def code(problem: str, testtype: str, time_limit: float) -> str:
    limit = f"{time_limit:g} second{'' if time_limit == 1 else 's'}"
    return (
        "Solve the programming problem below in Python 3. Your code is run on hidden tests and has to pass all of them, "
        f"each within {limit}.\nThink as much as you like first. End your answer with one block that starts with ```python and ends "
        f"with ```, and holds {ASKED[testtype]}.\n\n{problem}"
    )


def published_code(problem: str, testtype: str, time_limit: float) -> str:
    return (
        "You are an expert programmer. You get a problem and write a correct Python program for it that passes all tests. "
        "The time limit is 1 second. You may outline your thinking first. Give the complete code last, in a block between ``` and ```."
        f"\n\n{problem}"
    )
