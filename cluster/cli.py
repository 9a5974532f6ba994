"""`longview`: one short function a command."""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from longview.cluster.commands import dashboards as dashboards_cli
from longview.cluster.commands import store as store_cli
from longview.cluster.commands import study as study_cli
from longview.cluster.commands.common import (
    INTERRUPTED,
    Address,
    AsJson,
    Drop,
    Filter,
    Hz,
    Keys,
    Map,
    Outcome,
    RunName,
    Settings,
    SkipBad,
    Source,
    Task,
    Url,
    explained,
    group,
    outlast_readers,
)
from longview.cluster.roles.auth import choose_ray_auth

app = group("Train robot policies that remember: many context lengths, one set of weights.")
app.add_typer(store_cli.app, name="store")
app.add_typer(dashboards_cli.app, name="dashboards")
app.add_typer(study_cli.app, name="study")

Resume = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="Go on with this run where it stopped; a URL brings back its copy."),
]


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 bad usage or config, 130 interrupted."""
    # `longview stop` and a cluster send SIGTERM: it interrupts like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    outlast_readers()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@app.command()
@explained
def demo(
    settings: Settings = None,
    task: Annotated[
        str,
        typer.Option(help="An installed task, `module:attribute`, `gym:ID` or `robosuite:NAME`."),
    ] = "grasp_and_return",
    pixels: Annotated[
        bool,
        typer.Option("--pixels", help="See objects through cameras, instead of being told where they are."),
    ] = False,
    resume: Resume = None,
) -> None:
    """Collect, train, evaluate and report on this machine, with everything embedded.

    Examples:

        longview demo

        longview demo --task return_point

        longview demo --task lift actors.count=4

        longview demo --task grasp_and_return --pixels

        longview demo --resume return_point-20260101-120000
    """
    from longview.cluster.run.config import pixels_file, preset_file, read_config

    if resume is None:
        file = pixels_file(task) if pixels else preset_file(task)
        config = read_config(file, settings or [], task=task)
        _run(config, None, None)
    else:
        _resume(resume, settings or [], None)


@app.command()
@explained
def launch(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="YAML file; see docs/runs.md.")
    ] = None,
    settings: Settings = None,
    resume: Resume = None,
    or_resume: Annotated[
        bool, typer.Option("--or-resume", help="Go on with the run of the config's name, if there is one.")
    ] = False,
    address: Address = None,
) -> None:
    """Launch a run from a config file.

    Examples:

        longview launch my_run.yaml learner.steps=20000

        longview launch my_run.yaml --address auto replay.url=redis://store:6379

        longview launch --resume my_run

        longview launch my_run.yaml --or-resume name=my_run
    """
    from longview.cluster.driver.scaling import still_scaled
    from longview.cluster.run.config import ConfigError, read_config
    from longview.cluster.run.folder import LEASE_SECONDS, resumable_run

    settings = settings or []
    if resume is not None:
        _resume(resume, settings if config is None else [config, *settings], address)
    elif config is None:
        raise ConfigError("give a config file, or --resume RUN")
    else:
        wanted = read_config(Path(config), settings)
        run = resumable_run(wanted) or _copied(wanted) if or_resume else None
        wanted = wanted if run is None else still_scaled(run, wanted)
        _run(wanted, run, address, patience=LEASE_SECONDS if or_resume else 0.0)


def _resume(name: str, settings: list[str], address: str | None) -> None:
    from longview.cluster.driver.scaling import scaled_settings
    from longview.cluster.run.copies import resumed

    run = resumed(name)
    _run(run.configured([*scaled_settings(run), *settings]), run, address)


def _copied(config: Any) -> Any:
    """Bring the run of the config's name back, if this machine has lost it and its copy exists."""
    from longview.cluster.run.copies import bring_back, copy_of, has_copy

    if config.copy_to is None or not has_copy(url := copy_of(config.copy_to, config.name)):
        return None
    return bring_back(url)


