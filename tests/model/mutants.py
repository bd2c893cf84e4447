"""Plants bugs in the scripts and hunts them, by the explorer or by a test of `test_rules.py`."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from importlib import resources

from aiogpulock.scripts import files_of
from tests.model import test_rules
from tests.model.configs import CONFIGS, Config
from tests.model.explore import Explorer
from tests.model.planted_bugs import SMALL
from tests.model.runner import ScriptFailed
from tests.model.store_lock import StoreLock
from tests.planted import Edit, Mutant, Verdict, plant


def _text(name: str) -> str:
    return (resources.files("aiogpulock") / "lua" / f"{name}.lua").read_text(encoding="latin-1")


def editing(mutant: Mutant) -> Callable[[str, str], str]:
    """The edit of each script's full text that plants the bug."""
    by_file: dict[str, tuple[Edit, ...]] = {}
    for edit in mutant.edits:
        by_file[edit.file] = (*by_file.get(edit.file, ()), edit)
    changed = {file: plant(_text(file), edits, mutant.name) for file, edits in by_file.items()}

    def edit_source(name: str, source: str) -> str:
        files = {file: _text(file) for file in files_of(name)}
        assert source == "".join(files.values())
        return "".join(changed.get(file, text) for file, text in files.items())

    return edit_source


def judge(mutant: Mutant) -> Verdict:
    """Run the killer against the planted bug."""
    started = time.monotonic()
    edit = editing(mutant)
    config = SMALL.get(mutant.killer) or CONFIGS.get(mutant.killer)
    evidence, refused = "", ""
    try:
        evidence = _by_search(config, edit) if config else _by_test(mutant.killer, edit)
    except ScriptFailed as error:
        failure = f"the script failed: {error}"
        evidence, refused = (failure, "") if mutant.fails else ("", failure)
    return Verdict(mutant, evidence, time.monotonic() - started, refused)


def _by_search(config: Config, edit: Callable[[str, str], str]) -> str:
    try:
        violation = Explorer(config, edit).run(max_seconds=60).violation
    except AssertionError as error:  # the model's own: no promise that is broken
        raise ScriptFailed(f"it left what the model does not know: {error}") from error
    return f"{violation.promise} ({len(violation.trace)} steps)" if violation else ""


def _by_test(name: str, edit: Callable[[str, str], str]) -> str:
    test: Callable[[StoreLock], None] = getattr(test_rules, name)
    try:
        test(StoreLock(edit))
    except AssertionError as error:
        return str(error).splitlines()[0] if str(error) else str(traceback.extract_tb(error.__traceback__)[-1].line)
    return ""
