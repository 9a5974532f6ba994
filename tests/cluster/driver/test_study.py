"""Tests of the work on a study's cells: real processes, without a simulator."""

import json
import os
import shutil
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from longview.cluster.driver import study as studying
from longview.cluster.driver.study import (
    ATTEMPTS,
    Job,
    Site,
    Tally,
    _alone,
    _fits,
    _job,
    _later,
    _next,
    _take,
    _work,
    machine,
)
from longview.cluster.driver.training import THREADS_VARIABLE
from longview.cluster.run.config import task_of
from longview.cluster.run.folder import Run, RunError, append_row, create_run, read_rows
from longview.cluster.run.study import Cell, finished, plan, read_study, results_of, trained_alike
from longview.learner.checkpoint import latest, save
from longview.learner.policy import policy_from_bytes, policy_to_bytes
from longview.monitoring.success import Evaluation
from longview.replay.config import StoreConfig
from longview.replay.errors import StoreError

NOWHERE = "redis://127.0.0.1:1"
"""URL at which nothing listens: a cell is taken all the same, and its episodes stay."""


def site(folder: Path, cpus: float = 4.0, at_once: int | None = None, retries: int = 1) -> Site:
    return Site(folder, "", None, {"CPU": cpus}, at_once, retries, {"looks": [50], "comparisons": 1})


QUICK = ("--help",)
"""Arguments of a job that succeeds within a moment."""


def job(folder: Path, name: str, *arguments: str, cpus: float = 2.0) -> Job:
    return Job(name, arguments, {"CPU": cpus}, lambda: (folder / name).mkdir(exist_ok=True))


def test_jobs_work_together_and_the_failed_ones_again(tmp_path: Path) -> None:
    good = [job(tmp_path, name, *QUICK) for name in ("first", "second")]
    bad = job(tmp_path, "bad", "config", "nothing=1")
    tallies: list[Tally] = []

    def tally(*counts: object) -> Tally:
        return Tally("look 1 of 1, 50 episodes", 0.0, "cells", *counts)  # type: ignore[arg-type]

    ended = {each.run: wrong for each, wrong in _work(site(tmp_path), [bad, *good], tally, tallies.append)}
    said = tmp_path / "bad" / studying.OUTPUT
    assert ended == {"first": None, "second": None, "bad": f"exit code 2, see {said}"}
    printed = said.read_text()
    assert printed.count("unknown key nothing") == 2, "it was run again once"
    assert max(len(each.running) for each in tallies) == 2
    assert (tallies[-1].done, tallies[-1].failed, tallies[-1].left) == (2, 1, 0)


def test_a_job_waits_for_the_one_that_it_follows(tmp_path: Path) -> None:
    first, second = (job(tmp_path, name, *QUICK) for name in ("first", "second"))
    second = replace(second, after="first")
    alone = replace(job(tmp_path, "alone", *QUICK), after="no job of this look")
    order: list[str] = []
    jobs = [replace(each, conclude=lambda each=each: order.append(each.run)) for each in (second, first)]
    tallies: list[tuple[object, ...]] = []
    ended = _work(site(tmp_path), [*jobs, alone], lambda *counts: counts, tallies.append)  # type: ignore[arg-type, return-value]
    assert all(wrong is None for _, wrong in ended)
    assert order == ["first", "second"]
    assert not any({"first", "second"} <= set(running) for _, _, running, *_ in tallies)


@pytest.mark.parametrize("part", ["prepare", "conclude"])
def test_an_error_of_a_job_in_this_process_fails_that_job_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    errors = {
        "bad run": RunError("run is under way"),
        "bad store": StoreError("no answer"),
        "bad disk": OSError("disk full"),
    }
    tried = Counter[str]()

    def fail(name: str) -> None:
        tried[name] += 1
        raise errors[name]

    jobs = {name: job(tmp_path, name, *QUICK) for name in (*errors, "good")}
    for name in jobs:
        (tmp_path / name).mkdir()
    for name in errors:
        jobs[name] = replace(jobs[name], **{part: partial(fail, name)})
    ended = _work(site(tmp_path), jobs.values(), lambda *counts: counts, lambda _: None)  # type: ignore[arg-type, return-value]
    said = {name: str(error) for name, error in errors.items()}
    assert {each.run: wrong for each, wrong in ended} == said | {"good": None}
    assert tried == dict.fromkeys(errors, 2), "each was run again once"
    for error in errors.values():
        assert str(error) in caplog.text


