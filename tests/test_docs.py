"""What the pages say exists: configuration keys, flags, links and commands."""

import re
from itertools import product

import pytest

from tests.tools import ROOT
from trainer import config

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "experiments" / "tiny" / "README.md"]
KNOWN = set(config.flat(config.load("sdpo")))
SECTIONS = {".".join(key.split(".")[:depth]) for key in KNOWN for depth in range(1, 6)}


def expand(text: str) -> list[str]:
    """a.{b,c} -> a.b, a.c"""
    parts = [part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^}]*\})", text) if part]
    return ["".join(choice) for choice in product(*parts)]


def test_keys_said_to_carry_over_exist():
    page = (ROOT / "docs" / "from_verl.md").read_text()
    table = page.split("Added here")[0] + page.split("Added here: ")[1].split(".\n")[0]
    named = [
        key
        for code in re.findall(r"`((?:data|actor_rollout_ref|algorithm|trainer|reward|custom_reward_function)\.[^`]*)`", table)
        for key in expand(code)
    ]
    keys = [key.removesuffix(".*") for key in named]
    assert len(keys) > 60
    assert [key for key in keys if key not in KNOWN and key not in SECTIONS] == []


def test_keys_said_to_be_absent_are():
    page = (ROOT / "docs" / "from_verl.md").read_text().split("Not here")[1]
    leaves = {key.rsplit(".", 1)[-1] for key in KNOWN}
    assert {"summarize_solutions", "swap_space", "balance_batch"} <= set(re.findall(r"`(\w+)`", page))
    assert leaves & {"summarize_solutions", "swap_space", "use_dynamic_bsz", "balance_batch"} == set()


def test_flags_of_the_readme_are_those_of_the_launcher():
    flags = re.search(r"FLAGS=\((.*?)\)", (ROOT / "scripts" / "launch.sh").read_text(), re.DOTALL)[1].split()
    table = (ROOT / "README.md").read_text().split("## Flags")[1].split("\n\n`S` is")[0]
    named = {flag for row in table.splitlines() if row.startswith("| `") for flag in re.findall(r"`([A-Z_]+)`", row.split("|")[1])}
    assert named == set(flags)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_scripts_are_there(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    for script in re.findall(r"(?:bash|python) ((?:\w+/)*\w+\.(?:sh|py))", text):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"python -m ((?:trainer|experiments|benchmarks)[\w.]+)", text):
        assert (ROOT / (module.rstrip(".").replace(".", "/") + ".py")).is_file(), module
