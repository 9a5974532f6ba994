"""Configs: what is accepted, what is refused and with which words."""

from pathlib import Path

import pytest
import yaml

from longview.cluster.run.config import (
    PRESETS,
    ConfigError,
    pixels_file,
    preset_file,
    public_config,
    read_config,
    task_of,
    without_password,
    write_config,
)
from longview.learner.policies.diffusion.config import DiTConfig
from longview.learner.policies.recurrent.config import RecurrentConfig
from longview.replay.config import with_password


def test_defaults_are_a_run() -> None:
    config = read_config(None)
    assert config.task == "return_point"
    assert config.learner.policy.execute == 8


def test_overrides_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\nlearner: {steps: 500, warmup: 10}\n")
    config = read_config(file, ["learner.steps=700", "learner.policy.widths=[16, 32]"], task="lift", seed=1)
    assert (config.task, config.seed, config.learner.steps, config.learner.warmup) == ("lift", 3, 700, 10)
    assert config.learner.policy.widths == (16, 32)


def test_an_override_of_one_stratum_leaves_the_weights_of_the_others(tmp_path: Path) -> None:
    mix = read_config(None, ["learner.mix.correction=2"]).learner.mix
    assert (mix["correction"], mix["demo"]) == (2, 0.75)
    file = tmp_path / "run.yaml"
    file.write_text("learner: {mix: {demo: 3}}\n")
    assert read_config(file, ["learner.mix.correction=2"]).learner.mix == {"demo": 3, "correction": 2}


@pytest.mark.parametrize("task", ["return_point", "lift", "push_t"])
def test_presets_are_valid(task: str) -> None:
    assert read_config(preset_file(task), [], task=task).task == task


@pytest.mark.parametrize(
    ("task", "cameras", "state"),
    [
        ("grasp_and_return", {"agentview_image", "robot0_eye_in_hand_image"}, {"hand_pos", "gripper"}),
        ("push_and_return", {"agentview_image"}, {"hand_pos"}),
    ],
)
def test_settings_for_pixels_hide_where_the_object_is(task: str, cameras: set[str], state: set[str]) -> None:
    config = read_config(pixels_file(task), [], task=task)
    seen = task_of(config).spec.observation
    assert {key for key, array in seen.items() if array.is_image} == cameras
    assert seen.keys() == cameras | state


