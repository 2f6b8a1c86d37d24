"""The commands, their arguments and their help. A command is carried out in the file of its name;
`run` in `run_program.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entangle import __version__
from entangle._shared.documentation import more
from entangle.cli.exit_status import DONE, Refused
from entangle.cli.json_lines import print_json

app = typer.Typer(
    name="entangle",
    help="Run Python functions in parallel, see what runs, and look at what ran.",
    epilog="Exit status: 0 done, 1 what was run has failed, 2 wrong usage, 3 not found, 4 not installed, 5 not reachable, 130 interrupted."
    f"\n\n{more('index')}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
aws_app = typer.Typer(no_args_is_help=True, help="Look at what is in an account of AWS because of tasks.", epilog=more("aws"))
cache_app = typer.Typer(no_args_is_help=True, help="Values that stay: what [b]cache=[/b] finds again.", epilog=more("caching"))
graph_app = typer.Typer(no_args_is_help=True, help="Send records to a graph server.", epilog=more("how_to/graph_databases"))
hosts_app = typer.Typer(no_args_is_help=True, help="Look at other machines.", epilog=more("how_to/ssh"))
image_app = typer.Typer(no_args_is_help=True, help="Images for containers, with the packages that functions need.", epilog=more("images"))
places_app = typer.Typer(help="Places by name: list them, and look at them.", epilog=more("places"))
app.add_typer(aws_app, name="aws")
app.add_typer(cache_app, name="cache")
app.add_typer(graph_app, name="graph")
app.add_typer(hosts_app, name="hosts")
app.add_typer(image_app, name="image")
app.add_typer(places_app, name="places")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def run_app(arguments: list[str], for_programs: bool) -> int:
    """Run a command; gives the exit status. `arguments` are in order (`words.py`); usage errors are
    told as JSON if `for_programs`."""
    if arguments[:1] != ["run"]:  # a program decides for itself how long it waits
        from entangle._records.database import user_waits

        user_waits()
    if not for_programs:
        try:
            app(arguments, prog_name="entangle")
        except SystemExit as left:  # typer ends this way
            return left.code if isinstance(left.code, int) else int(left.code is not None)
        return DONE
    if arguments == ["--version", "--json"]:
        print_json({"entangle": __version__})
        return DONE
    try:
        status = app(arguments, prog_name="entangle", standalone_mode=False)
    except Exception as error:
        # typer's own errors: it has no public name for what they have in common.
        if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
            raise
        raise Refused(error.format_message(), error.exit_code) from None
    return status if isinstance(status, int) else DONE


def _complete_run(incomplete: str) -> list[tuple[str, str]]:
    """Shell completion of a run."""
    try:
        from entangle.cli.runs import names

        return [(name, about) for name, about in names() if name.startswith(incomplete)]
    except Exception:  # an error would spoil the user's prompt
        return []


Run = Annotated[str, typer.Argument(metavar="RUN", help="A run: its id, the start of it, or 'last'.", autocompletion=_complete_run)]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"entangle {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs. May stand behind the command as well.")] = False,
) -> None:
    pass


@app.command("run", epilog=more("seeing"))
def _run(
    target: Annotated[str, typer.Argument(metavar="FILE[:NAME]", help="A program; or a task, call or function in a file.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGUMENTS]...", help="Python literals or words; KEYWORD=VALUE.")
    ] = None,
    as_json: Json = False,
    progress: Annotated[bool, typer.Option("--progress", help="Show progress.")] = False,
    start: Annotated[str | None, typer.Option(help="How workers are started: auto, fork, forkserver, spawn.")] = None,
) -> None:
    """Run a program, or one task or call of it.

    [b]entangle run work.py[/b] runs the program as python would; words behind the file go to it.
    [b]entangle run work.py:simulate 3 seed=7[/b] calls [b]simulate(3, seed=7)[/b], runs the
    resulting graph and prints its value. Options may stand before or behind the arguments; words
    behind [b]--[/b] are always arguments.
    """
    from entangle.cli.run_program import run

    raise typer.Exit(run(target, arguments or [], as_json, progress, start))


@app.command("runs", epilog=more("records"))
def _runs(
    as_json: Json = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the latest first.")] = 20,
    task: Annotated[str | None, typer.Option(help="Only runs of this task.")] = None,
    state: Annotated[str | None, typer.Option(help="Only runs in this state, as 'failed'.")] = None,
) -> None:
    """List the runs that are remembered, the latest first."""
    from entangle.cli.runs import runs

    runs(as_json, limit, task, state)


@app.command("show", epilog=more("records"))
def _show(
    run: Run = "last",
    form: Annotated[str, typer.Option("--format", "-f", help="tree, mermaid, dot, svg, trace, prov or json.")] = "tree",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file.")] = None,
    node: Annotated[int | None, typer.Option(help="Only this node, with all its details.")] = None,
    by: Annotated[str | None, typer.Option(help="place: what each place has done.")] = None,
    as_json: Json = False,
) -> None:
    """Show a run: its graph with states and times, or in a form for other programs."""
    from entangle.cli.show import show

    show(run, "json" if as_json else form, output, node, by)


@app.command("replay", epilog=more("replay"))
def _replay(
    run: Run = "last",
    node: Annotated[int | None, typer.Option(help="The node to run again; else the one that ended the run.")] = None,
    debugger: Annotated[bool, typer.Option("--pdb", help="Enter the debugger where the error was raised.")] = False,
    as_json: Json = False,
) -> None:
    """Run a call that has failed again: its body alone, here and now, with the arguments it had.

    Arguments are kept when a body fails, unless they are too large, cannot be pickled or may be
    secrets. With ENTANGLE_RECORD=values, also those of calls that end well are.
    """
    from entangle.cli.replay import replay

    raise typer.Exit(replay(run, node, debugger, as_json))


@app.command("resume", epilog=more("durable"))
def _resume(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A durable run; without one, lists those that are unfinished.")
    ] = None,
    again: Annotated[
        list[str] | None, typer.Option("--again", metavar="NODE", help="Let a call that had begun run again; or 'all'.")
    ] = None,
    ended: Annotated[tuple[str, str] | None, typer.Option("--ended", metavar="NODE VALUE", help="Say what such a call has given.")] = None,
    remove: Annotated[bool, typer.Option("--rm", help="Remove the durable run, and all that it keeps.")] = False,
    as_json: Json = False,
) -> None:
    """List unfinished durable runs, or take one up without its program.

    It says first which calls changed code makes run again. [b]--again[/b] and [b]--ended[/b] decide
    about calls that had begun and not ended, and run nothing.
    """
    from entangle.cli.resume import ls, resume

    if name is None:
        if again or ended or remove:
            raise typer.BadParameter("--again, --ended and --rm need the NAME of a durable run")
        ls(as_json)
        return
    raise typer.Exit(resume(name, again or [], ended, remove, as_json))


@app.command("top", epilog=more("seeing"))
def _top(
    as_json: Json = False,
    every: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 0.5,
    looks: Annotated[int, typer.Option("--looks", "-n", min=0, help="End after so many looks; 0: never.")] = 0,
    program: Annotated[str | None, typer.Option(help="Only runs of this program: its file, or its pid.")] = None,
) -> None:
    """Watch the runs of this machine: workers, CPU, what each does, cookies."""
    from entangle.cli.top import top

    top(as_json, every, looks, program)


@app.command("clean", epilog=more("faq"))
def _clean(as_json: Json = False) -> None:
    """Remove what runs of killed processes have left behind."""
    from entangle.cli.clean import clean

    raise typer.Exit(clean(as_json))


@app.command("doctor", epilog=more("reference/extras"))
def _doctor(
    as_json: Json = False,
    aws: Annotated[bool, typer.Option("--aws", help="Look at an account of AWS instead: who you are, what each decorator lacks.")] = False,
    profile: Annotated[str | None, typer.Option(help="With --aws: a profile of the AWS command line.")] = None,
    region: Annotated[str | None, typer.Option(help="With --aws: a region.")] = None,
    bucket: Annotated[str | None, typer.Option(help="With --aws: the bucket for calls and values; else ENTANGLE_BUCKET.")] = None,
    job_role: Annotated[str, typer.Option(help="With --aws: the role that jobs are given, by its name.")] = "entangle-jobs",
) -> None:
    """Check what works on this machine, and say how to get the rest."""
    from entangle.cli.doctor import doctor

    if aws:
        from entangle._aws.account import Account
        from entangle.cli.doctor_aws import looks

        raise typer.Exit(doctor(as_json, looks(Account(profile, region, bucket=bucket), job_role)))
    raise typer.Exit(doctor(as_json))


@app.command("web", hidden=True, epilog=more("seeing"))
@app.command("ui", epilog=more("seeing"))
def _ui(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on loopback; 0: any free port.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    as_json: Json = False,
) -> None:
    """Look at runs in a browser."""
    from entangle.cli.ui import ui

    ui(port, browser, as_json)


@aws_app.command("ls", epilog=more("aws"))
def _aws_ls(
    profile: Annotated[str | None, typer.Option(help="A profile of the AWS command line.")] = None,
    region: Annotated[str | None, typer.Option(help="A region.")] = None,
    bucket: Annotated[str | None, typer.Option(help="The bucket for calls and values; else ENTANGLE_BUCKET.")] = None,
    as_json: Json = False,
) -> None:
    """List what tasks have made: instances of [b]@ec2[/b], how old they are, and whose.

    And the functions of [b]@lmbda[/b], the definitions of [b]@batch[/b] and [b]@fargate[/b], and
    what callers have in the bucket.
    """
    from entangle._aws.account import Account
    from entangle.cli.aws_ls import ls

    ls(Account(profile, region, bucket=bucket), as_json)


Depot = Annotated[str | None, typer.Option("--where", metavar="PLACE", help="The depot; else ENTANGLE_DEPOT, else beside the records.")]
Value = Annotated[str, typer.Argument(metavar="KEY", help="A key, or the start of it.")]


@cache_app.command("ls", epilog=more("caching"))
def _cache_ls(
    task: Annotated[str | None, typer.Option(help="Only values of this task.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the last used first.")] = 50,
    where: Depot = None,
    as_json: Json = False,
) -> None:
    """List the values that are kept: task, size, when each was made and last used."""
    from entangle.cli.cache_values import ls

    ls(where, task, limit, as_json)


@cache_app.command("why", epilog=more("caching"))
def _cache_why(key: Value, where: Depot = None, as_json: Json = False) -> None:
    """Say how a value differs from the nearest of the same task that was made before it."""
    from entangle.cli.cache_values import why

    why(where, key, as_json)


@cache_app.command("rm", epilog=more("caching"), no_args_is_help=True)
def _cache_rm(
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Keys, or the starts of them.")] = None,
    task: Annotated[str | None, typer.Option(help="All values of this task.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All values.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also what is pinned: what an unfinished durable run or a replay needs.")] = False,
    where: Depot = None,
    as_json: Json = False,
) -> None:
    """Remove values: by keys, of a task, or all."""
    from entangle.cli.cache_values import rm

    rm(where, keys or [], task, everything, force, as_json)


@cache_app.command("gc", epilog=more("caching"))
def _cache_gc(where: Depot = None, as_json: Json = False) -> None:
    """Apply the bounds now: ENTANGLE_DEPOT_SIZE and ENTANGLE_DEPOT_AGE."""
    from entangle.cli.cache_values import gc

    gc(where, as_json)


@cache_app.command("verify", epilog=more("caching"))
def _cache_verify(where: Depot = None, as_json: Json = False) -> None:
    """Compare all checksums. What is damaged goes to quarantine; then the exit status is 1."""
    from entangle.cli.cache_values import verify

    raise typer.Exit(verify(where, as_json))


@graph_app.command("send", epilog=more("how_to/graph_databases"))
def _graph_send(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", autocompletion=_complete_run, help="Only these runs, even if they were sent before."),
    ] = None,
    to: Annotated[str | None, typer.Option(help="The server, as ws://host:8182/gremlin. Default: ENTANGLE_GRAPH.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All runs that the server does not have, not only those that were meant for it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send the runs that a Gremlin server has missed."""
    from entangle.cli.graph_send import send

    send(runs or [], to, everything, as_json)


