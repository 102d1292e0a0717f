"""From numbers to plain words: the thresholds, all of them, in one table. docs/preflight.md shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GRADES = ("go", "care", "stop")  # from good to bad
OVERALL = {
    "go": "Go: nothing here speaks against this run.",
    "care": "Go with care: look at these first.",
    "stop": "Do not start this run as it is.",
}


@dataclass(frozen=True)
class Threshold:
    """A figure that is `worse` than a bound gets a grade and is said; of several of one figure only the worst is.

    `says` is what it means, `form` how value and bound are written, `advice` the keys to turn.
    """

    figure: str
    worse: str  # above or below
    bound: float
    grade: str
    says: str
    advice: str
    form: str = ".0%"

    def met(self, value: float) -> bool:
        """Return whether a value is worse than the bound."""
        return value > self.bound if self.worse == "above" else value < self.bound


_EASIER = (
    "easier prompts, more rollouts (actor_rollout_ref.rollout.n), a stronger base model, or a longer "
    "data.max_response_length if many are cut"
)
_HARDER = "harder prompts, without those that the base model always solves"
_DISTILL = "actor_rollout_ref.actor.self_distillation"
_CONTEXT = f"other peers ({_DISTILL}.include_...; compare the AUC by context), or a stronger teacher (actor_rollout_ref.ref.model.path)"

THRESHOLDS = (
    Threshold("all_fail", "above", 0.5, "care", "{value} of groups are all-fail: most steps teach little", _EASIER),
    Threshold("all_fail", "above", 0.9, "stop", "{value} of groups are all-fail: hardly any step teaches anything", _EASIER),
    Threshold("all_pass", "above", 0.5, "care", "{value} of groups are all-pass: most of this data is known already", _HARDER),
    Threshold("all_pass", "above", 0.9, "stop", "{value} of groups are all-pass: there is hardly anything left to learn here", _HARDER),
    Threshold(
        "both_verdicts",
        "below",
        0.25,
        "care",
        "only {value} of groups hold a success and a failure",
        "prompts the base model solves now and then",
    ),
    Threshold(
        "lone_success",
        "above",
        0.3,
        "care",
        "{value} of groups have one success only: it is shown no success itself, and nobody is shown two",
        "more rollouts (actor_rollout_ref.rollout.n)",
    ),
    Threshold("truncated", "above", 0.1, "care", "{value} of responses are cut by the length limit", "a larger data.max_response_length"),
    Threshold("truncated", "above", 0.5, "stop", "{value} of responses are cut by the length limit", "a larger data.max_response_length"),
    Threshold(
        "unreadable",
        "above",
        0.3,
        "care",
        "{value} of responses hold no answer that the verifier can read",
        "clearer format instructions in the prompts, or another base model; else training first teaches the format",
    ),
    Threshold(
        "verifier_errors",
        "above",
        0.01,
        "care",
        "the verifier itself failed on {value} of responses",
        "its errors, told above; reward.timeout",
        ".1%",
    ),
    Threshold(
        "verifier_errors",
        "above",
        0.2,
        "stop",
        "the verifier itself failed on {value} of responses",
        "its errors, told above; reward.timeout",
    ),
    Threshold(
        "repetition",
        "above",
        0.2,
        "care",
        "{value} of 4-grams in responses are repeats",
        "another temperature, or another base model or chat template",
    ),
    Threshold("too_long", "above", 0.1, "care", "{value} of training prompts are left out as too long", "a larger data.max_prompt_length"),
    Threshold(
        "prompts_cut",
        "above",
        0.25,
        "care",
        "{value} of teacher prompts had peers cut or dropped to fit",
        f"a larger {_DISTILL}.max_reprompt_len, or fewer peers",
    ),
    Threshold(
        "teacher_groups",
        "below",
        10,
        "care",
        "only {value} groups can say whether the teacher is right",
        "a larger --prompts, to know better",
        ".0f",
    ),
    Threshold(
        "auc_low",
        "below",
        0.5,
        "care",
        "it cannot be told that the teacher prefers successes: the interval of its AUC begins at {value}",
        f"a larger --prompts; {_CONTEXT}",
        ".2f",
    ),
    Threshold("auc_high", "below", 0.5, "stop", "the teacher prefers failures: the interval of its AUC ends at {value}", _CONTEXT, ".2f"),
    Threshold(
        "leak_share",
        "above",
        0.5,
        "care",
        "{value} of the teacher's advantage is the peers' final answers: it knows the answer more than the way to it",
        f"peers that show their work (where the model thinks: {_DISTILL}.remove_thinking_from_demonstration=False); a run can learn "
        "all the same",
    ),
    Threshold(
        "memory_share",
        "above",
        0.9,
        "care",
        "a rank will need {value} of the memory there is",
        "enable_gradient_checkpointing, a smaller ppo_max_token_len_per_gpu or data.max_response_length",
    ),
    Threshold(
        "memory_above_plan",
        "above",
        0.25,
        "care",
        "a rank took {value} more memory than predicted",
        "room to spare: the longest responses are still to come",
    ),
    Threshold("verify_share", "above", 0.3, "care", "{value} of a step is waiting for the verifier", "more reward.num_workers"),
)


@dataclass(frozen=True)
class Verdict:
    """What one figure says."""

    grade: str
    figure: str
    value: float
    says: str
    advice: str


def judge(figures: Mapping[str, float | None], thresholds: Sequence[Threshold] = THRESHOLDS) -> list[Verdict]:
    """Return what is worse than its threshold, the gravest first; figures that are None say nothing.

    Raises KeyError for a threshold whose figure is not there.
    """
    worst: dict[str, tuple[Threshold, float]] = {}
    for threshold in thresholds:
        value = figures[threshold.figure]
        if value is None or not threshold.met(value):
            continue
        before = worst.get(threshold.figure)
        if before is None or GRADES.index(threshold.grade) > GRADES.index(before[0].grade):
            worst[threshold.figure] = threshold, value
    if "auc_high" in worst:
        worst.pop("auc_low", None)  # said already, and worse
    found = [Verdict(t.grade, t.figure, v, t.says.format(value=format(v, t.form)), t.advice) for t, v in worst.values()]
    return sorted(found, key=lambda verdict: -GRADES.index(verdict.grade))


def overall(verdicts: Sequence[Verdict]) -> str:
    """Return the worst grade, "go" without any."""
    return max((verdict.grade for verdict in verdicts), key=GRADES.index, default="go")


def markdown() -> str:
    """Return the thresholds as the table of docs/preflight.md."""
    rows = [
        f"| `{t.figure}` | {t.worse} {format(t.bound, t.form)} | {t.grade} | {t.says.format(value='...')} | {t.advice} |"
        for t in THRESHOLDS
    ]
    return "\n".join(["| figure | bound | verdict | says | what helps |", "|---|---|---|---|---|", *rows])