@pytest.mark.parametrize(
    ("task", "hidden"),
    [
        ("grasp_and_return", "cube_pos"),
        ("push_and_return", "puck_pos"),
        ("square", "object"),
        ("lift", "object"),
    ],
)
def test_the_published_recipe_fits_every_task_with_its_cameras(task: str, hidden: str) -> None:
    settings = [f"task={task}", f"actors.cameras.instead_of=[{hidden}]"]
    config = read_config(PRESETS / "paper.yaml", settings)
    spec, policy = task_of(config).spec, config.learner.policy
    assert set(policy.crops(spec).values()) == {(112, 112)}
    horizon = policy.horizon(spec)
    assert (horizon.past, horizon.positions, horizon.execute) == (2, 16, 8)
    assert config.learner.windows(spec, world=8) == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learner.batchsize=3", "unknown key learner.batchsize; did you mean learner.batch_size"),
        ("actor.count=3", "unknown key actor; did you mean actors"),
        ("learner.steps=many", "learner.steps: input should be a valid integer.*not 'many'"),
        (
            "learner.policy={widths: [32, 64], future_actions: 13}",
            "learner.policy.future_actions 13 .*T_p 15, .*not divisible by 2",
        ),
        ("learner.batch_size=0", "learner.batch_size must be positive, not 0"),
        ("task=return_pint", "unknown task 'return_pint'.*did you mean return_point"),
        ("evaluation.context_lengths=[1, 128]", r"context_lengths \[128\] are longer.*64"),
        ("learner.curriculum.kind=random", "learner.curriculum.kind"),
        ("learner.curriculum={kind: lengths, lengths: {8: 1, 65: 2}}", r"in 1\.\.64, .* not \[65\]"),
        ("learner.windows_per_segment=5", "batch_size 64 is not a multiple of windows_per_segment 5"),
        ("learners=3", "learner.batch_size 64 is not a multiple of 3 learner ranks x windows_per_segment 1"),
        ("monitoring.port=99999", "monitoring.port must lie in 0..65535, not 99999"),
        (
            "evaluation.history=none",
            "evaluation.history: input should be .own., .reversed. or .other., not .none.",
        ),
        ("learner.history_dropout=1", r"history_dropout must be in \[0, 1\), not 1"),
        ("learner.encoder_steps=2350", "warmup 100 .* encoder_steps 2350, and .* to 2400"),
        ("monitoring.mirrors=[wandb, tensorbord]", "monitoring.mirrors must be some of .*, not tensorbord"),
        ("learner.policy.camera_stages=5", "camera_stages must be 1 to 4, not 5"),
        ("name=a/b", "name must be a plain folder name: 'a/b'"),
        ("learner", "expected key=value, not 'learner'"),
        ("seed.more=1", None),
        ("learner.mix={expert: 1}", "unknown sources.*expert"),
        ("learner.mix={dagger: 1}", "learner.*mix: source dagger is called correction now"),
        ("replay.evict=[rollout, dagger]", "replay.evict: source dagger is called correction now"),
        ("learner.mix={rollout/won: 1}", r"learner.outcomes: \['won'\] cannot be drawn, only success"),
        ("learner.outcomes=success", "learner.outcomes: input should be a valid tuple, not 'success'"),
        ("learner.draw_by=luck", "learner.draw_by: input should be 'steps', 'episodes'.*not 'luck'"),
        ("replay.evict=[demos]", r"replay.evict: unknown sources \['demos'\], there are demo"),
        ("seed=-1", "seed must not be negative"),
        ("placement.actors.slot=1", "unknown key placement.actors; did you mean placement.actor"),
        ("placement.actor.slot=many", "placement.actor.slot: input should be a valid number"),
        ("placement.learner.slot=0", "placement.learner.slot must be positive, not 0"),
        ("placement.learner_gpus=-1", "placement.learner_gpus must not be negative"),
        ("placement.inference_gpus=1.5", "placement.inference_gpus must be a share of one GPU or a whole"),
        ("evaluation.delay=-1", "evaluation.delay must not be negative, not -1"),
        ("inference.servers=-1", "inference.servers must not be negative, not -1"),
        ("inference.servers=3", "inference.servers 3 are more than actors.count 2"),
        ("inference.max_batch=0", "inference.max_batch must be at least 1, not 0"),
        ("inference.wait_ms=.inf", "inference.wait_ms must lie in 0..1000, not inf"),
        ("inference.server=1", "did you mean inference.servers?"),
        ("placement.inference_gpus=0.5", "placement.inference_gpus 0.5 needs servers: set inference.servers"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(setting: str, message: str | None) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(None, [setting])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["inference.servers=1", "placement.actor_gpus=1"],
            "placement.actor_gpus 1: no actor holds",
        ),
        (
            ["learner.policy.execute=4", "evaluation.delay=3"],
            "evaluation.delay 3 exceeds half of learner.policy.execute 4",
        ),
        (
            ["learner.policy.kind=recurrent", "learner.policy.max_delay=2"],
            "unknown key learner.policy.max_delay",
        ),
        (
            ["learners=2", "placement.learner_gpus=0.5"],
            "learner_gpus 0.5 with learners 2: ranks that",
        ),
        (
            ["evaluation.history=other", "collect.kind=takeover"],
            "evaluation.history other does not go with collect.kind takeover",
        ),
        (
            ["evaluation.history=reversed", "inference.servers=1"],
            "history reversed does not go with inference.servers 1",
        ),
        (
            ["evaluation.history=reversed", "learner.policy.kind=recurrent"],
            "learner.policy.kind recurrent: its state holds the history",
        ),
        (
            ["collect.kind=takeover", "collect.expert_steps=500", "replay.samples_per_insert=8"],
            "the learner would wait for more at replay.samples_per_insert 8: give one of them",
        ),
        (
            ["collect.kind=takeover", "collect.expert_steps=500", "replay.minimum_steps=2000"],
            "the learner would wait for more at replay.minimum_steps 2000: give one of them",
        ),
        (
            ["collect.kind=rollout", "collect.expert_steps=500"],
            "no expert acts with collect.kind rollout",
        ),
        (
            ["learner.encoder_steps=200", "learner.policy.recent_encoder=true"],
            "encoder_steps 200 trains one encoder: set policy.recent_encoder to false",
        ),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(None, settings)


