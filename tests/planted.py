"""Planted bugs: what one is, which ones others had, and the matrix of what killed each."""

from __future__ import annotations

from typing import NamedTuple


class Edit(NamedTuple):
    """A text that is there exactly once, so that a change of the code cannot leave a bug unplanted."""

    file: str
    """A file of ``lua/``, or a module of the package."""
    search: str
    replacement: str


class Mutant(NamedTuple):
    """A planted bug, and the name of what must notice it. `known`: which of `KNOWN` it is.

    `fails`: the bug is that something falls over, as a user would see it. Else that is no evidence.
    """

    name: str
    killer: str
    edits: tuple[Edit, ...]
    known: tuple[str, ...] = ()
    fails: bool = False


class Verdict(NamedTuple):
    """`evidence`: what the killer noticed; "" if the bug survived. `refused`: what is no evidence, if there was only
    that: code that a badly planted bug broke proves nothing about the killer."""

    mutant: Mutant
    evidence: str
    seconds: float
    refused: str = ""

    @property
    def killed(self) -> bool:
        return bool(self.evidence)


KNOWN = (
    # bugs that other locks had
    "redis-py#3847",
    "redisson#7272",
    "redisson#5698",
    "redisson#1763",
    "redisson#3004",
    "etcd#11456",
    "etcd#22082",
    "curator#1193",
    "python-redis-lock#58",
    "redis-semaphore#175",
    "zk-ruby#49",
    "redis-lock-py",
    # holes in designs like this one
    "delayed acquire",
    "old claim",
    "re-assertion order",
    "no fence at release",
    "publish first",
    "poll head",
    "no cursor",
    "shorter timeout",
    "late guard beat",
)


def plant(text: str, edits: tuple[Edit, ...], whose: str) -> str:
    for file, search, replacement in edits:
        assert text.count(search) == 1, f"{whose}: {file} has {text.count(search)} times: {search}"
        text = text.replace(search, replacement)
    return text


def matrix(verdicts: list[Verdict]) -> str:
    """One line for each bug: killed or not, how it is known, by what, on which evidence."""
    lines = [f"{'':9}{'bug':74}{'known as':36}{'killed by'}"]
    for mutant, evidence, seconds, refused in verdicts:
        killer = mutant.killer.removeprefix("tests/unit/")
        word = "killed" if evidence else "REFUSED" if refused else "SURVIVED"
        lines.append(f"{word:9}{mutant.name:74}{', '.join(mutant.known):36}{killer}")
        lines.append(f"{'':9}{seconds:4.0f} s  {evidence or refused}")
    survived = sum(not verdict.killed for verdict in verdicts)  # those whose evidence was refused too
    known = {name for mutant, *_ in verdicts for name in mutant.known}
    lines.append(
        f"\n{len(verdicts)} planted bugs, {len(verdicts) - survived} killed, {survived} survived; "
        f"{len(known)} of {len(KNOWN)} known ones among them"
    )
    return "\n".join(lines)