@hosts_app.command("check", epilog=more("how_to/ssh"))
def _hosts_check(
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="[USER@]HOST[:PORT].")],
    key: Annotated[str | None, typer.Option(help="A private key.")] = None,
    python: Annotated[str | None, typer.Option(help="The Python interpreter on the host.")] = None,
    known_hosts: Annotated[str | None, typer.Option(help="A known_hosts file, or accept-new.")] = None,
    transport: Annotated[str | None, typer.Option(help="openssh or paramiko.")] = None,
    as_json: Json = False,
) -> None:
    """Check whether tasks can run on these hosts."""
    from entangle.cli.hosts_check import check

    raise typer.Exit(check(hosts, as_json, key_file=key, python=python, known_hosts=known_hosts, transport=transport))


@image_app.command("build", epilog=more("images"), no_args_is_help=True)
def _image_build(
    tag: Annotated[str, typer.Argument(metavar="TAG", help="The name of the image: NAME:TAG, or HOST/NAME:TAG to push it.")],
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="WHERE",
            help="Functions whose imports are installed, in the versions installed here: a MODULE or a FILE, or [MODULE|FILE]:NAME "
            "for one task or call.",
        ),
    ] = None,
    packages: Annotated[
        list[str] | None, typer.Option("--package", metavar="PACKAGE", help="A package as pip takes it, NAME==VERSION, or a wheel file.")
    ] = None,
    requirements: Annotated[Path | None, typer.Option("--requirements", "-r", metavar="FILE", help="A requirements file.")] = None,
    service: Annotated[str, typer.Option("--for", metavar="SERVICE", help="docker, batch, fargate or lambda.")] = "docker",
    base: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="An image with a Python. Default: the official slim one of that version.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(metavar="VERSION", help="The version of Python, as 3.13. Default: that of this one.")
    ] = None,
    executable: Annotated[str, typer.Option(metavar="PATH", help="The Python in the base image.")] = "python3",
    arch: Annotated[str | None, typer.Option(help="amd64 or arm64. Default: as the base image is here.")] = None,
    handler: Annotated[
        str | None, typer.Option(metavar="MODULE.FUNCTION", help="What Lambda calls. Default: entangle's handler, which runs bodies.")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Push it to the registry that TAG names, with docker's login.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Build it anew, even if the same was built before.")] = False,
    as_json: Json = False,
) -> None:
    """Build an image with a Python and the packages that functions need.

    [b]entangle image build work:1 --from work.py[/b] installs what the functions of work.py import,
    and [b]@docker(image="work:1")[/b] runs them in it. Your own modules are not in it: they travel
    with each call. Packages come from where your pip gets them, as wheels; its settings and logins
    stay here.

    [b]--for lambda[/b] adds entangle and Lambda's runtime client.
    """
    from entangle.cli.image_build import build

    given = {"python": python, "base": base, "arch": arch, "requirements": requirements, "handler": handler}
    stated = {name: value for name, value in given.items() if value is not None}
    build(tag, sources or [], as_json, packages=packages or [], service=service, executable=executable, push=push, fresh=fresh, **stated)


