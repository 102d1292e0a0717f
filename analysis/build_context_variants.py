"""What a teacher would be shown with each candidate response, under every condition.

    python analysis/build_context_variants.py --model Qwen/Qwen3-4B --candidates OUT/candidate_responses.jsonl \\
        --evidence OUT/evidence_items.jsonl --output OUT/context_variants.jsonl

Contexts come from the trainer's own selection and renderer, in the chat template of `--model`, with the settings of its
run if it is a checkpoint of ours: what training shows is what is analysed. `--legacy-contexts` gives the published
layout instead and needs no model. Rows have the published fields; in the chat layout `sections_used` says what is in
the prompt after its budget, and rows also name the `peers`, what was cut of them (`cuts`) and the prompt's length in
tokens (`context_tokens`), with which the scores check that they are read by the same tokenizer.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # see analysis/__init__.py

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

from analysis import command, conditions, legacy, reader
from analysis.conditions import SECTIONS, Condition
from analysis.groups import Candidates, as_group, read_candidates
from analysis.rows import Row, read_jsonl, write_jsonl
from analysis.shown import Choice, Selector
from trainer import models, peers
from trainer.chat import Chat
from trainer.checkpoint import read_state
from trainer.errors import UserError
from trainer.types import Group


def variants(wanted: Sequence[Condition], groups: Sequence[tuple[Candidates, Group]], selector: Selector, chat: Chat) -> Iterator[Row]:
    """Yield the rows of all conditions in the chat layout, conditions outside, then prompts and responses in file order.

    Raises UserError for a question that alone exceeds `max_reprompt_len`.
    """
    for condition in wanted:
        for candidates, group in groups:
            memo: dict[tuple, peers.TeacherPrompt] = {}  # most members of a group share their context
            for row, choice in zip(candidates.rows, selector.choose(condition, group, candidates.rows), strict=True):
                if choice.context.key not in memo:
                    try:
                        memo[choice.context.key] = peers.render(choice.prompt, choice.context, choice.settings, chat)
                    except ValueError as error:
                        raise UserError(
                            f"{candidates.where}: {error} (here: --set actor_rollout_ref.actor.self_distillation.max_reprompt_len=N)."
                        ) from None
                yield variant(condition, row, choice, memo[choice.context.key])


def variant(condition: Condition, row: Row, choice: Choice, prompt: peers.TeacherPrompt) -> Row:
    """Return the row of a response under a condition."""
    shown = [(choice.section(peer.role), choice.sources[peer.index]) for peer in choice.context.peers if _kept(peer, prompt)]
    if "feedback" in prompt.shown:
        shown.append(("feedback", row))
    shown.sort(key=lambda item: SECTIONS.index(item[0]))
    names = {section for section, _ in shown}
    kinds = {"feedback": "feedback", "summary": "summary"}
    key = f"{condition.name}|{row['prompt_id']}|{row['response_id']}"
    first = choice.first
    return {
        "variant_id": hashlib.sha1(key.encode()).hexdigest()[:20],
        "condition": condition.name,
        "prompt_id": row["prompt_id"],
        "response_id": row["response_id"],
        "uid": row["uid"],
        "reward": row["reward"],
        "success": row["success"],
        "difficulty_bucket": row["difficulty_bucket"],
        "variant_spec": condition.spec(),
        "sections_used": {section: section in names for section in SECTIONS},
        "evidence_ids": [f"{source['response_id']}::{kinds.get(section, 'response_full')}" for section, source in shown],
        "primary_solution_response_id": None if first is None else choice.sources[first]["response_id"],
        "summary_sources": [legacy.summary_source(source) for section, source in shown if section == "summary"],
        "assembled_context_text": prompt.text,
        "assembled_context_length_chars": len(prompt.text),
        "layout": "chat",
        "context_tokens": len(prompt.token_ids),
        "peers": [{"section": section, "response_id": source["response_id"]} for section, source in shown if section != "feedback"],
        "cuts": [
            {
                "section": choice.section(cut.role),
                "response_id": (row if cut.role == "feedback" else choice.sources[cut.index])["response_id"],
                "tokens": cut.tokens,
                "kept": cut.kept,
            }
            for cut in prompt.cuts
        ],
    }


def _kept(peer: peers.Peer, prompt: peers.TeacherPrompt) -> bool:
    return not any(cut.role == peer.role and cut.index == peer.index and cut.kept == 0 for cut in prompt.cuts)


def in_chat_layout(candidates: Sequence[Candidates], options: argparse.Namespace, wanted: Sequence[Condition]) -> Iterator[Row]:
    """Yield the rows in the chat layout of `--model`; say what cannot be, or is not, as training would show it."""
    source = reader.find(options.model, options.config_name, options.set, options.settings)
    config = source.config
    models.resolve(source.path, "--model", trust_remote_code=config.actor_rollout_ref.model.trust_remote_code)
    chat = models.load_chat(
        source.path, config.data.apply_chat_template_kwargs, trust_remote_code=config.actor_rollout_ref.model.trust_remote_code
    )
    told = [(found, as_group(found)) for found in candidates]
    groups = [(found, group) for found, group in told if group is not None]
    unclear = [found.where for found, group in told if group is None]
    if not groups:
        raise UserError(
            f"{candidates[0].where}: which messages made up the prompts cannot be told from their flattened text, of any of them. Dumps of "
            "ours hold them (dump the rollouts anew, prepare them again); or --legacy-contexts."
        )
    if unclear:
        print(f"note: {len(unclear)} prompts left out: their messages cannot be told from their flattened text (the first: {unclear[0]})")
    differ = [found.where for found, group in groups if chat.decode(chat.prompt_ids(group.prompt.messages)) != found.rows[0]["prompt"]]
    if differ:
        print(
            f"note: {len(differ)} of {len(groups)} prompts read otherwise in the dump than in the chat template of {source.path} "
            f"(the first: {differ[0]}): another model's dump, or made with other data.apply_chat_template_kwargs (--set)"
        )
    if source.checkpoint is not None and options.settings is None and (note := far(groups, read_state(source.checkpoint)["step"])):
        print(note)
    elsewhere = [row for found in candidates for row in found.rows]
    selector = Selector(config.actor_rollout_ref.actor.self_distillation, config.data.seed, elsewhere)
    yield from variants(wanted, groups, selector, chat)


def far(groups: Sequence[tuple[Candidates, Group]], step: int) -> str | None:
    """Return a note if rollouts were not sampled by the weights after `step`: a validation at that step, or training's next step."""
    steps = [found.rows[0].get("rollout_step") for found, _ in groups]
    known = sorted({s for s in steps if isinstance(s, int)})
    others = sum(s not in (step, step + 1) for s in steps if isinstance(s, int))
    if not others:
        return None
    return (
        f"note: {others} of {len(groups)} groups were sampled by other weights than those of step {step} (their steps: {known[0]} to "
        f"{known[-1]}), so what a teacher says of them is not what it said in training. The dumps that belong to this checkpoint are "
        f"validation/NAME/{step}.jsonl, what run_eval_sdpo.sh leaves of it, and rollouts/NAME/{step + 1}.jsonl."
    )


