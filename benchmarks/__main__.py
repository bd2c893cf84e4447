"""``python -m benchmarks [scenario …] [--quick]``: run, and write JSON, pictures and the tables of README.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import plots, prose
from benchmarks.arena import Arena, descriptor_limit, raise_descriptor_limit
from benchmarks.environment import describe
from benchmarks.peers import NAMES as PEERS
from benchmarks.peers import ROOT, Peer, peers
from benchmarks.results import Report, Result
from benchmarks.scenarios import NAMES, Stage, load

PUBLISHED = Path(__file__).parent / "published"
README = Path(__file__).with_name("README.md")


def main() -> int:
    arguments, console = _arguments(), Console(stderr=True)
    for name in [name for name in os.environ if name.startswith(("AIOGPULOCK_", "REDIS_URL"))]:
        del os.environ[name]  # nobody's settings, not those of the tests either
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    results, pictures = folder / "results.json", folder / "pictures"
    if arguments.render:
        report = msgspec.json.decode(results.read_bytes(), type=Report)
    else:
        report = _run(arguments, console, results)
    failed = [result.scenario for result in report.results if result.error]
    plots.draw(report, pictures)
    if folder == PUBLISHED and failed:
        console.print(f"nothing is published: {', '.join(failed)} failed", markup=False)
    elif folder == PUBLISHED:
        prose.write(prose.figures(report, pictures.relative_to(README.parent)), README)
        prose.write(prose.summary(report), ROOT / "README.md")
    else:
        (folder / "figures.md").write_text(prose.figures(report, Path("pictures")))
    console.print("\n".join(prose.targets(report)), markup=False, soft_wrap=True)
    for result in report.results:
        for line in (*result.failures, *filter(None, [result.error])):
            console.print(f"{result.scenario}: {line}", markup=False, soft_wrap=True)
    console.print(f"written: {results}, {pictures} and {README if folder == PUBLISHED else folder / 'figures.md'}")
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"which: {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="smaller samples: under three minutes for all of it")
    parser.add_argument("--peers", metavar="NAME,…", help="only these peers; 'none' for none")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="a folder; default: %(default)s")
    parser.add_argument("--publish", dest="out", action="store_const", const=PUBLISHED, help="the documented figures")
    parser.add_argument("--render", action="store_true", help="run nothing: pictures and tables from its results.json")
    arguments = parser.parse_args()
    if arguments.out == PUBLISHED and (arguments.scenarios or arguments.quick or arguments.peers):
        parser.error("--publish: the documented figures come from one whole run")
    unknown = set(arguments.scenarios) - set(NAMES)
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    arguments.scenarios = arguments.scenarios or NAMES
    arguments.peers = _peers(arguments.peers, parser)
    raise_descriptor_limit()
    needed = max(load(name).descriptors(arguments.quick) for name in arguments.scenarios)
    if descriptor_limit() < needed and not arguments.render:
        parser.error(f"`ulimit -n` is {descriptor_limit()} at most: {needed} open files are needed")
    return arguments


def _peers(chosen: str | None, parser: argparse.ArgumentParser) -> Sequence[str]:
    names = PEERS if chosen is None else [] if chosen == "none" else chosen.split(",")
    unknown = set(names) - set(PEERS)
    if unknown:
        parser.error(f"no peer {', '.join(sorted(unknown))}: there are {', '.join(PEERS)}, or 'none'")
    return names


def _run(arguments: argparse.Namespace, console: Console, results: Path) -> Report:
    """Run the scenarios; what one found is written before the next one begins."""
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Arena() as arena, Progress(*columns, console=console) as progress:
        environment = describe(arena) | {"command": " ".join(["python -m benchmarks", *sys.argv[1:]])}
        bar = progress.add_task("", total=len(arguments.scenarios))
        cast = _cast(arguments.peers, lambda text: progress.update(bar, description=text))
        report = Report(environment, [])
        for name in arguments.scenarios:
            report.results.append(_one(name, arena, cast, quick=arguments.quick, progress=progress, bar=bar))
            total = sum(result.seconds for result in report.results)
            report.environment["duration"] = f"{total / 60:.1f} minutes"
            results.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
            progress.advance(bar)
        return report


def _cast(chosen: Sequence[str], say: Callable[[str], None]) -> list[Peer]:
    """The peers that take part, their environments made."""
    cast = [peer for peer in peers() if peer.name in chosen]
    for peer in cast:
        say(f"environment of {peer.title}")
        with suppress(subprocess.CalledProcessError):  # told where it should have run
            peer.python()
    return cast


def _one(name: str, arena: Arena, cast: Sequence[Peer], *, quick: bool, progress: Progress, bar: object) -> Result:
    scenario, started = load(name), time.monotonic()

    def say(text: str) -> None:
        progress.update(bar, description=f"{name}: {text}")  # type: ignore[arg-type]

    say("")
    try:
        result = scenario.run(Stage(arena, cast, quick, say))
    except Exception as error:
        progress.console.print_exception()
        result = Result(name, scenario.title, "", [], [], error=f"{type(error).__name__}: {error}")
        arena.clear()
    result.seconds = time.monotonic() - started
    theirs = {peer.title for peer in cast}
    for (who, what), times in sorted(arena.failures.items()):
        result.failures.append(f"{who}: {what} ({times})")
        if who not in theirs:
            result.error = result.error or f"{who} failed: {what}"
    arena.failures.clear()
    return result


if __name__ == "__main__":
    sys.exit(main())
