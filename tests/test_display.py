"""What a person sees, with a terminal and without."""

import io

from rich.console import Console

from trainer.display import Display

ESTIMATES = {
    "acc/mean@8": {"value": 0.5, "low": 0.4, "high": 0.6},
    "acc/pass@8": {"value": 0.75, "low": None, "high": None},
    "solved/mean@8": {"value": 0.25, "low": 0.2, "high": 0.3},
}
RESULT = {"step": 3, "n": 8, "sources": {"tiny_chains": ESTIMATES}}
METRICS = {"critic/score/mean": 0.5, "actor/pg_loss": 0.0123, "timing_s/step": 0.5}


def display(*, terminal: bool, enabled: bool = True) -> tuple[Display, io.StringIO]:
    out, shown = io.StringIO(), Display(enabled=enabled)
    shown.console = Console(file=out, force_terminal=terminal, width=160, highlight=False)
    return shown, out


def test_without_a_terminal_every_step_is_a_line():
    shown, out = display(terminal=False)
    with shown.live(0, 2):
        shown.step(1, 2, METRICS)
        shown.validation(1, RESULT)
    lines = out.getvalue().splitlines()
    assert lines[0] == "step 1/2  score 0.50  loss 0.0123  0.5 s"
    assert lines[1].startswith("validation at step 1  tiny_chains  acc/mean@8 50.0 [40.0, 60.0]  acc/pass@8 75.0  solved/mean@8 25.0")


def test_in_a_terminal_one_live_line_and_warnings_above_it():
    shown, out = display(terminal=True)
    with shown.live(0, 2):
        shown.step(1, 2, METRICS)
        shown.warn("look [here]")
        with shown.working("saving step 1"):
            shown.progress.refresh()
    text = out.getvalue()
    assert "1/2" in text and "score 0.50" in text and "saving step 1" in text
    assert "warning: look [here]" in text  # not taken for markup
    assert "step 1/2" not in text


def test_the_table_of_before_and_after():
    shown, out = display(terminal=False)
    shown.table("results", {"before": RESULT, "after": RESULT, "never": None})
    text = out.getvalue()
    assert "before" in text and "after" in text and "never" not in text
    assert text.count("50.0 [40.0, 60.0]") == 2 and "mean@8" in text and "95 % bootstrap" in text


def test_a_quiet_display_still_warns():
    shown, out = display(terminal=False, enabled=False)
    shown.say("no")
    shown.table("no", {"before": RESULT})
    shown.warn("yes")
    assert out.getvalue().strip() == "warning: yes"