def test_a_row_tells_the_machine_or_the_cluster_but_no_addresses(tmp_path: Path) -> None:
    here = site(tmp_path)
    assert machine(here)["cores"] == os.cpu_count()
    room = {"CPU": 64.0, "GPU": 8.0, "node:10.0.0.5": 1.0, "memory": 1e9}
    cluster = machine(replace(here, address="auto", room=room))
    assert cluster.keys() == {"CPU", "GPU", "python", "torch", "ray"}
    assert (cluster["CPU"], cluster["GPU"]) == (64, 8)


def test_a_cell_whose_process_ended_without_results_is_not_taken(tmp_path: Path) -> None:
    cell = quick_cells()[0]
    with pytest.raises(RunError, match=r"expected a finished run, but run .* is not begun"):
        _take(site(tmp_path), cell, 50, [1], tmp_path / "cells.jsonl")


def test_processes_know_their_threads_and_end_with_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    start = studying._start
    monkeypatch.setattr(studying, "_start", lambda *given: started.append(start(*given)) or started[-1])
    jobs = [replace(job(tmp_path, "long", "collect", "return_point", "--episodes", "100000"), threads=7)]
    environments: list[bytes] = []

    def interrupt(_: object) -> None:
        if started:
            time.sleep(0.5)
            environments.append(Path(f"/proc/{started[0].pid}/environ").read_bytes())
            raise KeyboardInterrupt

    work = _work(site(tmp_path), jobs, lambda *counts: counts, interrupt)  # type: ignore[arg-type, return-value]
    with pytest.raises(KeyboardInterrupt):
        list(work)
    assert started[0].poll() is not None
    assert f"{THREADS_VARIABLE}=7".encode() in environments[0].split(b"\0")


@pytest.mark.parametrize(
    ("cpus", "at_once", "running", "fits"),
    [
        (4.0, None, 1, True),
        (4.0, None, 2, False),
        (1.0, None, 0, True),
        (8.0, 2, 2, False),
        (8.0, 2, 1, True),
    ],
)
def test_a_job_starts_where_there_is_room(
    tmp_path: Path, cpus: float, at_once: int | None, running: int, fits: bool
) -> None:
    jobs = [job(tmp_path, str(number)) for number in range(running)]
    assert _fits(site(tmp_path, cpus, at_once), job(tmp_path, "next"), jobs) == fits


@pytest.mark.parametrize(
    ("folder", "cells", "wrong"),
    [
        ("mine", "other.jsonl", "study mine is under way in another process, in .*mine$"),
        ("other", "mine.jsonl", r"another study adds its cells to .*mine\.jsonl now: .* by --cells$"),
    ],
)
def test_a_study_and_a_file_of_cells_belong_to_one_process_at_a_time(
    tmp_path: Path, folder: str, cells: str, wrong: str
) -> None:
    mine = tmp_path / "mine", tmp_path / "results" / "mine.jsonl"
    with (
        _alone(*mine),
        pytest.raises(RunError, match=wrong),
        _alone(tmp_path / folder, tmp_path / "results" / cells),
    ):
        pass
    with _alone(*mine):
        assert mine[1].read_text() == "", "cells are written into a folder that there was not"


def test_a_file_of_cells_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    file = tmp_path / "results" / "cells.jsonl"
    with pytest.raises(FileExistsError, match="results"), _alone(tmp_path / "mine", file):
        pass


def test_a_job_that_has_room_does_not_wait_behind_one_that_has_none(tmp_path: Path) -> None:
    large, small, running = (job(tmp_path, name, cpus=cpus) for name, cpus in (("l", 4), ("s", 1), ("r", 3)))
    assert _next(site(tmp_path, 4.0), [large, small], [running]) is small
    assert _next(site(tmp_path, 4.0), [large, small], []) is large


def test_a_job_whose_output_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    full, good = job(tmp_path, "full", *QUICK), job(tmp_path, "good", *QUICK)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / studying.OUTPUT).symlink_to("/dev/full/output")
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / ATTEMPTS).symlink_to("/dev/full")
    ended = _work(site(tmp_path), [full, good], lambda *counts: counts, lambda _: None)  # type: ignore[arg-type, return-value]
    wrong = {each.run: wrong for each, wrong in ended}
    assert wrong["good"] is None, "only the times of its attempts are lost"
    assert wrong["full"] is not None
    assert "Not a directory" in wrong["full"]


