"""Run scenarios, write what they found, publish it: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
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
from benchmarks.environment import NOT_INSTALLED, describe, describe_peers, without_settings
from benchmarks.peers import NAMES as PEERS
from benchmarks.peers import ROOT, Peer, peers
from benchmarks.results import Report, Result
from benchmarks.scenarios import NAMES, Stage, load_scenario

DESCRIPTION = (
    "Run scenarios; write results.json, pictures and figures.md (the tables) into a folder; "
    "print the targets, or the tables if there are none."
)
PUBLISHED = Path("benchmarks/published")
FIGURES_PAGE, SUMMARY_PAGE = Path("benchmarks/README.md"), Path("README.md")


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """`root`: the folder of the project, for what is published."""
    parser = _parser()
    arguments = _arguments(parser, sys.argv[1:] if argv is None else argv, root)
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    results: Path = arguments.out / "results.json"
    try:
        report = msgspec.json.decode(results.read_bytes(), type=Report) if arguments.render else Report({}, [])
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except msgspec.DecodeError as error:
        parser.error(f"{results}: {error}")
    try:
        if not arguments.render:
            _run(arguments, console, report, results)
        return _finish(arguments, console, report, root)
    except KeyboardInterrupt:
        done = ", ".join(result.scenario for result in report.results)
        kept = f"{results} has {done}; --render makes tables and pictures of it" if done else "nothing was written"
        console.print(f"interrupted: {kept}")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"default: all of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="smaller samples: under three minutes for all of it")
    parser.add_argument("--peers", metavar="NAME,…", help=f"only these of {', '.join(PEERS)}; 'none' for none")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="the folder; default: %(default)s")
    parser.add_argument("--render", action="store_true", help="run nothing: read the results.json of the folder")
    parser.add_argument(
        "--publish",
        action="store_true",
        help=f"if nothing failed, copy results and pictures to {PUBLISHED} and overwrite the figures in {FIGURES_PAGE} "
        f"and {SUMMARY_PAGE}; with --render: if the folder has the results of a run with --publish",
    )
    return parser


def _arguments(parser: argparse.ArgumentParser, argv: Sequence[str], root: Path) -> argparse.Namespace:
    arguments = parser.parse_args(argv)
    arguments.command = " ".join([parser.prog, *argv])
    if arguments.scenarios or arguments.quick or arguments.peers is not None:
        if arguments.publish:
            parser.error("--publish: the documented figures come from one whole run")
        if arguments.render:
            parser.error("--render shows all results of the folder: no scenarios, --peers or --quick beside it")
    if arguments.out.resolve() == (root / PUBLISHED).resolve():
        parser.error(f"--out: only --publish writes {PUBLISHED}, from another folder")
    unknown = set(arguments.scenarios) - set(NAMES)
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    arguments.scenarios = arguments.scenarios or NAMES
    arguments.peers = _peers(arguments.peers, parser)
    raise_descriptor_limit()
    needed = max(load_scenario(name).descriptors(arguments.quick) for name in arguments.scenarios)
    if descriptor_limit() < needed and not arguments.render:
        parser.error(f"`ulimit -n` is {descriptor_limit()} at most: {needed} open files are needed")
    return arguments


def _peers(chosen: str | None, parser: argparse.ArgumentParser) -> Sequence[str]:
    if chosen is None:
        return PEERS
    if chosen == "none":
        return ()
    names = [name for name in chosen.split(",") if name]
    unknown = set(names) - set(PEERS)
    if unknown or not names:
        wrong = f"no peer {', '.join(sorted(unknown))}" if unknown else "--peers names nobody"
        parser.error(f"{wrong}: there are {', '.join(PEERS)}, or 'none'")
    return names


def _run(arguments: argparse.Namespace, console: Console, report: Report, results: Path) -> None:
    """Run the scenarios; what one found is reported, and written, before the next one begins."""
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    began = time.monotonic()
    with Arena() as arena, Progress(*columns, console=console, refresh_per_second=1) as progress:
        bar = progress.add_task("", total=len(arguments.scenarios))
        report.environment |= describe(arena.server) | {"command": arguments.command}
        cast = _cast(arguments.peers, lambda text: progress.update(bar, description=text))
        report.environment |= describe_peers(cast)
        if arguments.publish and NOT_INSTALLED in report.environment:
            _keep(report, results)
            return
        for name in arguments.scenarios:
            report.results.append(_one(name, arena, cast, quick=arguments.quick, progress=progress, bar=bar))
            report.environment["duration"] = f"{(time.monotonic() - began) / 60:.1f} minutes"
            _keep(report, results)
            progress.advance(bar)


def _keep(report: Report, results: Path) -> None:
    results.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def _cast(chosen: Sequence[str], say: Callable[[str], None]) -> list[Peer]:
    """The peers that take part, their environments made."""
    cast = [peer for peer in peers() if peer.name in chosen]
    for peer in cast:
        say(f"environment of {peer.title}")
        with suppress(subprocess.CalledProcessError):  # told where it should have run
            peer.python()
    return cast


def _one(name: str, arena: Arena, cast: Sequence[Peer], *, quick: bool, progress: Progress, bar: object) -> Result:
    scenario, started = load_scenario(name), time.monotonic()

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


def _finish(arguments: argparse.Namespace, console: Console, report: Report, root: Path) -> int:
    """Draw, write and tell what was found; publish it if that was asked for. Answers the exit status."""
    results, figures = arguments.out / "results.json", arguments.out / "figures.md"
    plots.draw(report, arguments.out / "pictures")
    figures.write_text(prose.figures(report, Path("pictures")))
    for line in prose.findings(report):
        print(line)
    for result in report.results:
        for line in (*result.failures, *filter(None, [result.error])):
            console.print(f"{result.scenario}: {line}")
    console.print(f"written: {results}, {arguments.out / 'pictures'} and {figures}")
    unfit = arguments.publish and _unfit(report)
    if unfit:
        console.print(f"nothing is published: {unfit}")
    elif arguments.publish:
        _publish(report, arguments.out, root)
        console.print(f"published: {PUBLISHED}, {FIGURES_PAGE} and {SUMMARY_PAGE}")
    return 1 if unfit or any(result.error for result in report.results) else 0


def _unfit(report: Report) -> str:
    """Why this is not to be published, if it is not."""
    if failed := [result.scenario for result in report.results if result.error]:
        return f"{', '.join(failed)} failed"
    if absent := report.environment.get(NOT_INSTALLED):
        return f"{absent} could not be installed"
    whole = [result.scenario for result in report.results] == [*NAMES]
    asked = "--publish" in report.environment["command"].split()
    return "" if whole and asked else "these are not the results of a whole run with --publish"


def _publish(report: Report, folder: Path, root: Path) -> None:
    """Overwrite what is published, once all of it is there: the results and the pictures of `folder`, the two texts."""
    pictures = root / PUBLISHED / "pictures"
    texts = {
        root / FIGURES_PAGE: prose.figures(report, pictures.relative_to((root / FIGURES_PAGE).parent)),
        root / SUMMARY_PAGE: prose.summary(report),
    }
    pages = {page: prose.filled(page, text) for page, text in texts.items()}
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    for chart in [chart for result in report.results for chart in result.charts]:
        for picture in (folder / "pictures").glob(f"{chart.name}-*"):
            shutil.copy(picture, pictures)
    shutil.copy(folder / "results.json", root / PUBLISHED)
    for page, text in pages.items():
        page.write_text(text)


if __name__ == "__main__":
    variables = without_settings("AIOGPULOCK_TEST_SERVER")  # some scenarios measure this very process
    os.environ.clear()
    os.environ.update(variables)
    for ending in (signal.SIGTERM, signal.SIGHUP):  # no server and no process is left behind
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(ending, signal.default_int_handler)
    sys.exit(main())