def test_a_file_that_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read config"):
        read_config(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must hold keys and values, not a list"):
        read_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_config(tmp_path / "broken.yaml")


def test_lengths_of_a_curriculum_are_numbers_in_a_file_too(tmp_path: Path) -> None:
    config = read_config(None, ["learner.curriculum={kind: lengths, lengths: {1: 1, 64: 0.5}}"])
    assert config.learner.curriculum.lengths == {1: 1.0, 64: 0.5}
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_what_is_written_reads_back_equal_and_holds_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(None, ["replay.url=redis://me:secret@host:1/0", "learner.steps=900"])
    write_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "secret" not in text
    assert "secret" not in repr(config)
    assert yaml.safe_load(text) == public_config(config)
    monkeypatch.setenv("LONGVIEW_REDIS_PASSWORD", "secret")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "url", ["redis://:pa/ss@host/0", "redis://me:pa#ss@host", "redis://h?password=pa/ss"]
)
def test_a_url_whose_password_could_be_written_down_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"replay\.url: give a password as .* percent-encoded") as caught:
        read_config(None, [f"replay.url={url}"])
    assert "ss" not in str(caught.value).replace("password", "").replace("address", "")


def test_names_are_taken_as_they_are_typed() -> None:
    for name in ("my run #3", "2024", "no", "a: b", "[x]", "Läuft"):
        assert read_config(None, [f"name={name}"]).name == name
    assert read_config(None, ["name="]).name is read_config(None, ["name=null"]).name is None


@pytest.mark.parametrize(
    ("url", "joined"),
    [
        ("redis://host:1/0", "redis://:s3%20cret%2F@host:1/0"),
        ("rediss://me@host?db=2", "rediss://me:s3%20cret%2F@host?db=2"),
        ("unix:///tmp/x.sock", "unix://:s3%20cret%2F@/tmp/x.sock"),
        ("redis://:own@host", "redis://:own@host"),
        ("unix:///tmp/x.sock?password=own", "unix:///tmp/x.sock?password=own"),
    ],
)
def test_the_environments_password_joins_a_url_without_one(
    url: str, joined: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_password(url) == url
    monkeypatch.setenv("LONGVIEW_REDIS_PASSWORD", "s3 cret/")
    assert with_password(url) == joined


def test_urls_lose_only_their_password() -> None:
    assert without_password("redis://me:p%40ss@host:1/0") == "redis://me@host:1/0"
    assert without_password("redis://:secret@host") == "redis://host"
    assert without_password("unix:///tmp/x.sock") == "unix:///tmp/x.sock"


@pytest.mark.parametrize(
    ("settings", "kind", "size"),
    [
        (["learner.policy.architecture=dit"], DiTConfig, 64),
        (["learner.policy.kind=recurrent"], RecurrentConfig, 64),
        (["learner.policy.kind=recurrent", "learner.policy.token_size=16"], RecurrentConfig, 16),
    ],
)
def test_an_override_chooses_another_policy_than_the_files(
    settings: list[str], kind: type, size: int, tmp_path: Path
) -> None:
    """The file's settings that the other policy has stay; widths, which it does not have, go."""
    file = tmp_path / "run.yaml"
    file.write_text("learner: {policy: {widths: [64], token_size: 64}}\n")
    config = read_config(file, settings)
    assert type(config.learner.policy) is kind
    assert config.learner.policy.token_size == size


def test_a_policy_of_another_kind_is_written_and_read_back(tmp_path: Path) -> None:
    config = read_config(None, ["learner.policy.kind=recurrent", "learner.policy.hidden=32"])
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["learner.policy.kind=lstm"], "learner.policy.kind must be one of diffusion, recurrent, not 'lstm'"),
        (["learner.policy.architecture=lstm"], "architecture must be one of dit, mlp, .* not 'lstm'"),
        (["learner.policy.kind=recurrent", "learner.policy.widths=[8]"], "unknown key learner.policy.widths"),
        (["learner.policy.hiden=8", "learner.policy.kind=recurrent"], "did you mean learner.policy.hidden"),
        (
            ["learner.policy.kind=recurrent", "learner.policy.spread=0"],
            "learner.policy.spread must be positive",
        ),
        (["learner.policy=3"], "learner.policy: input should be a dictionary"),
        (["learner=3"], "learner: input should be a dictionary"),
    ],
)
def test_a_wrong_policy_is_refused_with_its_name(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(None, settings)
