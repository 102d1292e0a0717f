"""The page of verdict: the same tables in the terminal and as one HTML file that needs nothing else, light and dark."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from analysis.preflight.teacher import OWN
from analysis.preflight.verdicts import OVERALL

SIGNS = {"go": "✓", "care": "!", "stop": "✗"}
COLOURS = {"go": "green", "care": "yellow", "stop": "red"}
KINDS = {"all_fail": "all fail", "lone_success": "one success", "mixed": "mixed", "all_pass": "all pass"}


@dataclass(frozen=True)
class Section:
    """A table with what is to be known of it; the first column names the row, the others are values."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def sections(found: dict[str, Any]) -> list[Section]:
    """Return what was found as tables."""
    return [_base(found), _groups(found), _lengths(found), *_teacher(found), _cost(found)]


def _base(found: dict[str, Any]) -> Section:
    base, n = found["base"], found["base"]["n"]
    names = (f"mean@{n}", f"pass@{n}")
    rows = [["all prompts", *(_percent(*base[name]) for name in names)]]
    if len(base["sources"]) > 1:
        rows += [[source, *(_percent(*values[name]) for name in names)] for source, values in base["sources"].items()]
    outcomes = ", ".join(f"{name} {share:.1%}" for name, share in found["responses"]["outcomes"].items() if share)
    return Section("The base model", ("", *names), rows, f"In %, with 95 % bootstrap intervals over prompts. Verdicts: {outcomes}.")


def _groups(found: dict[str, Any]) -> Section:
    rows = [[name, f"{found['groups'][kind]:.1%}"] for kind, name in KINDS.items()]
    note = f"Mixed: two successes or more, and a failure. {found['distilled']:.0%} of rollouts have something to learn from."
    return Section(f"Groups of {found['run']['n']} rollouts", ("", "share"), rows, note)


def _lengths(found: dict[str, Any]) -> Section:
    prompts, responses = found["prompts"], found["responses"]
    rows = [
        [name, *(f"{values[key]:.0f}" for key in ("mean", "median", "p95", "max"))]
        for name, values in (("training prompts", prompts["tokens"]), ("responses", responses["tokens"]))
    ]
    note = (
        f"In tokens. {responses['truncated']:.1%} of responses are cut by the length limit; {prompts['left_out']} of "
        f"{prompts['left_out'] + prompts['training']} training prompts are left out as longer than {prompts['most_tokens']}."
    )
    return Section("Lengths", ("", "mean", "median", "95 %", "longest"), rows, note)


def _teacher(found: dict[str, Any]) -> list[Section]:
    asked, signal = found["teacher"], found["signal"]
    if asked is None:
        return [Section("The teacher", (), (), f"loss_mode={found['run']['loss']} has no teacher: there is nothing to ask.")]
    budget, out = asked["budget"], []
    rows = [
        ["teacher - student, nats per token", _number(*signal["gap"]) if signal["gap"] else "-"],
        ["divergence per token", _number(*signal["divergence"], form=".2g") if signal["divergence"] else "-"],
    ]
    if budget["prompts"]:
        rows += [
            ["teacher prompts, tokens", f"{budget['tokens']['mean']:.0f} on average, {budget['tokens']['max']} at most"],
            ["... with peers cut or dropped", f"{budget['cut']:.1%}, dropped whole {budget['dropped']:.1%}"],
            ["... peer tokens cut", f"{budget['tokens_cut']:.1%}"],
        ]
    note = (
        f"Under the run's own contexts, of {signal['prompts']} prompts with something to distil; a teacher prompt may have "
        f"{budget['most_tokens']} tokens."
    )
    out.append(Section("The teacher's signal", ("", ""), rows, note))

    rows = []
    for name, kinds in asked["auc"].items():
        label = "this run's own" if name == OWN else name
        rows.append([label, *(_auc(kinds[kind]) for kind in ("gap", "teacher")), str(kinds["gap"]["groups"])])
    note = (
        f"The chance that a success scores above a failure of its group, over {asked['groups']} groups with both verdicts; "
        "95 % intervals over prompts. S: successes, F: failures shown; a response that is shown nothing is left out, as in training. "
    )
    if asked["own_teacher"]:
        note += "Behind the plain prompt (base) the teacher still is the student: teacher - student is 0 and its AUC .5 by definition. "
    for name, pair in asked["pairs"].items():
        if pair["mean"] is not None:
            note += f"{name}: {_number(pair['mean'], *pair['interval'], form='+.3f')} on {pair['prompts']} common prompts. "
    if not asked["groups"]:
        note = "No group holds both a success and a failure: no AUC is defined."
    out.append(
        Section(
            "Is the teacher right? AUC by what it is shown", ("shown", "teacher - student", "teacher's own score", "groups"), rows, note
        )
    )

    leak = asked["leak"]
    without = ", ".join(leak["without_answer"])
    note = f"Sources without a final answer to mask are left out: {without}. " if without else ""
    rows = []
    if leak["share"] is None:
        note = f"Not defined: {leak['why']}. {note}"
    else:
        rows = [
            ["advantage, nats per token", f"{leak['advantage']:.4f}"],
            ["... with the peers' answers masked", f"{leak['masked']:.4f}"],
            ["leak share", _percent(leak["share"], *leak["interval"]) + " %"],
        ]
        note = (
            f"Advantage: teacher - student on successes less that on failures, over {leak['groups']} groups. Leak share: the part of it "
            f"that goes when what the verifier reads is taken out of the peers. {note}"
        )
    out.append(Section("How much is the answer alone?", ("", ""), rows, note))
    return out


