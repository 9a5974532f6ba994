"""Tests of pictures as JPEG: what is lost, what is decoded, and what forged bytes may do."""

import io
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from longview.replay.cache import PartialEpisode
from longview.replay.codec import Record, decode_chunk, encode_chunk, open_chunk
from longview.replay.episode import Array, ArraySpec, EpisodeMeta, TaskSpec
from longview.replay.errors import CodecError
from longview.replay.pictures import Pictures, decode_pictures, encode_pictures
from longview.replay.redis.writer import EpisodeWriter
from longview.replay.store import EpisodeStore
from tests.replay.test_codec import forge, forge_body


def pictures(steps: int, height: int = 40, width: int = 56) -> Array:
    """Return smooth pictures (steps, height, width, 3), each with a mean of its own."""
    step, row, column = np.mgrid[:steps, :height, :width]
    shades = [20 * step + row, 20 * step + column, 200 - row - column]
    return np.stack(shades, -1).astype(np.uint8)


def away(one: Array, other: Array) -> int:
    return int(np.abs(one.astype(int) - other).max())


def chunk_of(rows: Array, as_jpeg: bool = True) -> bytes:
    steps = np.arange(len(rows), dtype=np.float32)
    return encode_chunk({"front": rows, "step": steps}, 1, ["front"] if as_jpeg else [])


def test_a_jpeg_loses_little_and_is_small() -> None:
    rows = pictures(5)
    (first, *others), decoded = (encode_pictures(rows), decode_chunk(chunk_of(rows)))
    assert first.startswith(b"\xff\xd8")
    assert len(set(map(bytes, others))) == 4
    assert 0 < away(decoded["front"], rows) <= 8
    assert decoded["front"].dtype == np.uint8
    assert not decoded["front"].flags.writeable
    assert decoded["step"].tolist() == [0, 1, 2, 3, 4]
    noise = np.random.default_rng(0).integers(0, 50, (4, 64, 64, 3)).astype(np.uint8)
    assert len(chunk_of(noise)) < 0.7 * len(chunk_of(noise, as_jpeg=False))


def test_only_pictures_that_are_asked_for_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pictures(10)
    record = Record(EpisodeMeta("a", "walk", 0, "import"), "success", 10, 10, 3, 99, "ab", 4)
    episode = PartialEpisode(record)
    for number in (1, 2):
        episode.fill(number, open_chunk(chunk_of(rows[4 * number : 4 * number + 4])))
    opened: list[Any] = []
    inner = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: opened.append(0) or inner(*args, **kwargs))
    found = episode.arrays(range(7, 10))
    assert len(opened) == 3
    assert away(found["front"], rows[7:10]) <= 8
    assert not found["front"].flags.writeable
    assert episode.bytes < rows[4:10].nbytes / 2, "they are kept as they are stored"


def test_chunks_of_both_forms_do_not_fit_together() -> None:
    record = Record(EpisodeMeta("a", "walk", 0, "import"), "success", 8, 8, 2, 99, "ab", 4)
    for first, second in ((True, False), (False, True)):
        episode = PartialEpisode(record)
        episode.fill(0, open_chunk(chunk_of(pictures(4), as_jpeg=first)))
        with pytest.raises(CodecError, match="chunk 1 holds"):
            episode.fill(1, open_chunk(chunk_of(pictures(4), as_jpeg=second)))


def packed(*frames: bytes) -> bytes:
    return struct.pack(f"<{len(frames)}I", *map(len, frames)) + b"".join(frames)


