"""Tests of TLS and of users with few rights, against real servers."""

import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import redis
import trustme

from longview.replay.config import StoreConfig
from longview.replay.episode import EpisodeMeta, TaskSpec
from longview.replay.errors import StoreUnavailable
from longview.replay.redis import client, keys
from longview.replay.redis.migrate import Migration
from longview.replay.redis.quarantine import chunk_keys
from longview.replay.store import EpisodeStore
from tests.replay.conftest import redis_cluster
from tests.replay.redis.test_migrate import load_old_namespace

SECRET = "hunter2-S3CRET"
GUIDE = Path(__file__).parents[3] / "docs" / "store.md"

StartRedis = Callable[..., "subprocess.Popen[bytes]"]


def refused(url: str) -> str:
    """Return the message with which connecting fails; check that it comes soon and hides the password."""
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        EpisodeStore.connect(url, "lab", StoreConfig(url=url))
    assert time.monotonic() - started < 15
    shown = [str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)]
    assert not any(SECRET in text for text in shown)
    return str(caught.value)


# TLS


class Certificates(NamedTuple):
    ca: str
    another_ca: str
    server: str
    elsewhere: str
    client: str
    """Paths of certificates. The files `server`, `elsewhere` and `client` also hold the private key."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    ca, another = trustme.CA(), trustme.CA()
    pems = {
        "ca": ca.cert_pem,
        "another_ca": another.cert_pem,
        "server": ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem,
        "elsewhere": ca.issue_cert("redis.elsewhere").private_key_and_cert_chain_pem,
        "client": ca.issue_cert("lab@client").private_key_and_cert_chain_pem,
    }
    for name, pem in pems.items():
        pem.write_to_path(str(folder / name))
    return Certificates(*(str(folder / name) for name in Certificates._fields))


@pytest.fixture
def start_tls(
    start_redis: StartRedis, free_port: int, certificates: Certificates
) -> Callable[[str, str], str]:
    """Return a function that starts a Redis with TLS only, and returns its URL with the password."""

    def start(certificate: str, clients: str = "no") -> str:
        options = ["--port", "0", "--tls-port", str(free_port), "--tls-auth-clients", clients]
        options += ["--tls-cert-file", certificate, "--tls-key-file", certificate]
        options += ["--tls-ca-cert-file", certificates.ca, "--requirepass", SECRET]
        server = start_redis(*options)
        time.sleep(0.1)
        if server.poll() is not None:
            pytest.skip("this redis-server was built without TLS")
        return f"rediss://:{SECRET}@127.0.0.1:{free_port}"

    return start


def test_tls(start_tls: Any, certificates: Certificates, connect: Any, write: Any) -> None:
    url = f"{start_tls(certificates.server)}?ssl_ca_certs={certificates.ca}"
    store = connect(url)
    assert store.read(write(store, 1)).length == 10
    known = [
        store,
        store._namespace.client,
        store._namespace.client.redis,
        store._namespace.client.redis.connection_pool,
    ]
    assert not any(SECRET in repr(known_to) for known_to in known)


def test_tls_with_a_certificate_of_the_client(
    start_tls: Any, certificates: Certificates, connect: Any
) -> None:
    url = f"{start_tls(certificates.server, 'yes')}?ssl_ca_certs={certificates.ca}"
    assert "no TLS with Redis at rediss://***@127.0.0.1" in refused(url)
    own = f"&ssl_certfile={certificates.client}&ssl_keyfile={certificates.client}"
    assert connect(url + own).ids() == []


def test_tls_with_somebody_else(start_tls: Any, certificates: Certificates) -> None:
    url = start_tls(certificates.elsewhere)
    for trusted in ("", f"?ssl_ca_certs={certificates.another_ca}"):
        message = refused(url + trusted)
        assert "no TLS with Redis at rediss://***@127.0.0.1" in message
        assert "certificate verify failed" in message
    message = refused(f"{url}?ssl_ca_certs={certificates.ca}")
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in message


def test_only_one_side_speaks_tls(
    start_tls: Any, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PROBE_SECONDS", 0.5)
    url = start_tls(certificates.server)
    assert "did not answer for 0.5 s" in refused(url.replace("rediss", "redis"))


def test_nobody_speaks_tls(start_redis: StartRedis, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PROBE_SECONDS", 0.5)
    start_redis("--port", str(free_port))
    assert "did not answer for 0.5 s: Timeout" in refused(f"rediss://:{SECRET}@127.0.0.1:{free_port}")


def test_a_certificate_that_is_not_there() -> None:
    message = refused(f"rediss://:{SECRET}@127.0.0.1?ssl_ca_certs=/nowhere/ca.pem")
    assert message == "Redis at rediss://***@127.0.0.1: ssl_ca_certs names /nowhere/ca.pem, which is no file"


# Users


def acl_line() -> str:
    """Return the line by which the guide defines the user of the namespace `lab`."""
    (line,) = (line for line in GUIDE.read_text().splitlines() if line.strip().startswith("user lab "))
    return line.strip().replace("choose-a-password", SECRET)


@pytest.fixture
def server(start_redis: StartRedis, tmp_path: Path, free_port: int) -> str:
    """Run a Redis with the guide's user and a user without rights; return its address."""
    users = f"user default off\n{acl_line()}\nuser nobody on >{SECRET} ~* -@all\n"
    (tmp_path / "users.acl").write_text(users)
    start_redis("--port", str(free_port), "--aclfile", str(tmp_path / "users.acl"))
    return f"127.0.0.1:{free_port}"


