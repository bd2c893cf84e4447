"""Fail if a test was skipped that is not on the list: a skip that nobody decided on hides a missing check."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def skipped(report: Path) -> set[str]:
    """The ids of the skipped tests of a JUnit report."""
    cases = ET.parse(report).getroot().iter("testcase")
    return {f"{case.get('classname')}::{case.get('name')}" for case in cases if case.find("skipped") is not None}


def allowed(listing: Path) -> set[str]:
    lines = (line.strip() for line in listing.read_text().splitlines())
    return {line.split()[0] for line in lines if line and not line.startswith("#")}


if __name__ == "__main__":
    unlisted = skipped(Path(sys.argv[1])) - allowed(Path(sys.argv[2]))
    for test in sorted(unlisted):
        print(f"skipped, and not listed in {sys.argv[2]}: {test}")
    sys.exit(1 if unlisted else 0)
