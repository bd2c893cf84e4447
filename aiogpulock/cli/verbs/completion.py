"""``aiogpulock completion``: what a shell needs to complete the command."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(aiogpulock completion bash)"              in ~/.bashrc
    zsh:   eval "$(aiogpulock completion zsh)"               in ~/.zshrc
    fish:  aiogpulock completion fish > ~/.config/fish/completions/aiogpulock.fish
    """
    from click.shell_completion import get_completion_class

    from aiogpulock.cli.app import aiogpulock

    kind = get_completion_class(shell)
    if kind is not None:
        click.echo(kind(aiogpulock, {}, "aiogpulock", "_AIOGPULOCK_COMPLETE").source())