def build(options: argparse.Namespace) -> None:
    """Write the variants, whole or not at all, and print what each condition shows."""
    wanted = conditions.read(options.variant_config) if options.variant_config else conditions.named(options.conditions)
    if options.variant_config and options.conditions:
        raise UserError("--conditions chooses among the built-in ones; with --variant-config all of the file's are built.")
    if not options.model and not options.legacy_contexts:
        raise UserError("--model is needed: contexts stand in its chat template (--legacy-contexts: in the published layout, without one).")
    candidates = read_candidates(options.candidates)
    known = {row["evidence_id"] for _, row in read_jsonl(options.evidence, {"evidence_id": str})} if options.evidence else None
    rows = (
        (row for condition in wanted for row in legacy.variants(condition, candidates))
        if options.legacy_contexts
        else in_chat_layout(candidates, options, wanted)
    )
    counts: dict[str, Counter] = {condition.name: Counter() for condition in wanted}
    print(f"{write_jsonl(options.output, _counted(rows, counts, known, options))} contexts in {options.output}")
    _show(counts)


def _counted(rows: Iterator[Row], counts: dict[str, Counter], known: set[str] | None, options: argparse.Namespace) -> Iterator[Row]:
    """Pass the rows on, counting what they show; raise UserError if they show what the evidence does not hold."""
    for row in rows:
        if known is not None and (missing := next((name for name in row["evidence_ids"] if name not in known), None)):
            raise UserError(f"--evidence {options.evidence} has no {missing!r}: it was not made together with {options.candidates}.")
        count = counts[row["condition"]]
        count.update(rows=1, cut=bool(row.get("cuts")), **row["sections_used"])
        yield row


def _show(counts: dict[str, Counter]) -> None:
    """Print, for each condition, the share of contexts that hold each section and of those cut to fit."""
    columns = (*SECTIONS, "cut")
    width = max(map(len, counts))
    print(f"{'':{width}}  contexts  " + "  ".join(column.removesuffix("_solution").rjust(8) for column in columns))
    for name, count in counts.items():
        shares = (f"{count[column] / count['rows']:.0%}" if count[column] else "" for column in columns)
        print(f"{name:{width}}  {count['rows']:8}  " + "  ".join(share.rjust(8) for share in shares))


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of(__doc__)
    parser.add_argument("--candidates", type=Path, required=True, help="candidate_responses.jsonl")
    parser.add_argument("--evidence", type=Path, help="evidence_items.jsonl, to check that contexts show what stands there")
    parser.add_argument("--output", type=Path, required=True, help="context_variants.jsonl")
    parser.add_argument("--variant-config", type=Path, help="JSON with conditions of your own")
    parser.add_argument("--conditions", nargs="+", help="only these of the built-in conditions")
    parser.add_argument("--legacy-contexts", action="store_true", help="the published layout, which is not what training shows")
    reader.add_arguments(parser, required=False)
    return command.main(parser, build, arguments)


if __name__ == "__main__":
    sys.exit(main())