def _cost(found: dict[str, Any]) -> Section:
    memory, time = found["memory"], found["time"]
    rows = []
    if memory["predicted"] is not None:
        there = f" of {memory['there']:.2f} GiB there" if memory["there"] is not None else ""
        rows.append(["memory per rank, predicted", f"{memory['predicted']:.2f} GiB{there} ({memory['phase']})"])
    if memory["measured"] is not None:
        planned = f", predicted {memory['expected']:.2f} GiB" if memory["expected"] is not None else ""
        rows.append(["... as a run logs it", f"measured here {memory['measured']:.2f} GiB{planned}"])
    rows.append(["a step", f"{time['step']:.2f} s"])
    rows += [[f"... {name}", f"{seconds:.2f} s"] for name, seconds in time["seconds"].items()]
    rows += [[f"... ... {name}", f"{seconds:.2f} s"] for name, seconds in time["update"].items() if seconds]
    total = f"{time['hours']:.1f} h" if time["hours"] >= 1 else f"{60 * time['hours']:.1f} min"
    rows.append([f"{time['total_steps']} steps", total])
    scaled = f", scaled up {time['scaled_by']:.1f} times" if time["scaled_by"] != 1 else ""
    note = f"From {time['steps_measured']} step(s) at a learning rate of 0{scaled}; validation and checkpoints come on top."
    if time["overlap"]:
        note += " The next step is sampled meanwhile (trainer.rollout_overlap): a step is the longer of both."
    return Section("Memory and time", ("", ""), rows, note)


def _percent(value: float, low: float | None, high: float | None) -> str:
    return f"{100 * value:.1f}" if low is None else f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _number(value: float, low: float | None, high: float | None, form: str = ".4f") -> str:
    return format(value, form) if low is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _auc(found: dict[str, Any]) -> str:
    return "not defined" if found["mean"] is None else _number(found["mean"], *found["interval"], form=".3f")


def _heading(found: dict[str, Any]) -> str:
    run = found["run"]
    sampled = f"{run['prompts']} prompts x {run['n']} rollouts of {run['model']}"
    return f"{run['experiment']}: {sampled} ({run['loss']}, {run['engine']} on {run['device']})"


def show(found: dict[str, Any], console: Console) -> None:
    """Print the page."""
    console.print(f"\n{plain(_heading(found))}", soft_wrap=True)
    for notice in found["run"]["notices"]:
        console.print(f"notice: {plain(notice)}", soft_wrap=True)
    for section in sections(found):
        console.print()
        if section.rows:
            table = Table(*map(plain, section.columns), title=section.title, title_justify="left", show_header=any(section.columns))
            for row in section.rows:
                table.add_row(*map(plain, row))
            console.print(table)
        else:
            console.print(section.title, style="italic")
        console.print(plain(section.note.strip()), style="dim", soft_wrap=True)
    console.print()
    for verdict in found["verdicts"]:
        said = f"[{COLOURS[verdict['grade']]}]{SIGNS[verdict['grade']]} {plain(verdict['says'])}.[/]"
        console.print(f"{said} What helps: {plain(verdict['advice'])}.", soft_wrap=True)
    console.print(f"[bold {COLOURS[found['overall']]}]{OVERALL[found['overall']]}[/]")


# ---- HTML ----

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #59636e; --page: #fff; --line: #d1d9e0; --bar: #0072b2;
  --go: #1a7f37; --care: #9a6700; --stop: #cf222e; --fail: #d55e00; --one: #e69f00; --mixed: #0072b2; --pass: #009e73; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9198a1; --page: #0d1117; --line: #3d444d; --bar: #56b4e9;
  --go: #3fb950; --care: #d29922; --stop: #f85149; --mixed: #56b4e9; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.dim, .notice { color: var(--dim); margin: .3rem 0; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