GOOD = encode_pictures(pictures(2))
BAD_ROWS: dict[str, tuple[list[Any], bytes]] = {
    "bytes that are missing": (["a", "jpeg", [2, 40, 56, 3], len(packed(*GOOD)) + 1], packed(*GOOD)),
    "sizes that do not add up": (["a", "jpeg", [1, 40, 56, 3], len(packed(*GOOD))], packed(*GOOD)),
    "sizes beyond the end": (["a", "jpeg", [1, 40, 56, 3], 300], struct.pack("<I", 2**32 - 1) + bytes(296)),
    "too many pictures": (["a", "jpeg", [2**20, 1, 1, 3], 1000], bytes(1000)),
    "more than may be decoded": (["a", "jpeg", [1, 2**15, 2**15, 3], len(packed(GOOD[0]))], packed(GOOD[0])),
    "another shape": (["a", "jpeg", [1, 40, 56], len(packed(GOOD[0]))], packed(GOOD[0])),
    "no number of bytes": (["a", "jpeg", [1, 40, 56, 3]], packed(GOOD[0])),
    "a negative number of bytes": (["a", "jpeg", [1, 40, 56, 3], -8], packed(GOOD[0])),
    "another form": (["a", "uint8", [1, 40, 56, 3], len(packed(GOOD[0]))], packed(GOOD[0])),
    "an unknown form": (["a", "webp", [1, 40, 56, 3], len(packed(GOOD[0]))], packed(GOOD[0])),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_forged_entries_are_refused(case: str) -> None:
    row, data = BAD_ROWS[case]
    with pytest.raises(CodecError):
        open_chunk(forge(forge_body([row], data)))


def test_the_forge_makes_good_pictures_too() -> None:
    data = packed(*GOOD)
    found = open_chunk(forge(forge_body([["a", "jpeg", [2, 40, 56, 3], len(data)]], data)))["a"]
    assert isinstance(found, Pictures)
    assert away(decode_pictures(found.frames, (40, 56, 3)), pictures(2)) <= 8


def saved(picture: Array, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format, **options)
    return file.getvalue()


ONE = pictures(1)[0]
BAD_PICTURES = {
    "larger than it may be": saved(pictures(1, 41)[0]),
    "grey": saved(ONE[..., 0]),
    "no JPEG": saved(ONE, "PNG"),
    "progressive": saved(ONE, progressive=True),
    "cut short": saved(ONE)[:-200],
    "nothing": b"",
}


@pytest.mark.parametrize("case", BAD_PICTURES)
def test_a_picture_that_is_not_as_written_is_refused(case: str) -> None:
    frame = np.frombuffer(BAD_PICTURES[case], np.uint8)
    with pytest.raises(CodecError):
        decode_pictures([frame], (40, 56, 3))


@given(st.lists(st.tuples(st.integers(0, len(GOOD[0]) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_picture_that_was_tampered_with_is_a_picture_or_refused(changes: list[tuple[int, int]]) -> None:
    frame = np.frombuffer(GOOD[0], np.uint8).copy()
    for place, value in changes:
        frame[place] = value
    with suppress(CodecError):
        assert decode_pictures([frame], (40, 56, 3)).shape == (1, 40, 56, 3)


LARGE = TaskSpec(
    name="look",
    observation={
        "front": ArraySpec((128, 136, 3), "uint8"),
        "small": ArraySpec((128, 128, 3), "uint8"),
        "depth": ArraySpec((128, 136), "uint8"),
    },
    action=ArraySpec((1,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=100,
    context_lengths=(1,),
    demonstrations=1,
)
NAMES = [f"observation.{key}" for key in LARGE.observation]


def look(step: int) -> dict[str, Array]:
    """Return a step whose pictures are noise, which a JPEG changes visibly."""
    rng = np.random.default_rng(step)
    arrays = {
        name: rng.integers(0, 256, spec.shape).astype(spec.dtype) for name, spec in LARGE.arrays().items()
    }
    return arrays | {
        "action": np.zeros(1, np.float32),
        "reward": np.asarray(step, np.float32),
        "controller": np.asarray(1, np.uint8),
    }


@pytest.mark.parametrize(
    ("rule", "lossy", "changed"),
    [
        ("auto", NAMES, {"observation.front"}),
        ("auto", [], set()),
        ("raw", NAMES, set()),
        ("jpeg", [], {"observation.front", "observation.small"}),
    ],
)
def test_the_rule_says_which_pictures_lose_something(
    connect: Callable[..., EpisodeStore], rule: Any, lossy: list[str], changed: set[str]
) -> None:
    store = connect(pictures=rule, chunk_steps=3)
    store.register(LARGE)
    writer: EpisodeWriter = store.writer(EpisodeMeta("import.look.1", "look", 0, "import"), lossy=lossy)
    for step in range(7):
        writer.append(look(step))
    assert writer.commit("success")
    assert store.verify().sound
    (segment,) = connect(pictures="raw").sample({"import": 1.0}, 1, 9, 9, np.random.default_rng(0))
    whole = store.read("import.look.1").arrays
    for name in NAMES:
        rows = np.stack([look(step)[name] for step in range(7)])
        assert np.array_equal(whole[name], rows) == (name not in changed)
        np.testing.assert_array_equal(segment.arrays[name], whole[name])


def test_an_episode_with_a_forged_picture_is_set_aside(
    connect: Callable[..., EpisodeStore], redis: Any, namespace: str
) -> None:
    store = connect(pictures="jpeg", chunk_steps=2)
    store.register(LARGE)
    for number in (1, 2):
        writer = store.writer(EpisodeMeta(f"import.look.{number}", "look", 0, "import"))
        for step in range(4):
            writer.append(look(step))
        writer.commit("success")
    (key,) = redis.scan_iter(f"{{{namespace}:*:chunks:import.look.1:*:1", count=10_000)
    body = encode_chunk(decode_chunk(redis.get(key)), 0, NAMES[:2])[16:]
    redis.set(key, forge(body.replace(GOOD[0][:4], bytes(4))))
    drawn = store.sample({"import": 1.0}, 16, 9, 9, np.random.default_rng(0))
    assert {segment.meta.id for segment in drawn} == {"import.look.2"}
    assert store.stats().quarantined == 1
