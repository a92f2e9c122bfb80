"""Commands: each one reads the settings, says plainly what is wrong with them, and exits with a stated code.

Exit codes: 0 done; 2 wrong usage; 78 the configuration or the journal's folder cannot be used (EX_CONFIG).
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from gateway import __version__
from gateway.cli.serve import serve_forever
from gateway.settings import Settings, SettingsError, load_settings

EX_CONFIG = 78

app = typer.Typer(name="spanbill", no_args_is_help=True, add_completion=False, help=__doc__.splitlines()[0])


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; overrides server.port.")] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = _settings()
    listen = settings.server.model_copy(
        update={name: value for name, value in (("host", host), ("port", port)) if value is not None}
    )
    fault = serve_forever(settings.model_copy(update={"server": listen}))
    if fault is not None:
        _stop(fault)


@app.command()
def check() -> None:
    """Check the configuration and print what it comes to, without secrets."""
    settings = _settings()
    typer.echo(settings.model_dump_json(indent=2))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as fault:
        _stop(str(fault))


def _stop(message: str) -> NoReturn:
    print(f"spanbill: {message}", file=sys.stderr)
    raise SystemExit(EX_CONFIG)
