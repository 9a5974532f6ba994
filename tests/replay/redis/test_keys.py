import pytest

from longview.replay.redis import keys


def test_all_keys_of_a_shard_share_its_hash_tag() -> None:
    tag = keys.tag("lab", 3)
    names = [keys.episodes(tag), keys.index(tag, "demo"), keys.removed(tag), keys.totals(tag)]
    names += [*keys.chunks(tag, "some.id", "token", range(2)), keys.chunks_prefix(tag)]
    assert len(set(names)) == len(names)
    assert all(name.startswith("{lab:3}:") for name in names)


def test_an_episode_is_in_the_same_shard_in_every_process() -> None:
    ids = [f"demo.walk.{number:09d}" for number in range(8)]
    assert [keys.shard_of(id, 4) for id in ids] == [0, 2, 0, 2, 1, 3, 1, 3]
    assert {keys.shard_of(id, 1) for id in ids} == {0}


@pytest.mark.parametrize("namespace", ["", "a:b", "a}b", "{a", "a b", "x" * 129])
def test_a_namespace_cannot_forge_keys(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace must match"):
        keys.check_namespace(namespace)
