"""Verifiers: a table from `data_source` to the function that judges it. To add one, write its file and add its line.

A verifier is a function (response, ground_truth, extra_info) -> Verdict. It runs in a worker process with a time
limit (`trainer.rewards.pool`); here is the plain call. Modules are imported when first needed: a process that judges
multiple choice does not carry sympy.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.types import Outcome, Verdict

Verifier = Callable[[str, str, Mapping[str, Any]], Verdict]

VERIFIERS: dict[str, str] = {  # data source, or a pattern of them -> module:function under trainer.rewards
    "sciknoweval": "multiple_choice:tagged",
    "gpqa": "multiple_choice:boxed",
    "mmlu_pro": "multiple_choice:phrase",
    **dict.fromkeys(("math", "math500", "gsm8k", "openai/gsm8k", "amc23", "aime*", "AIME*", "hmmt*", "HMMT*"), "math:verify"),
    **dict.fromkeys(("deepmath", "DeepMath-103K", "dapo_math", "math_dapo*"), "math:verify"),
    "tooluse": "tool_use:verify",
    **dict.fromkeys(("code", "livecodebench", "humanevalplus", "mbppplus", "primeintellect"), "code:exact"),
    **dict.fromkeys(("codeforces", "code_elo", "taco"), "code:tolerant"),
    "tiny_chains": "tiny:verify",
    "tiny_misconceptions": "tiny:verify",
}

TRUNCATED_FEEDBACK = "Your response was cut at the length limit before its answer: be briefer."


def verify(data_source: str, response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None) -> Verdict:
    """Judge a response. `extra_info["truncated"]` says that the response budget cut it.

    A truncated response that is not right has the outcome `truncated`, whatever the verifier made of its text.

    Raises:
        UserError: for a data source no verifier is known for; lists the known ones.
    """
    info = extra_info or {}
    return _mark_truncated(verifier_for(data_source)(response, ground_truth, info), info)


def entry_of(data_source: str) -> str:
    """Return the table's `module:function` for a data source; raise UserError listing the known ones, the nearest first."""
    if data_source in VERIFIERS:
        return VERIFIERS[data_source]
    for pattern, entry in VERIFIERS.items():
        if fnmatchcase(data_source, pattern):
            return entry
    near = difflib.get_close_matches(data_source, VERIFIERS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"data_source={data_source!r}: no verifier judges it.{hint} Known: {', '.join(sorted(VERIFIERS))}. "
        "Your own: custom_reward_function.path=FILE.py custom_reward_function.name=FUNCTION."
    )


def is_code(data_source: str) -> bool:
    """Return whether responses of a data source are programs, which run in the sandbox."""
    return entry_of(data_source).startswith("code:")


def verifier_for(data_source: str) -> Verifier:
    """Return the verifier of a data source. Raises UserError as `entry_of`."""
    module, function = entry_of(data_source).split(":")
    return getattr(importlib.import_module(f"trainer.rewards.{module}"), function)


class CustomVerifier:
    """A user's reward function from a Python file, with the signature of the published framework.

    Called as function(data_source, solution_str, ground_truth, extra_info); returns a number (the reward; 1 or more is
    a pass), a dict with `score` and optionally `acc`, `pred`, `feedback`, `incorrect_format`, or a Verdict.
    """

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        file = Path(path)
        if not file.is_file():
            raise UserError(f"custom_reward_function.path={path}: no such file.")
        spec = importlib.util.spec_from_file_location(f"custom_reward_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise UserError(f"custom_reward_function.path={path}: not a Python file (*.py).")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            raise UserError(f"custom_reward_function.path={path} cannot be imported ({type(error).__name__}: {error}).") from None
        if not callable(getattr(module, name, None)):
            raise UserError(f"custom_reward_function.name={name}: {path} has no function of that name.")
        self.function = getattr(module, name)

    def __call__(self, data_source: str, response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
        result = self.function(data_source=data_source, solution_str=response, ground_truth=ground_truth, extra_info=dict(extra_info))
        if isinstance(result, Verdict):
            return _mark_truncated(result, extra_info)
        values = dict(result) if isinstance(result, Mapping) else {"score": result}
        reward = float(values.pop("score"))
        passed = reward >= 1
        verdict = Verdict(
            outcome=Outcome.PASS if passed else Outcome.FORMAT if values.get("incorrect_format") else Outcome.FAIL,
            reward=reward,
            acc=float(values.pop("acc", passed)),
            pred=str(values.pop("pred", "")),
            feedback=str(values.pop("feedback", "") or ""),
            incorrect_format=bool(values.pop("incorrect_format", False)),
            details=values,
        )
        return _mark_truncated(verdict, extra_info)


def _mark_truncated(verdict: Verdict, extra_info: Mapping[str, Any]) -> Verdict:
    """Give a response the budget cut, and that is not right, its own outcome; say so where no answer was found."""
    if "truncated" not in extra_info:
        return verdict
    cut = bool(extra_info["truncated"])
    missing = cut and verdict.incorrect_format
    details = {**verdict.details, "truncated": int(cut), "truncated_and_missing_answer": int(missing)}
    return replace(
        verdict,
        outcome=Outcome.TRUNCATED if cut and verdict.outcome in (Outcome.FAIL, Outcome.FORMAT) else verdict.outcome,
        feedback=TRUNCATED_FEEDBACK if missing else verdict.feedback,
        details=details,
    )
