"""``aiogpulock alerts test``: whether alerts arrive."""

from __future__ import annotations

import sys

import click

from aiogpulock.cli.options import Target, target_options

FAILED = 1
"""At least one URL did not take the notice."""


@click.group(short_help="Test whether alerts arrive.")
def command() -> None:
    """Alerts: where they go is gpu_lock_alerts.urls, Apprise URLs (extra [alerts])."""


@command.command()
@target_options
def test(target: Target) -> None:
    """Send one test notice to each alert URL, and tell what became of it.

    Keys and passwords of the URLs are not shown. Exit status 0: all were delivered; 1: one was not, or there is none;
    78: an URL that cannot be used.
    """
    from aiogpulock.alerts import send_test
    from aiogpulock.cli.words import plain

    results = send_test(target.source().current())
    if not results:
        click.echo("there is nobody to tell: gpu_lock_alerts.urls is empty", err=True)
    for sent in results:
        click.echo(f"{plain(sent.place)}: {plain(sent.error) or 'delivered'}")
    sys.exit(FAILED if not results or any(sent.error for sent in results) else 0)