def quick_cells(*overrides: str) -> list[Cell]:
    return plan(read_study("quick", overrides)[0])


def test_a_cell_that_was_begun_takes_the_present_operational_settings(tmp_path: Path) -> None:
    first = quick_cells("actors.count=8", "inference.servers=2", "monitoring.host=0.0.0.0")[0]
    run = create_run(replace(first.config, name=first.name), tmp_path)
    present = quick_cells("actors.count=1", "placement.actor={actor: 1}")[0]
    assert present.name == first.name, "these settings are in no hash"
    command, resume, name, *settings = _job(
        site(tmp_path), present, 50, [1], None, tmp_path / "cells"
    ).arguments
    assert (command, resume, name) == ("launch", "--resume", first.name)
    run.unlock()
    config = run.configured(setting for setting in settings if not setting.startswith("replay.url"))
    expected = present.config
    assert (config.actors, config.inference, config.monitoring, config.placement) == (
        expected.actors,
        expected.inference,
        expected.monitoring,
        expected.placement,
    )
    assert (config.evaluation.final_episodes, config.evaluation.context_lengths) == (50, (1,))


def test_a_control_takes_the_policy_of_the_cell_that_trains_alike(tmp_path: Path) -> None:
    """Only the history that its evaluation shows tells it from another cell, or the length of that."""
    chosen = ["axes.task=[return_point]", "seeds=[0]", "control=null"]
    study, _ = read_study("remedies", ["methods=[naive long, truncated history]", *chosen])
    naive, truncated = plan(study)
    assert (naive.lengths, truncated.lengths) == ((64,), (16,))
    assert (
        trained_alike([naive, truncated]) == trained_alike([truncated, naive]) == {truncated.settings: naive}
    )
    study, _ = read_study("remedies", ["methods=[naive long, reversed history]", *chosen])
    cells = plan(study)
    naive, control = cells
    assert trained_alike(cells) == trained_alike(cells[::-1]) == {control.settings: naive}
    job = _job(site(tmp_path), control, 50, [64], None, tmp_path / "cells", naive)
    assert job.after == naive.name
    job.prepare()
    theirs, ours = (Run(tmp_path / cell.name).checkpoints for cell in (naive, control))
    for step in (1, naive.config.learner.steps):
        assert not list(ours.glob("*")), "only the policy that has been trained to the end is taken"
        (theirs / f"step-{step:09d}").mkdir(parents=True)
        (theirs / f"step-{step:09d}" / "policy.safetensors").write_bytes(b"%d" % step)
        job.prepare()
    (taken,) = ours.iterdir()
    assert (taken / "policy.safetensors").read_bytes() == b"%d" % naive.config.learner.steps
    (taken / "policy.safetensors").write_bytes(b"its own")
    job.prepare()
    assert (taken / "policy.safetensors").read_bytes() == b"its own"


def test_self_verification_takes_the_policy_of_full_past_prediction(tmp_path: Path) -> None:
    """It differs only in how the policy acts, which the policy it takes is told."""
    study, _ = read_study(
        "remedies",
        [
            "methods=[full past prediction, self-verification]",
            "axes.task=[return_point]",
            "seeds=[0]",
            *("baseline=null", "control=null"),
        ],
    )
    cells = plan(study)
    predicted, verified = cells
    assert trained_alike(cells) == trained_alike(cells[::-1]) == {verified.settings: predicted}
    policy, last = predicted.config.learner.policy, predicted.config.learner.steps
    collecting = plan(replace(study, settings={"collect.kind": "rollout"}))
    assert trained_alike(collecting) == {}, "what a policy collects follows from how it acts"
    theirs, ours = (Run(tmp_path / cell.name).checkpoints for cell in (predicted, verified))
    data = policy_to_bytes(policy.make(task_of(predicted.config).spec))
    save(theirs, last, data, {"weights": torch.zeros(1)}, {}, keep=1)
    job = _job(site(tmp_path), verified, 50, [64], None, tmp_path / "cells", predicted)
    job.prepare()
    taken = latest(ours)
    assert taken is not None, "its checksums are right"
    assert policy_from_bytes(taken.policy).config == verified.config.learner.policy
    assert taken.config["policy"]["candidates"] == verified.config.learner.policy.candidates == 10
    shutil.rmtree(ours)
    (theirs / f"step-{last:09d}" / "policy.safetensors").write_bytes(data[:-4] + bytes(4))
    job.prepare()
    assert latest(ours) is None, "what is damaged is not taken"