def _run(config: Any, run: Any, address: str | None, patience: float = 0.0) -> None:
    from longview.cluster.run.copies import refuse_uncopyable
    from longview.cluster.run.folder import refuse_port_in_use, take_run
    from longview.cluster.run.preflight import refuse_unmirrored, refuse_unsimulated, refuse_untrainable
    from longview.cluster.run.start import found_start

    refuse_untrainable(config, begun=run is not None)
    config = found_start(config, run)
    refuse_uncopyable(config)
    refuse_unmirrored(config)
    refuse_port_in_use(config.monitoring)
    if address is None:
        refuse_unsimulated(config)
    choose_ray_auth(address)
    # Without Ray this fails, so it comes before a run's folder is made.
    from longview.cluster.driver import launch as launching

    raise typer.Exit(launching.launch(config, take_run(config, run, patience=patience), address))


@app.command()
@explained
def train(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATASET... [KEY=VALUE]...",
            help="Data sets of one robot: robomimic's HDF5 files, LeRobotDatasets, zarr replay buffers; with "
            "--url a namespace. Config values, such as `learner.steps=3000`.",
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help="A Redis that holds the episodes already.")] = None,
    task: Annotated[str | None, typer.Option(help="Name of the task; by default the data set's.")] = None,
    filter: Filter = None,
    hz: Hz = None,
    keys: Keys = None,
    drop: Drop = None,
    map: Map = None,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT", help="Store pictures at this size, by default 96x96; `none` keeps theirs."
        ),
    ] = None,
    skip_bad: SkipBad = False,
    resume: Resume = None,
    address: Address = None,
) -> None:
    """Train a policy on recorded data alone, without a simulator, and measure it on held-out episodes.

    What is not set is chosen from the data and this machine, and said.

    Examples:

        longview train pusht_cchi_v7_replay.zarr --hz 10

        longview train monday.hdf5 tuesday.hdf5 --hz 20 learner.steps=5000 name=drawer

        longview train ./so101_pick --resize 128x96

        longview train demos --url redis://store:6379

        longview train demos --url redis://store:6379 --address auto learners=4

        longview train --resume drawer
    """
    from longview.cluster.commands import train as training
    from longview.cluster.commands.transfer import choice_of
    from longview.cluster.run.config import ConfigError
    from longview.cluster.run.copies import resumed
    from longview.cluster.run.folder import refuse_port_in_use

    paths, settings = training.split(datasets or [])
    training.refuse_useless_settings(settings, address)
    reading = {"--filter": filter, "--hz": hz, "--keys": keys, "--drop": drop, "--map": map}
    reading |= {"--skip-bad": skip_bad, "--resize": resize}
    if resume is not None:
        if paths:
            raise ConfigError(f"--resume takes the run's own data, not {', '.join(paths)}")
        others = {"--url": url, "--task": task} | reading
        training.refuse_without_effect("--resume", "the run goes on with its own data", others)
        run = resumed(resume)
        training.refuse_fixed(settings, run)
        config = run.configured(settings)
    else:
        if url is not None:
            training.refuse_without_effect("--url", training.AS_STORED, reading)
        size = None if resize == "none" else resize or "96x96"
        choice = choice_of(keys, drop or (), map or (), size, skip_bad)
        data = training.data_of(choice, filter, hz)
        run, config = None, training.new_config(paths, settings, data, url, task)
    refuse_port_in_use(config.monitoring)
    raise typer.Exit(training.train(config, run, address))


