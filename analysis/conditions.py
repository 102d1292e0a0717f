"""The conditions: what of a group each shows the teacher (behaviour 8.2), and the file that says so otherwise."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trainer.errors import UserError

OURS = ("name", "as_trained")  # fields that are no published switch
SECTIONS = ("solution", "another_solution", "failure_solution", "feedback", "summary")


@dataclass(frozen=True)
class Condition:
    """A condition and its switches, by their published names and in their published order.

    `summary_control` is None or random_other_prompt, `peer_control` None, random or score_ordered.
    `feedback_only_without_solution` is False here and True in training: "solution+feedback" shows both. `as_trained` is not
    published: the settings of the run itself, whatever they are, and no other switch counts.
    """

    name: str
    force_reprompt: bool = False
    force_raw_prompt: bool = False
    include_solution: bool = False
    include_another_solution: bool = False
    include_failure_solution: bool = False
    include_feedback: bool = False
    include_summary: bool = False
    summary_from_all: bool = False
    summary_k: int = 2
    summary_control: str | None = None
    peer_control: str | None = None
    dont_reprompt_on_self_success: bool = True
    feedback_only_without_solution: bool = False
    as_trained: bool = False

    def spec(self) -> dict[str, Any]:
        """Return the switches, as the rows hold them in `variant_spec`."""
        return {name: value for name, value in asdict(self).items() if name not in OURS}


_S, _A, _F = {"include_solution": True}, {"include_another_solution": True}, {"include_failure_solution": True}
_FEEDBACK, _SUMMARY = {"include_feedback": True}, {"include_summary": True}

CONDITIONS = {
    name: Condition(name, **switches)
    for name, switches in {
        "base": {},
        "base_raw": {"force_raw_prompt": True},
        "base_reprompt": {"force_reprompt": True},
        "solution": _S,
        "another_solution": _A,
        "solution+another_solution": _S | _A,
        "all_solutions": _S | _A,
        "failure_solution": _F,
        "solution+failure_solution": _S | _F,
        "solution+another_solution+failure_solution": _S | _A | _F,
        "feedback": _FEEDBACK,
        "summary_success_k2": _SUMMARY,
        "solution+feedback": _S | _FEEDBACK,
        "solution+summary_success_k2": _S | _SUMMARY,
        "solution+feedback+summary_all_k2": _S | _FEEDBACK | _SUMMARY | {"summary_from_all": True},
        "failure_only": _F,
        "random_summary_control": _SUMMARY | {"summary_control": "random_other_prompt"},
        "random_peer": _S | _A | _F | {"peer_control": "random"},
        "verifier_score_ordered": _S | _A | _F | {"peer_control": "score_ordered"},
        "training": {"as_trained": True},
    }.items()
}
CHOICES = {"summary_control": (None, "random_other_prompt"), "peer_control": (None, "random", "score_ordered")}
GLOBAL = ("dont_reprompt_on_self_success", "feedback_only_without_solution", "summary_k")


def named(names: Sequence[str] | None) -> list[Condition]:
    """Return the conditions with these names, in that order, or all published ones. Raises UserError for an unknown one."""
    for name in names or ():
        if name not in CONDITIONS:
            raise UserError(f"--conditions {name}: known are {', '.join(CONDITIONS)}; others come from --variant-config.")
    return [CONDITIONS[name] for name in dict.fromkeys(names or CONDITIONS) if names or not CONDITIONS[name].as_trained]


def read(path: Path) -> list[Condition]:
    """Read a --variant-config: {"global": {switch: value}, "variants": [{"name": ..., switch: value}]}.

    Raises UserError, naming the file and the variant, for anything that is not so.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"--variant-config {path}: cannot be read as JSON ({error}).") from None
    if not isinstance(held, dict) or not isinstance(held.get("variants"), list) or not held["variants"]:
        raise UserError(f'--variant-config {path}: must be {{"global": {{...}}, "variants": [{{"name": ...}}, ...]}}.')
    common = held.get("global") or {}
    if not isinstance(common, dict):
        raise UserError(f"--variant-config {path}: global is {common!r:.60}, which is no object.")
    common = _without_policy(common, f"--variant-config {path}: global")
    for switch in common.keys() - set(GLOBAL):
        raise UserError(f"--variant-config {path}: global has {switch!r}; known there are {', '.join(GLOBAL)}.")
    found: dict[str, Condition] = {}
    for number, variant in enumerate(held["variants"], 1):
        place = f"--variant-config {path}, variant {number}"
        if not isinstance(variant, dict) or not isinstance(variant.get("name"), str) or not variant["name"]:
            raise UserError(f"{place}: has no name.")
        variant = _without_policy(variant, place)  # noqa: PLW2901
        if variant["name"] in found:
            raise UserError(f"{place}: the name {variant['name']!r} stands there twice.")
        found[variant["name"]] = _condition(common | variant, place)
    return list(found.values())


def _without_policy(switches: dict[str, Any], place: str) -> dict[str, Any]:
    """Return switches without the published `summary_sampling_policy`, of which there is one value and which nothing reads."""
    if (policy := switches.get("summary_sampling_policy", "first_k")) != "first_k":
        raise UserError(f"{place}: summary_sampling_policy={policy!r}; only first_k is there.")
    return {name: value for name, value in switches.items() if name != "summary_sampling_policy"}


def _condition(switches: dict[str, Any], place: str) -> Condition:
    types = {field.name: field.default.__class__ for field in fields(Condition) if field.name not in OURS}
    for switch, value in switches.items():
        if switch == "name":
            continue
        if switch not in types:
            raise UserError(f"{place}: unknown switch {switch!r}; known are {', '.join(types)}.")
        if switch in CHOICES:
            if value not in CHOICES[switch]:
                raise UserError(f"{place}: {switch} is {value!r}; it must be null or one of {', '.join(CHOICES[switch][1:])}.")
        elif type(value) is not types[switch] or (switch == "summary_k" and value < 1):
            raise UserError(f"{place}: {switch} is {value!r}; it must be {'at least 1' if switch == 'summary_k' else 'true or false'}.")
    return Condition(**switches)
