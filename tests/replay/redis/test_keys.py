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


def test_a_namespace_cannot_forge_keys() -> None:
    assert keys.tag("a}b:{c*", 0) == "{a%7Db%3A%7Bc%2A:0}"
    assert keys.layout("läuft gut") == "{l%C3%A4uft%20gut}:layout"
    assert keys.chunks_pattern("[a]?") == "{%5Ba%5D%3F:*}:chunks:*"


def test_names_that_were_always_allowed_keep_their_keys() -> None:
    for namespace in ("lab", "Lift-2.0_b", "return_point-20260101-120000-2"):
        assert keys.tag(namespace, 1) == f"{{{namespace}:1}}"
        assert keys.layout(namespace) == f"{{{namespace}}}:layout"
        assert keys.tasks(namespace) == f"{{{namespace}}}:tasks"