@app.command()
@explained
def audit(
    datasets: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET...",
            help="Data sets of one robot: robomimic's HDF5 files, LeRobotDatasets, zarr replay buffers; with "
            "--url a namespace.",
        ),
    ],
    url: Annotated[str | None, typer.Option(help="A Redis that holds the episodes.")] = None,
    task: Annotated[str | None, typer.Option(help="Name of the task; by default the data set's.")] = None,
    filter: Filter = None,
    hz: Hz = None,
    keys: Keys = None,
    drop: Drop = None,
    map: Map = None,
    skip_bad: SkipBad = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all randomness.")] = 0,
    report: Annotated[
        Path | None, typer.Option(help="The HTML report to write; by default TASK-audit.html.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find out whether recorded data need memory, and how far back.

    Networks that see more or less of the past predict the actions of episodes that they were not trained on.
    Minutes for a hundred episodes.

    Examples:

        longview audit pusht_cchi_v7_replay.zarr --hz 10

        longview audit monday.hdf5 tuesday.hdf5 --hz 20 --report drawer.html

        longview audit ./so101_pick --json

        longview audit demos --url redis://store:6379
    """
    from longview.cluster.commands import audit as auditing
    from longview.cluster.commands.train import AS_STORED, data_of, refuse_without_effect
    from longview.cluster.commands.transfer import choice_of

    if url is not None:
        reading = {"--filter": filter, "--hz": hz, "--keys": keys, "--drop": drop, "--map": map}
        refuse_without_effect("--url", AS_STORED, reading | {"--skip-bad": skip_bad})
    choice = choice_of(keys, drop or (), map or (), None, skip_bad)
    auditing.audit(datasets, data_of(choice, filter, hz), url, task, seed, report, as_json)


@app.command()
@explained
def collect(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task to demonstrate.")],
    settings: Settings = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Demonstrations in all; by default the task's own number.")
    ] = None,
    video: Annotated[Path | None, typer.Option(help="Show the first ones in this mp4.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Show the first ones in this PNG, as a sheet.")] = None,
    resume: Resume = None,
) -> None:
    """Let a task's scripted expert demonstrate it, into the store of a run.

    Examples:

        longview collect return_point --episodes 50 --video episodes.mp4

        longview collect lift --episodes 200 name=lift_demos

        longview collect lift --episodes 400 --resume lift_demos
    """
    from longview.cluster.commands.collect import collect as demonstrate
    from longview.cluster.run.config import ConfigError, preset_file, read_config
    from longview.cluster.run.copies import resumed

    run = None if resume is None else resumed(resume)
    wanted = [] if episodes is None else [f"actors.demonstrations={episodes}"]
    file = preset_file(task) if run is None else run.path / "config.yaml"
    config = read_config(file, [*(settings or []), *wanted], task=task)
    if config.task != task:
        raise ConfigError(f"TASK is {task}, but the config's task is {config.task}")
    demonstrate(config, run, video, sheet)


@app.command()
@explained
def check_task(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="An installed task, `module:attribute`, `gym:ID` or `robosuite:NAME`."
        ),
    ],
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with a task: seeds, ranges, outcomes, time limit, expert, pictures, speed.

    Examples:

        longview check-task return_point

        longview check-task my_package.my_task:task

        longview check-task my_task: --json

        longview check-task gym:Pendulum-v1 environment.success=-200
    """
    from longview.cluster.commands.check_task import show_checks

    raise typer.Exit(show_checks(task, settings or [], as_json=as_json))


@app.command()
@explained
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint's folder, a run's folder, or policy.safetensors.")
    ],
    settings: Settings = None,
    task: Annotated[str | None, typer.Option(help="By default the task it was trained for.")] = None,
    context: Annotated[str | None, typer.Option(help="Context lengths, such as `1,8,64`.")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per context length.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Evaluation seeds follow from it.")] = 0,
    adapter: Annotated[
        Path | None,
        typer.Option(help="An adapter that was trained from CHECKPOINT: a run, a checkpoint or a file."),
    ] = None,
    delay: Annotated[
        int | None, typer.Option(min=0, help="Steps that a robot makes while it waits for a decision.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint at several context lengths, on seeds that no training episode has.

    Examples:

        longview evaluate runs/my_run --context 1,8,64 --episodes 200

        longview evaluate runs/base --adapter runs/new_places

        longview evaluate runs/my_run --delay 4
    """
    from longview.cluster.run.config import ConfigError, read_config
    from longview.learner.files import adapter_file, policy_file

    try:
        lengths = None if context is None else [int(length) for length in context.split(",")]
    except ValueError:
        raise ConfigError(f"--context takes numbers such as 1,8,64, not {context!r}") from None
    try:
        file = policy_file(checkpoint)
        adapter = None if adapter is None else adapter_file(adapter)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from None
    if task is not None or not any(setting.startswith("environment.") for setting in settings or ()):
        read_config(None, settings or [], **({} if task is None else {"task": task}))
    choose_ray_auth(None)
    from longview.cluster.commands.evaluate import evaluate_checkpoint

    evaluate_checkpoint(
        file, adapter, task, lengths, episodes, seed, settings or [], delay=delay, as_json=as_json
    )


@app.command()
@explained
def serve(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A run, by folder or name; a folder of checkpoints, one of them; or a file."),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="An adapter of CHECKPOINT that acts beside it; repeatable."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; `0.0.0.0` needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one.")] = 8000,
    robots: Annotated[int, typer.Option(min=1, help="Most robots at a time.")] = 16,
    map: Map = None,
    resize: Annotated[
        bool,
        typer.Option("--resize", help="Resize pictures. A run whose `train` resized them needs no flag."),
    ] = False,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that robots bring; else LONGVIEW_API_KEY.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="Certificate for TLS, as PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key of the certificate, as PEM.")] = None,
    max_message: Annotated[int, typer.Option(min=1, help="Largest message of a robot, in MiB.")] = 16,
    max_rate: Annotated[
        float, typer.Option(min=0.1, help="Calls per second and robot; others wait.")
    ] = 200.0,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve /metrics at this port; 0 chooses a free one.")
    ] = None,
    record: Annotated[
        str | None, typer.Option(metavar="URL", help="Record episodes into the store in this Redis.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Namespace of these episodes; by default that of the policy's run.")
    ] = None,
    ensemble: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="DECAY", help="Average overlapping decisions, as ACT does with 0.01."),
    ] = None,
) -> None:
    """Serve a policy to robots over the network, with the history of each; `openpi-client` works unchanged.

    A run's newest checkpoint acts in every new episode. A single checkpoint stays.

    Examples:

        longview serve runs/my_run

        longview serve runs/my_run --map observation/state=state --map observation/image=front

        LONGVIEW_API_KEY=... longview serve my_run --host 0.0.0.0 --cert cert.pem --key key.pem

        longview serve my_run --record redis://store:6379 --metrics-port 9100

        longview serve policy.safetensors --resize

        longview serve base --adapter left=left_table --adapter right=right_table
    """
    from longview.cluster.commands import serve as serving
    from longview.cluster.run.config import ConfigError
    from longview.cluster.serving.server import ServeConfig

    try:
        config = ServeConfig(
            host=host,
            port=port,
            key=serving.api_key(api_key_file),
            robots=robots,
            message_bytes=max_message << 20,
            calls_per_second=max_rate,
            ensemble=ensemble,
        )
    except ValueError as error:
        raise ConfigError(f"--max-rate or --ensemble: {error}") from None
    serving.serve_checkpoint(
        checkpoint,
        config,
        adapters=adapter or (),
        map=map or (),
        resize=resize,
        tls=serving.tls_context(cert, key),
        metrics_port=metrics_port,
        record=record,
        namespace=namespace,
    )


@app.command()
@explained
def show(
    rerun: Annotated[Path, typer.Option(metavar="FILE.rrd", help="The file for Rerun to write.")],
    run: RunName = None,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Episodes; by default the newest.")
    ] = None,
    url: Url = None,
    source: Source = None,
    task: Task = None,
    outcome: Outcome = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Number of the newest episodes; by default 4.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Show what this policy would do, and attend to: a checkpoint's folder, a run's, or a file.",
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="The policy's context length T_o; by default its longest.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the policy's decisions; by default 0.")
    ] = None,
) -> None:
    """Put stored episodes into a file for the viewer of Rerun: cameras, state, actions, who was in control.

    With --policy, also what a policy chooses along recorded episodes, and which past frames it attends to.

    Examples:

        longview show my_run --rerun episodes.rrd --outcome failure

        longview show my_run import.drawer.000000003 --rerun episode.rrd --policy my_run --context 64

        longview show demos --url redis://store:6379 --rerun demos.rrd
    """
    from longview.cluster.commands.show import show as show_episodes
    from longview.cluster.commands.transfer import check_chosen
    from longview.cluster.run.config import ConfigError

    chosen = {"source": source, "task": task, "outcome": outcome}
    check_chosen(chosen)
    if ids and any((*chosen.values(), count)):
        raise ConfigError("give IDs, or choose by --source, --task, --outcome and --count")
    if policy is None and (context, seed) != (None, None):
        raise ConfigError("--context and --seed are those of a policy: give --policy")
    show_episodes(run, url, ids or (), chosen, count or 4, rerun, policy, context, seed or 0)


@app.command()
@explained
def status(
    run: RunName = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until the run ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a run is doing: its metrics while it is under way, else its summary.

    Examples:

        longview status

        longview status my_run --watch
    """
    from longview.cluster.run.folder import open_run
    from longview.cluster.views.summary import show_status
    from longview.cluster.views.watch import watch as watch_run

    found = open_run(run)
    if watch:
        watch_run(found)
    show_status(found, as_json=as_json)


@app.command()
@explained
def stop(
    run: RunName = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the run to save and end.")] = 120.0,
) -> None:
    """End a run cleanly: everything is saved, `--resume` goes on with it."""
    from longview.cluster.run.folder import RunError, open_run

    found = open_run(run)
    if not found.under_way():
        typer.echo(f"{found.name} is not under way")
        return
    state = found.state()
    if state["host"] != socket.gethostname():
        raise RunError(f"{found.name} is under way on {state['host']}: stop it there")
    os.kill(state["pid"], signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while found.under_way():
        if time.monotonic() > deadline:
            raise RunError(f"{found.name} has not ended within {timeout:g} s; give it more by --timeout")
        time.sleep(0.1)
    typer.echo(f"{found.name} has stopped; `--resume {found.typed}` goes on with it")


@app.command()
@explained
def scale(
    wanted: Annotated[str, typer.Argument(metavar="actors=N", help="How many actors there shall be.")],
    run: RunName = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it is so.")] = 600.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is so.")] = True,
) -> None:
    """Change the number of actors of a run under way; no episode is lost.

    Examples:

        longview scale actors=8

        longview scale actors=2 my_run --no-wait
    """
    from longview.cluster.driver.scaling import ask, parse
    from longview.cluster.run.folder import open_run

    actors = parse(wanted)
    ask(open_run(run), actors, timeout, typer.echo, wait=wait)


@app.command("config")
@explained
def config_(
    task: Annotated[str, typer.Argument(metavar="TASK", help="With what `demo` uses for this task.")] = "",
    settings: Settings = None,
) -> None:
    """Print every setting with its value, default and meaning, as a file for `launch`.

    Examples:

        longview config

        longview config lift > my_run.yaml

        longview config return_point learner.policy.kind=recurrent
    """
    from longview.cluster.commands.config import config_text
    from longview.cluster.run.config import preset_file, read_config

    if "=" in task:
        settings, task = [task, *(settings or [])], ""
    named = {"task": task} if task else {}
    typer.echo(config_text(read_config(preset_file(task), settings or [], **named)), nl=False)


if __name__ == "__main__":
    main()
