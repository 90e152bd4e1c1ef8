"""``czsl completion``: the script that completes commands, options and method names in a shell."""

from __future__ import annotations

import click

from czsl_cli.console import print_lines


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
      bash: czsl completion bash >> ~/.bashrc
      zsh:  czsl completion zsh  >> ~/.zshrc
      fish: czsl completion fish > ~/.config/fish/completions/czsl.fish
    """
    from click.shell_completion import get_completion_class

    from czsl_cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    print_lines(kind(cli, {}, "czsl", "_CZSL_COMPLETE").source())