.overall { font-weight: 600; font-size: 1.2rem; border-left: .4rem solid; padding-left: .8rem; }
.go { color: var(--go); } .care { color: var(--care); } .stop { color: var(--stop); }
ul.verdicts { list-style: none; padding: 0; } ul.verdicts li { margin: .5rem 0; } ul.verdicts b { font-weight: 600; }
.bar { display: flex; height: 1.2rem; margin: .5rem 0; } .bar span { display: block; }
svg { display: block; margin: .5rem 0; max-width: 100%; } svg text { fill: var(--ink); font-size: 12px; } svg line { stroke: var(--line); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; } svg .range { stroke: var(--bar); stroke-width: 3; } svg circle { fill: var(--bar); }
"""


def html(found: dict[str, Any]) -> str:
    """Return the page as one HTML document without references to anything else."""
    grade = found["overall"]
    verdicts = "".join(
        f'<li><b class="{v["grade"]}">{SIGNS[v["grade"]]} {escape(v["says"])}.</b> What helps: {escape(v["advice"])}.</li>'
        for v in found["verdicts"]
    )
    notices = "".join(f'<p class="notice">notice: {escape(notice)}</p>' for notice in found["run"]["notices"])
    parts = []
    for section in sections(found):
        parts.append(f"<h2>{escape(section.title)}</h2>")
        if section.title.startswith("Groups"):
            parts.append(_bar(found["groups"]))
        if section.title.startswith("Is the teacher right"):
            parts.append(_dots(found["teacher"]["auc"]))
        parts.append(_table(section))
        parts.append(f'<p class="dim">{escape(section.note.strip())}</p>')
    command = shlex.join(["python", "-m", "analysis.preflight", *found["run"]["arguments"]])
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>pre-flight: {escape(found["run"]["experiment"])}</title><style>{STYLE}</style></head><body>
<h1>Pre-flight</h1><p>{escape(_heading(found))}</p>
<p class="overall {grade}">{escape(OVERALL[grade])}</p><ul class="verdicts">{verdicts}</ul>{notices}
{"".join(parts)}
<details><summary>The command</summary><pre>{escape(command)}</pre></details>
</body></html>
"""


def _table(section: Section) -> str:
    if not section.rows:
        return ""
    head = f"<tr>{''.join(f'<th>{escape(column)}</th>' for column in section.columns)}</tr>" if any(section.columns) else ""
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in section.rows)
    return f"<table>{head}{rows}</table>"


def _bar(groups: dict[str, float]) -> str:
    colours = {"all_fail": "fail", "lone_success": "one", "mixed": "mixed", "all_pass": "pass"}
    spans = "".join(
        f'<span style="width:{100 * groups[kind]:.2f}%;background:var(--{colour})" title="{KINDS[kind]} {groups[kind]:.1%}"></span>'
        for kind, colour in colours.items()
    )
    said = ", ".join(f"{KINDS[kind]} {groups[kind]:.0%}" for kind in colours)
    legend = "".join(f'<span style="color:var(--{colour})">■</span> {KINDS[kind]} &nbsp; ' for kind, colour in colours.items())
    return f'<div class="bar" role="img" aria-label="{said}">{spans}</div><p>{legend}</p>'


def _dots(auc: dict[str, Any]) -> str:
    """Draw the AUC of teacher - student by context, with its interval, on the scale from 0 to 1."""
    left, width, line = 110, 400, 24
    rows = []
    for row, (name, kinds) in enumerate(auc.items()):
        found, y = kinds["gap"], line * row + 14
        rows.append(f'<text x="0" y="{y + 4}">{"this run&#39;s own" if name == OWN else name}</text>')
        if found["mean"] is None:
            rows.append(f'<text x="{left}" y="{y + 4}">not defined</text>')
            continue
        low, high = found["interval"]
        if low is not None:
            rows.append(f'<line class="range" x1="{left + width * low:.1f}" x2="{left + width * high:.1f}" y1="{y}" y2="{y}"/>')
        rows.append(f'<circle cx="{left + width * found["mean"]:.1f}" cy="{y}" r="5"/>')
    height = line * len(auc)
    grid = "".join(
        f'<line x1="{left + width * tick:.0f}" x2="{left + width * tick:.0f}" y1="0" y2="{height}"/>'
        f'<text x="{left + width * tick:.0f}" y="{height + 14}" text-anchor="middle">{tick:g}</text>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    size = f'viewBox="0 0 {left + width + 20} {height + 20}" width="{left + width + 20}"'
    return f'<svg role="img" aria-label="AUC by context" {size}>{grid}{"".join(rows)}</svg>'