def test_a_user_who_may_do_what_the_store_needs(server: str, spec: TaskSpec, write: Any) -> None:
    everything(f"redis://lab:{SECRET}@{server}", spec, write)


def test_that_user_may_migrate(server: str) -> None:
    url = f"redis://lab:{SECRET}@{server}"
    connected = client.Client(url, StoreConfig())
    load_old_namespace(connected.redis, "lab")
    assert Migration(connected, "lab", StoreConfig()).run().episodes == 14
    connected.redis.close()


def test_that_user_on_a_cluster(cluster: Any, spec: TaskSpec, write: Any) -> None:
    for port in cluster.servers:
        cluster.node(port).execute_command("ACL", "SETUSER", *acl_line().split()[1:])
    everything(cluster.url.replace("//", f"//lab:{SECRET}@"), spec, write)


def test_that_user_on_a_cluster_that_speaks_tls(
    tmp_path: Path, start_tls: Any, certificates: Certificates, spec: TaskSpec, write: Any
) -> None:
    start_tls(certificates.server)  # skips the test if Redis was built without TLS
    with redis_cluster(tmp_path, certificates.server, certificates.ca) as cluster:
        with pytest.raises(redis.ConnectionError):
            redis.Redis(port=next(iter(cluster.servers))).ping()
        for port in cluster.servers:
            cluster.node(port).execute_command("ACL", "SETUSER", *acl_line().split()[1:])
        url = cluster.url.replace("//", f"//lab:{SECRET}@")
        everything(f"{url}?ssl_ca_certs={certificates.ca}", spec, write)


def everything(url: str, spec: TaskSpec, write: Any) -> None:
    """Use every function of the store, and check that another namespace is refused."""
    store = EpisodeStore.connect(url, "lab", StoreConfig(shards=1, chunk_steps=4))
    store.register(spec)
    for number in range(3):
        write(store, number)
    abandoned = store.writer(EpisodeMeta("abandoned", "walk", 0, "rollout"))
    for _ in range(5):
        abandoned.append({name: np.zeros(it.shape, it.dtype) for name, it in spec.arrays().items()})
    abandoned.abort()
    store.prioritize({store.ids()[0]: 2.0})
    assert store.verify(repair=True).sound
    small = StoreConfig(chunk_steps=4, byte_budget=store.stats().total.bytes, patience_seconds=5.0)
    evicting = EpisodeStore.connect(url, "lab", small)
    write(evicting, 3)
    assert len(evicting.ids()) == 3
    assert evicting.ids()[0] in evicting
    assert len(evicting.sample({"rollout/success": 1.0}, 8, 2, 2, np.random.default_rng(0))) == 8
    assert evicting.read(evicting.ids()[0]).length == 10
    record = next(evicting.records())
    evicting._namespace.client.redis.set(chunk_keys(keys.tag("lab", 0), record)[0], b"damaged")
    assert list(evicting.verify(repair=True).quarantined) == [record.meta.id]
    assert evicting.verify(repair=True, drop=True).sound
    with pytest.raises(StoreUnavailable, match=r"refuses: .*no permissions to access one of the keys"):
        EpisodeStore.connect(url, "laboratory", StoreConfig())


def test_users_who_may_not(server: str) -> None:
    assert "'info' command" in refused(f"redis://nobody:{SECRET}@{server}")
    assert "invalid username-password pair" in refused(f"redis://lab:{SECRET}x@{server}")
    assert "refuses" in refused(f"redis://{server}")
