"""``aiogpulock config``: what is in force, whether a file is right, and a file of the original made ours."""

from __future__ import annotations

import sys

import click

from aiogpulock.cli.options import Target, json_option, target_options


@click.group("config")
def command() -> None:
    """Show, check and migrate settings."""


@command.command()
@json_option
@target_options
def show(as_json: bool, target: Target) -> None:
    """Show every setting in force, and where it comes from.

    Written as a config.yml; passwords are hidden.
    """
    from aiogpulock.cli.session import print_json
    from aiogpulock.cli.settings_text import as_yaml, shown_values

    source = target.source()
    if as_json:
        print_json(settings=shown_values(source.current()), origins=source.origins, file=str(source.file or ""))
    else:
        sys.stdout.write(as_yaml(source.current(), source.origins))


@command.command()
@click.argument("file", required=False, type=click.Path())
def check(file: str | None) -> None:
    """Check a file and the AIOGPULOCK_… variables.

    Without FILE, the one that would be read. Exit status 0: all is well; 78: the error says which key, which value and
    what was expected.
    """
    from aiogpulock.config import SettingsSource

    source = SettingsSource(file)
    click.echo(f"{source.file or 'no file, built-in defaults'}: good, {len(source.origins)} settings of its own")


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, writable=True))
@click.option("--dry-run", is_flag=True, help="Show what would change; write nothing.")
def migrate(file: str, dry_run: bool) -> None:
    """Make a config.yml of the original gpu_lock decorator ours.

    Comments and other sections stay. Values that the original had by default become our defaults, values that somebody
    chose stay, unknown keys are commented out. The old file is kept as FILE.backup.
    """
    from pathlib import Path

    from aiogpulock.cli.migration import migrate_file

    changes, names_redis = migrate_file(Path(file), dry_run=dry_run)
    for change in changes:
        click.echo(change)
    if not changes:
        click.echo(f"{file}: nothing to change", err=True)
    elif not dry_run:
        click.echo(f"{file}: rewritten; the old one is {file}.backup", err=True)
    if not names_redis:
        click.echo(f"{file}: names no Redis: set gpu_lock.redis.url, or REDIS_URL for every program", err=True)
