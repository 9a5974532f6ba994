"""Forms in which the store may keep pictures: bytes, loss, and time to read random windows of two cameras.

The pictures pan over two photographs, and went through H.264 at the quality of our own exports, so that they
are as a video brings them.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import zstandard
from common import Row, arguments, finish, interleaved, machine, ratio, results, seconds
from numpy.typing import NDArray
from PIL import Image
from redis import Redis
from sklearn.datasets import load_sample_image

from longview.cluster.run.services import redis_server
from longview.replay.config import StoreConfig
from longview.replay.datasets.video import VideoReader, VideoWriter
from longview.replay.episode import ArraySpec, EpisodeMeta, Segment, TaskSpec
from longview.replay.store import EpisodeStore

SIZES: Final = {"640x480": (480, 640), "96x96": (96, 96)}
"""Height and width of the pictures, by case."""
PHOTOS: Final = {"front": "china.jpg", "wrist": "flower.jpg"}
"""Photograph that each camera pans over."""
HZ: Final = 30.0
"""Pictures per second."""
STEPS: Final = 96
"""Steps of the episode."""
WINDOWS: Final = (2, 16, 80)
"""Context lengths T_o of the windows."""
CHUNK_BYTES: Final = (1 << 20, 4 << 20, 16 << 20)
"""Values of `replay.chunk_bytes` that are compared."""

Pictures = NDArray[Any]
"""Pictures (K, H, W, 3) uint8."""


@dataclass(frozen=True)
class Form:
    """Form of a chunk of pictures of one camera."""

    encode: Callable[[Pictures], list[bytes]]
    """Function that makes one value of each picture, or a single value of all."""
    decode: Callable[[bytes], Pictures]
    """Function that decodes a value."""
    each: bool = True
    """Whether a value holds one picture."""


def main() -> None:
    options = arguments(__doc__ or "")
    where = machine(quick=options.quick)
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    rounds = 5 if options.quick else 30
    with TemporaryDirectory() as folder, redis_server(Path(folder) / "redis") as url:
        for case, (height, width) in SIZES.items():
            episode = {name: video_of(photo, height, width) for name, photo in PHOTOS.items()}
            rows += forms(url, case, episode, rounds)
            found, read = stored(url, case, episode, rounds)
            rows += found
            ratios |= {
                f"zstd_over_jpeg_{case}_{length}": ratio(read["raw", length], read["jpeg", length])
                for length in WINDOWS
            }
    finish(results(where, rows, ratios), {}, options.json)


def video_of(photo: str, height: int, width: int) -> Pictures:
    """Make the pictures (STEPS, height, width, 3) of a camera that pans over a photograph, as a video has
    them."""
    picture = Image.fromarray(load_sample_image(photo))
    if height < picture.height // 2:
        picture = picture.resize((width * 4 // 3, height * 4 // 3))
    wall = np.asarray(picture)
    wall = np.pad(wall, ((0, wall.shape[0]), (0, wall.shape[1]), (0, 0)), "reflect")
    room = wall.shape[0] - height, wall.shape[1] - width
    places = [(int(room[0] * (1 + np.sin(t / 40)) / 2), int(room[1] * t / STEPS)) for t in range(STEPS)]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "pan.mp4"
        video = VideoWriter(file, height, width, HZ)
        video.add(np.stack([wall[y : y + height, x : x + width] for y, x in places]))
        video.close()
        return VideoReader(file).read(0.0, STEPS, HZ)


# Forms, in Redis, without the store


def known_forms(height: int, width: int) -> dict[str, Form]:
    """Return the forms by name, for pictures of this size."""
    compressor, decompressor = zstandard.ZstdCompressor(1), zstandard.ZstdDecompressor()

    def one(data: bytes) -> Pictures:
        return np.asarray(Image.open(io.BytesIO(data)))

    def several(data: bytes) -> Pictures:
        return np.frombuffer(decompressor.decompress(data), np.uint8).reshape(-1, height, width, 3)

    saved = {
        "PNG": {"format": "PNG", "compress_level": 1},
        "JPEG q90": {"format": "JPEG", "quality": 90},
        "JPEG q95": {"format": "JPEG", "quality": 95},
        "WebP q90": {"format": "WEBP", "quality": 90, "method": 0},
    }
    return {
        "zstd 1": Form(lambda rows: [compressor.compress(rows.tobytes())], several, each=False),
        **{name: Form(partial(frames, options), one) for name, options in saved.items()},
    }


def frames(options: dict[str, Any], pictures: Pictures) -> list[bytes]:
    """Encode pictures one by one."""
    encoded = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, **options)
        encoded.append(file.getvalue())
    return encoded


def forms(url: str, case: str, episode: dict[str, Pictures], rounds: int) -> list[Row]:
    """Measure every form: bytes and loss of a picture, milliseconds to encode one and to read windows."""
    rows, redis = list[Row](), Redis.from_url(url)
    sides: dict[str, dict[int, Callable[[], float]]] = {}
    size = StoreConfig().steps_per_chunk(sum(pictures[0].nbytes for pictures in episode.values()))
    for name, form in known_forms(*SIZES[case]).items():
        measured = [kept(redis, f"{case} {name} {camera}", form, episode[camera], size) for camera in episode]
        for measure, unit, found in zip(
            ("picture", "loss", "encode"), ("KB", "of 255", "ms"), zip(*measured, strict=True), strict=True
        ):
            rows.append(Row(measure, f"{case}, {name}", unit, [sum(found) / len(found)]))
        step = 1 if form.each else size
        sides[name] = {
            length: partial(window, redis, f"{case} {name}", form, step, length, np.random.default_rng(0))
            for length in WINDOWS
        }
    for length in WINDOWS:
        samples = interleaved({name: side[length] for name, side in sides.items()}, rounds)
        rows += [
            Row("window", f"{case}, T_o {length}: {name}", "ms", times) for name, times in samples.items()
        ]
    return rows


def kept(redis: Redis, prefix: str, form: Form, pictures: Pictures, size: int) -> tuple[float, float, float]:
    """Put a camera's pictures into Redis, `size` at once; return KB, loss and milliseconds of encoding per
    picture."""
    values: list[bytes] = []

    def encode() -> None:
        for start in range(0, STEPS, size):
            values.extend(form.encode(pictures[start : start + size]))

    took = seconds(encode)
    redis.mset({f"{prefix} {at}": value for at, value in enumerate(values)})
    decoded = np.concatenate([form.decode(value).reshape(-1, *pictures.shape[1:]) for value in values])
    loss = float(np.abs(decoded.astype(int) - pictures).mean())
    return sum(map(len, values)) / STEPS / 1e3, loss, 1e3 * took / STEPS


def window(redis: Redis, prefix: str, form: Form, step: int, length: int, rng: np.random.Generator) -> float:
    """Measure the milliseconds to read a random window of both cameras, `step` pictures a value."""
    start = int(rng.integers(0, STEPS - length + 1))
    keys = [
        f"{prefix} {camera} {at}"
        for camera in PHOTOS
        for at in range(start // step, -(-(start + length) // step))
    ]

    def read() -> list[Pictures]:
        values: Sequence[Any] = redis.mget(keys)
        return [form.decode(value) for value in values]

    return 1e3 * seconds(read)


# The store


def stored(
    url: str, case: str, episode: dict[str, Pictures], rounds: int
) -> tuple[list[Row], dict[tuple[str, int], list[float]]]:
    """Measure random windows from the store, by its rule for pictures and its bound on chunks.

    Returns:
        The rows, and the milliseconds per step by rule and T_o, with the default bound.
    """
    spec = TaskSpec(
        name="pan",
        observation={name: ArraySpec(SIZES[case] + (3,), "uint8") for name in episode},
        action=ArraySpec((7,), low=-1.0, high=1.0),
        control_hz=HZ,
        max_steps=STEPS,
        context_lengths=(1,),
        demonstrations=1,
    )
    arrays = {f"observation.{name}": pictures for name, pictures in episode.items()}
    arrays |= {"action": np.zeros((STEPS, 7), np.float32), "reward": np.zeros(STEPS, np.float32)}
    rows, sides = [], dict[tuple[str, int, int], Callable[[], float]]()
    for rule in ("raw", "jpeg"):
        for chunk_bytes in CHUNK_BYTES:
            config = StoreConfig(pictures=rule, chunk_bytes=chunk_bytes, cache_bytes=0)  # type: ignore[arg-type]
            store = EpisodeStore.connect(url, f"{case}-{rule}-{chunk_bytes}", config)
            store.register(spec)
            writer = store.writer(EpisodeMeta("import.pan.0", "pan", 0, "import"))
            writer.extend(arrays)
            writer.commit("success")
            (record,) = store.records()
            label = f"{case}, {rule}, {chunk_bytes >> 20} MiB"
            rows.append(Row("stored", label, "KB/step", [record.bytes / record.length / 1e3]))
            for length in WINDOWS:
                sides[rule, chunk_bytes, length] = partial(draw, store, length, np.random.default_rng(0))
    names = {f"{rule}, {size >> 20} MiB, T_o {length}": key for key in sides for rule, size, length in [key]}
    samples = interleaved({name: sides[key] for name, key in names.items()}, rounds)
    rows += [Row("sample", f"{case}, {name}", "ms/step", samples[name]) for name in names]
    default = StoreConfig().chunk_bytes
    read = {(rule, length): samples[name] for name, (rule, size, length) in names.items() if size == default}
    return rows, read


def draw(store: EpisodeStore, length: int, rng: np.random.Generator) -> float:
    """Measure the milliseconds per step to draw a segment of at most `length` steps, without a cache.

    Segments that the episode's start cuts short are shorter.
    """
    segments: list[Segment] = []
    took = seconds(lambda: segments.extend(store.sample({"import": 1.0}, 1, length - 1, 0, rng)))
    return 1e3 * took / len(segments[0].arrays["action"])


if __name__ == "__main__":
    main()
