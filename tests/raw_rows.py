"""One made-up row per source in its published raw schema, for the tests of data preparation."""

import base64
import json
import pickle
import zlib

QUESTION = "Which metal is liquid at room temperature?"


def packed(tests: list[dict]) -> str:
    """Private tests as LiveCodeBench stores them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def case(given: str, wanted: str, testtype: str = "stdin") -> dict:
    return {"input": given, "output": wanted, "testtype": testtype}


def livecodebench(number: int = 0, date: str = "2025-02-15T00:00:00", **more) -> dict:
    return {
        "question_title": f"Sum {number}",
        "question_content": f"Add the {number} numbers of a line.\n\nInput\n\nOne line of numbers.\n\nSample:\n1 2\n3",
        "platform": "atcoder",
        "question_id": f"abc{number}",
        "contest_date": date,
        "starter_code": "",
        "public_test_cases": json.dumps([case("1 2\n", "3\n")]),
        "private_test_cases": packed([case("4 5\n", "9\n"), case("1\n", "1\n"), case("7 7 7\n", "21\n")]),
        "metadata": "{}",
        **more,
    }


FUNCTIONAL = livecodebench(
    1,
    starter_code="class Solution:\n    def longest(self, words: List[str], k: int) -> int:\n        ",
    public_test_cases=json.dumps([case('["a b", "c"]\n2', "3", "functional")]),
    private_test_cases=packed([case('["x"]\n1', "1", "functional")]),
    metadata=json.dumps({"func_name": "longest"}),
)


def codeforces(**more) -> dict:
    return {
        "id": "1/A",
        "title": "Squares",
        "time_limit": 2.0,
        "contest_start": 1738425900,
        "description": "Cover a field of n by m with squares of side a.",
        "input_format": "Three integers n, m, a.",
        "output_format": "The number of squares.",
        "interaction_format": None,
        "note": None,
        "examples": [{"input": "6 6 4", "output": "4"}],
        "editorial": "Round up both quotients.",
        "rating": 1000,
        "official_tests": [{"input": "6 6 4\n", "output": "4\n"}, {"input": "1 1 1\n", "output": "1\n"}],
        "official_tests_complete": True,
        "input_mode": "stdio",
        "generated_checker": None,
        **more,
    }


ROWS = {  # --dataset_name -> a row
    "Chemistry": {
        "question": QUESTION,
        "choices": {"text": ["Iron", "Mercury", "Gold", "Tin"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
        "type": "mcq-4-choices",
        "domain": "Chemistry",
        "details": {"level": "L3", "task": "t", "subtask": "s", "source": "made"},
    },
    "Biology": {
        "question": "Which of two mutants fluoresces more?",
        "choices": {"text": ["The first", "The second"], "label": ["A", "B"]},
        "answerKey": "A",
        "type": "mcq-2-choices",
        "domain": "Biology",
        "details": {"level": "L3", "task": "t", "subtask": "s", "source": "made"},
    },
    "Idavidrein/gpqa-D": {
        "Question": QUESTION,
        "Correct Answer": "Mercury\n",
        "Incorrect Answer 1": "Iron",
        "Incorrect Answer 2": "Gold",
        "Incorrect Answer 3": "Tin",
        "High-level domain": "Chemistry",
        "Subdomain": "Inorganic",
    },
    "TIGER-Lab/MMLU-Pro": {
        "question_id": 1,
        "question": QUESTION,
        "options": ["Iron", "Mercury", "Gold", "Tin", "Zinc"],
        "answer": "B",
        "answer_index": 1,
        "cot_content": "",
        "category": "computer science",
        "src": "made",
    },
    "math-ai/aime24": {"id": 60, "problem": "How much is $2+2$?", "solution": "\\boxed{4}", "url": "u"},
    "math-ai/aime25": {"problem": "How much is $2+2$?", "answer": "4", "id": "0"},
    "math-ai/math500": {"problem": "How much is $2+2$?", "solution": "Add.", "answer": "\\frac{8}{2}", "unique_id": "x"},
    "math-ai/amc23": {"id": 0, "question": "How much is $2+2$?", "answer": 4.0, "url": "u"},
    "openai/gsm8k": {"question": "Tom has 1,000 apples and gets 234. How many?", "answer": "1000+234 = <<1000+234=1234>>1234\n#### 1,234"},
    "MathArena/hmmt_feb_2025": {"problem_idx": 1, "problem": "How much is $2+2$?", "answer": "4", "problem_type": ["Algebra"]},
    "MathArena/hmmt_nov_2025": {"problem_idx": 1, "problem": "How much is $2+2$?", "answer": "4", "problem_type": ["Algebra"]},
    "zwhe99/DeepMath-103K": {"question": "How much is $2+2$?", "final_answer": "4", "difficulty": 1.0, "topic": "t", "r1_solution_1": "4"},
    "livecodebench/code_generation_lite-v6": FUNCTIONAL,
    "livecodebench/code_generation_lite": livecodebench(),
    "open-r1/codeforces": codeforces(),
    "Qwen/CodeElo": {
        "problem_id": "2000A",
        "title": "Dates",
        "rating": 800,
        "time_limit_ms": 1500,
        "description": "Say whether the date is important.",
        "input": "One integer.",
        "output": "YES or NO.",
        "interaction": "",
        "note": "",
        "examples": [["100", "NO"], ["1010", "YES"]],
    },
    "evalplus/humanevalplus": {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x: int) -> int:\n    """Return twice x.\n    >>> double(2)\n    4\n    """\n',
        "canonical_solution": "    return 2 * x\n",
        "entry_point": "double",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    },
    "evalplus/mbppplus": {
        "task_id": 2,
        "code": "def shared(a, b):\n    return tuple(sorted(set(a) & set(b)))\n",
        "prompt": "Write a function to find the shared elements of two lists.",
        "test_imports": ["import math"],
        "test_list": ["assert shared([1], [1]) == (1,)"],
        "test": "for a, b, out in [([1, 2], [2], (2,)), ([math.pi], [1], ())]:\n    assert shared(a, b) == out\n",
    },
    "tooluse": {
        "prompt": "Use the tools.\nName: Coin\nflip: Flip a coin.\nParameters: {}\n\nBegin!\nQuestion: Flip one.",
        "description": "Use the tools.",
        "idx": 5,
        "dataset": "tooluse",
        "system": None,
        "answer": '[{"Action": "flip", "Action_Input": "{}"}]',
        "tests": None,
        "kind": "tooluse",
        "elo": 1500,
    },
    "lasgroup/verifiable-corpus": {
        "kind": "math",
        "dataset": "dapo_math",
        "answer": "4",
        "elo": "-",
        "prompt": "2+2?",
        "description": "2+2?",
        "tests": "-",
    },
}
