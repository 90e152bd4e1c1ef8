"""``czsl completion``: the script that completes commands, options and method names in a shell."""

from __future__ import annotations

import click


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
    click.echo(kind(cli, {}, "czsl", "_CZSL_COMPLETE").source())