@aws_app.command("gc", epilog=more("aws"))
def _aws_gc(
    unused: Annotated[float, typer.Option("--unused", metavar="DAYS", min=0, help="Those that were not used for so many days.")] = 30,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    profile: Annotated[str | None, typer.Option(help="A profile of the AWS command line.")] = None,
    region: Annotated[str | None, typer.Option(help="A region.")] = None,
    as_json: Json = False,
) -> None:
    """Remove functions of Lambda that [b]@lmbda(role=…)[/b] has made, with their logs.

    They cost nothing while they are not used. A program that wants one again makes it again.
    """
    from entangle._aws.account import Account
    from entangle.cli.aws_things import gc

    gc(Account(profile, region), unused, dry, as_json)


@places_app.callback(invoke_without_command=True)
def _places(context: typer.Context, as_json: Json = False) -> None:
    """List the places that `@place` knows here: kind, hosts, and the file that says so."""
    if context.invoked_subcommand is None:
        from entangle.cli.places import places

        places(as_json)


@places_app.command("check", epilog=more("places"))
def _places_check(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of places.")],
    packages: Annotated[
        list[str] | None,
        typer.Option("--package", metavar="PACKAGE", help="Look for this package, too; else for those that the project depends on."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check whether tasks can run in these places: connects to each host, looks at its Python and
    packages, and times calls."""
    from entangle.cli.places import check

    raise typer.Exit(check(names, packages or [], as_json))