def finished_run(folder: Path, cell: Cell, outcomes: list[str]) -> Run:
    """Make the run of a cell whose episodes at T_o 1 have ended so."""
    run = create_run(replace(cell.config, name=cell.name, replay=StoreConfig(url=NOWHERE)), folder)
    run.unlock()
    (run.path / "summary.json").write_text(
        json.dumps({"status": "finished", "policy_version": 3, "phases": {"train": 60.0}})
    )
    endings = dict(enumerate(outcomes))
    run.add_evaluation(Evaluation(3, 1, len(outcomes), Counter(outcomes), endings=endings))
    return run


def test_a_row_tells_its_plans_and_the_time_of_attempts_before_a_resumption(tmp_path: Path) -> None:
    cell, file = quick_cells()[0], tmp_path / "cells.jsonl"
    run = finished_run(tmp_path, cell, ["success"] * 50)
    for row in ({"started": 0}, {"started": 100}, {"ended": 220}, {"started": 300}, {"ended": 400}):
        append_row(run.path / ATTEMPTS, row)
    here = replace(site(tmp_path), url=NOWHERE)
    _take(here, cell, 50, [1], file)
    (row,) = read_rows(file)
    assert (row["resumed"], row["minutes"]) == (True, {"train": 1.0, "earlier attempts": 2.0})
    file.unlink()
    _take(here, cell, 50, [1], file)
    assert read_rows(file)[0]["minutes"] == {"train": 1.0}, "a full disk has lost the times of its attempts"
    file.unlink()
    append_row(file, row)
    assert row["plans"] == [here.plan]
    append_row(run.path / ATTEMPTS, {"started": 500})
    _take(replace(here, plan={"looks": [100], "comparisons": 1}), cell, 50, [1], file)
    row = read_rows(file)[-1]
    assert row["minutes"] == {"train": 2.0, "earlier attempts": 2.0}, "an attempt counts once"
    assert [plan["looks"] for plan in row["plans"]] == [[50], [100]]


def test_further_episodes_are_of_the_policy_that_was_evaluated_before(tmp_path: Path) -> None:
    """The folder of a run may have been lost between two looks; then it is trained again."""
    cell, file = quick_cells()[0], tmp_path / "cells.jsonl"
    finished_run(tmp_path, cell, ["success" if index % 3 else "wrong" for index in range(100)])
    same = "wss" * 16 + "ws"
    for before in ("s" * 50, same):
        counts = {"successes": before.count("s"), "completed": 50, "episodes": 50}
        row = {"settings": cell.settings, "success": {"1": counts}, "endings": {"1": before}, "minutes": {}}
        append_row(file, row)
        if before == same:
            _take(replace(site(tmp_path), url=NOWHERE), cell, 100, [1], file)
            continue
        with pytest.raises(RunError, match=r"end otherwise\. Remove the cell's line from .*cells\.jsonl"):
            _take(replace(site(tmp_path), url=NOWHERE), cell, 100, [1], file)
        assert finished(file)[cell.settings]["endings"] == {"1": before}
    assert finished(file)[cell.settings]["success"]["1"]["episodes"] == 100


def test_the_same_cell_in_another_folder_may_go_on_with_its_episodes(tmp_path: Path) -> None:
    first, second = quick_cells()[:2]
    owners = []
    for folder, cell in (("here", first), ("there", first), ("here", second)):
        _job(site(tmp_path / folder), cell, 50, [1], None, tmp_path / "cells").prepare()
        owners.append(Run(tmp_path / folder / cell.name).origin.owner.id)
    assert owners[0] == owners[1] != owners[2]


def test_the_time_left_holds_later_looks(tmp_path: Path) -> None:
    study, _ = read_study("quick", ["looks=[50, 100, 200]"])
    cells = plan(study)
    found = list(zip(cells, results_of(study, cells, {}).cells, strict=True))
    shares = [_later(site(tmp_path), study, found, look, ()) for look in range(3)]
    assert shares[0] > shares[1] > shares[2] == 0
    trained = [cell.settings for cell in cells]
    assert _later(site(tmp_path), study, found, 0, trained) > shares[0], "this look trains nothing"
    tally = Tally("look 1 of 3, 50 episodes", 0.5, "cells", 1, 0, (), 3, 300.0, 100.0)
    assert tally.seconds_later == 200
    assert replace(tally, seconds_left=None).seconds_later is None
