"""The command line of ``jsfree serve`` and of ``jsfree serve keys``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jsfree import config as configuration
from jsfree.config import Serve
from ray_jobs.commands.console import plain_or_live
from ray_jobs.commands.options import Debug, Settings, set_log_level

app = typer.Typer(help="Serve the models of a run over HTTP.", invoke_without_command=True)
keys = typer.Typer(help="Make, list and remove the server's API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")

File = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="File of keys. Default: ~/.config/jsfree/serve-keys.json.")
]


@app.callback()
def serve(
    context: typer.Context,
    run: Annotated[
        str | None, typer.Option("--run", metavar="PATH", help="Folder or URI of a run with a trained model.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on. Default: 8000.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="Key that requests must send. Other users of this machine see it in the list of processes:"
            " prefer the variable JSFREE_API_KEY, or `jsfree serve keys add`.",
        ),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Without keys, answer everyone who can reach the server.")
    ] = False,
    settings: Settings = None,
    write_yaml: Annotated[
        Path | None,
        typer.Option("--write-yaml", metavar="FILE", help="Only write this configuration for `serve deploy`."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Serve m0 and the result of a run with an OpenAI-compatible HTTP API."""
    set_log_level(debug)
    if context.invoked_subcommand is not None:
        return
    if run is None:
        raise typer.BadParameter("missing; name a run with a trained model", param_hint="'--run'")
    from ray_jobs.commands import serve as serve_models

    given = {"serve.host": host, "serve.port": port, "serve.no_auth": no_auth or None}
    named = [configuration.format_override(key, value) for key, value in given.items() if value is not None]
    overrides = [*(settings or []), *named]
    console = plain_or_live(stderr=False)
    if write_yaml is not None:
        serve_models.write_yaml(run, overrides, write_yaml, console)
    else:
        serve_models.serve_models(run, overrides, console, api_key)


@keys.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Name of the key in logs: letters, digits and . _ -")],
    file: File = None,
    access: Annotated[
        Literal["captions", "metrics", "all"], typer.Option(help="captions: ask the models; metrics: read /metrics.")
    ] = "captions",
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Default: no limit.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompts and captions. Default: no limit.")
    ] = None,
) -> None:
    """Make a key, print it once, and store its hash."""
    from serve.keys import Key, add_key, checked_name, new_secret, sha256, today

    secret = new_secret()
    key = Key(
        name=checked_name(name),
        sha256=sha256(secret),
        access=access,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        created=today(),
    )
    add_key(_file(file), key)
    typer.echo(secret)
    typer.echo(f"Its hash is in {_file(file)}; the key itself is stored nowhere.", err=True)


@keys.command("list")
def show(file: File = None) -> None:
    """List the names of the keys, what they may do, and their limits."""
    from serve.keys import read_keys

    for key in read_keys(_file(file)):
        limits = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        shown = [f"{limit} {what} per minute" for what, limit in limits.items() if limit is not None]
        typer.echo("  ".join((key.name, key.access, key.created, *shown)))


@keys.command("remove")
def remove(name: Annotated[str, typer.Argument(help="Name of the key.")], file: File = None) -> None:
    """Remove a key; running servers refuse it within seconds."""
    from serve.keys import remove_key

    remove_key(_file(file), name)


def _file(given: Path | None) -> Path:
    """The file of keys: the given one, or that which a server reads by default."""
    from serve.keys import keys_file

    return given or keys_file(Serve())
