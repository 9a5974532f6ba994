"""`longview dashboards push` against a server that answers as the documentation of Grafana's API says."""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from longview.cluster.commands.dashboards import app
from longview.monitoring.dashboards import FOLDER
from longview.monitoring.grafana import TIMEOUT_SECONDS, GrafanaError, push

TOKEN = "glsa_0123456789abcdefABCDEF_deadbeef"
FILES = sorted(FOLDER.glob("*.json"))
PROMETHEUS = "http://prometheus:9090"
Answer = tuple[int, Any]


@dataclass
class Grafana:
    """State of the server, from which its answers follow."""

    version: str | None = "11.6.0"
    role: str = "Admin"
    folders: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    dashboards: dict[str, dict[str, Any]] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    """Every request that changed something."""
    url: str = ""

    def answer(self, method: str, path: str, token: str | None, body: Any) -> Answer:
        """Answer a request with status and body, as the documentation of the HTTP API says."""
        if path == "health":
            return 200, {"commit": "0", "database": "ok"} | (
                {"version": self.version} if self.version else {}
            )
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key", "messageId": "api-key.invalid", "statusCode": 401}
        if path == "frontend/settings":
            return 200, {"buildInfo": {"version": "12.1.0"}}
        if method != "GET" and self.role != "Admin":
            return 403, {
                "message": "You'll need additional permissions to perform this action.",
                "title": "x",
            }
        kind, _, rest = path.partition("/")
        code, answer = {
            "folders": self._folder,
            "datasources": self._source,
            "dashboards": self._dashboard,
        }[kind](method, rest, body)
        if method != "GET" and code == 200:
            self.written.append(f"{method} {path}")
        return code, answer

    def _folder(self, method: str, rest: str, body: Any) -> Answer:
        if method == "GET":
            return _one(self.folders, rest, "folder not found")
        if body["title"] in {folder["title"] for folder in self.folders.values()}:
            return 409, {"message": "a folder with the same name already exists in the current location"}
        self.folders[body["uid"]] = body | {"id": 1, "version": 1}
        return 200, self.folders[body["uid"]]

    def _source(self, method: str, rest: str, body: Any) -> Answer:
        uid = rest.removeprefix("uid/")
        if method == "GET":
            return _one(self.sources, uid, "Data source not found")
        others = {source["name"] for source in self.sources.values() if source["uid"] != uid}
        if body["name"] in others:
            return 409, {"message": "data source with the same name already exists"}
        if method == "PUT" and body["version"] != self.sources[uid]["version"]:
            return 409, {"message": "Datasource has already been updated by someone else. Please reload"}
        version = body.get("version", 0) + 1
        self.sources[body["uid"]] = body | {"id": 1, "orgId": 1, "readOnly": False, "version": version}
        return 200, {"datasource": self.sources[body["uid"]], "message": "Datasource added"}

    def _dashboard(self, method: str, rest: str, body: Any) -> Answer:
        if method == "GET":
            return _one(self.dashboards, rest.removeprefix("uid/"), "Dashboard not found")
        if body["folderUid"] not in self.folders:
            return 404, {"message": "folder not found", "status": "not-found"}
        dashboard = body["dashboard"]
        known = self.dashboards.get(dashboard["uid"])
        if known and dashboard.get("version") != known["dashboard"]["version"] and not body.get("overwrite"):
            message = "The dashboard has been changed by someone else"
            return 412, {"message": message, "status": "version-mismatch"}
        version = known["dashboard"]["version"] + 1 if known else 1
        saved = dashboard | {"id": len(self.dashboards) + 1, "version": version}
        self.dashboards[dashboard["uid"]] = {"dashboard": saved, "meta": {"folderUid": body["folderUid"]}}
        return 200, {"uid": dashboard["uid"], "status": "success", "version": version}


def _one(things: dict[str, dict[str, Any]], uid: str, missing: str) -> Answer:
    return (200, things[uid]) if uid in things else (404, {"message": missing})


def serve(answer: Any) -> Iterator[str]:
    """Run a server that answers `answer(method, path, token, body)`: status, body or text, and headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length) or b"null")
            code, found, *headers = answer(self.command, self.path, self.headers.get("Authorization"), body)
            text = found if isinstance(found, str) else json.dumps(found)
            self.send_response(code)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with suppress(BrokenPipeError):  # the client did not wait for the answer
                self.wfile.write(text.encode())

        do_POST = do_PUT = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    """A Grafana below a path, without dashboards."""
    held = Grafana()

    def answer(method: str, path: str, token: str | None, body: Any) -> Answer:
        assert path.startswith("/sub/api/")
        return held.answer(method, path.removeprefix("/sub/api/"), token, body)

    for url in serve(answer):
        held.url = f"{url}/sub/"
        yield held


def pushed(grafana: Grafana, prometheus: str | None = PROMETHEUS) -> list[str]:
    return list(push(grafana.url, TOKEN, FILES, prometheus))


def refused(url: str, token: str = TOKEN, *more: str) -> str:
    """Check that the command fails with 1 and never shows the token; return its explanation."""
    environment = {"GRAFANA_URL": url, "GRAFANA_TOKEN": token}
    result = CliRunner().invoke(app, ["push", "--prometheus", PROMETHEUS, *more], env=environment)
    assert result.exit_code == 1, result.output
    assert "longview: " in result.output
    assert token.strip() not in result.output
    return result.output


def test_everything_is_created_and_a_second_time_nothing_is_changed(grafana: Grafana) -> None:
    lines = pushed(grafana)
    assert lines[0] == "folder Longview: created"
    assert lines[1] == f"data source Longview: created, {PROMETHEUS}"
    assert len(lines) == 2 + len(FILES)
    assert all(line.endswith(": created") for line in lines[2:])
    assert {one["meta"]["folderUid"] for one in grafana.dashboards.values()} == {"longview"}
    for one in grafana.dashboards.values():
        (source,) = (v for v in one["dashboard"]["templating"]["list"] if v["type"] == "datasource")
        assert source["current"]["value"] in grafana.sources

    grafana.written.clear()
    assert all(": there" in line for line in pushed(grafana))
    assert all(": there" in line for line in pushed(grafana, None)), "the data source is known by now"
    assert grafana.written == []


def test_what_was_changed_is_put_right(grafana: Grafana) -> None:
    pushed(grafana)
    before = json.dumps(grafana.dashboards["longview-store"]["dashboard"]["panels"])
    grafana.dashboards["longview-store"]["dashboard"] |= {"panels": [], "version": 7}
    grafana.dashboards["longview-learner"]["meta"]["folderUid"] = "elsewhere"
    grafana.sources["longview-prometheus"]["jsonData"] = {"httpMethod": "POST"}
    grafana.written.clear()
    lines = pushed(grafana, "http://elsewhere:9090")
    assert [line for line in lines if not line.endswith(": there")] == [
        "data source Longview: renewed, http://elsewhere:9090",
        "Longview: Learner: renewed",
        "Longview: Store: renewed",
    ]
    assert len(grafana.written) == 3
    assert json.dumps(grafana.dashboards["longview-store"]["dashboard"]["panels"]) == before
    assert grafana.dashboards["longview-store"]["dashboard"]["version"] == 8
    settings = grafana.sources["longview-prometheus"]["jsonData"]
    assert settings == {"httpMethod": "POST"}, "what others have set stays"


def test_a_wrong_token_is_told_and_not_printed(grafana: Grafana) -> None:
    message = refused(grafana.url, "glsa_wrong")
    assert "does not accept GRAFANA_TOKEN" in message
    assert "Service accounts" in message
    assert grafana.written == []


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN} x", "glsa_é"])
def test_a_token_that_is_none_is_refused_before_it_is_sent(grafana: Grafana, token: str) -> None:
    assert "GRAFANA_TOKEN is no token" in refused(grafana.url, token)


def test_a_token_that_may_not_is_told_which_role_it_needs(grafana: Grafana) -> None:
    grafana.role = "Viewer"
    message = refused(grafana.url)
    assert "lacks a permission (You'll need additional permissions" in message
    assert "role Admin" in message


@pytest.mark.parametrize("version", ["9.5.21", "14.0.0", "nightly"])
def test_a_version_that_is_not_known_is_left_alone(grafana: Grafana, version: str) -> None:
    grafana.version = version
    message = refused(grafana.url)
    assert f"has version {version}; known are 10 to 13" in message
    assert grafana.written == []


@pytest.mark.parametrize("version", ["10.0.0", "13.1.2-pre", None])
def test_known_versions_are_served_those_that_hide_theirs_from_strangers_too(
    grafana: Grafana, version: str | None
) -> None:
    grafana.version = version
    assert len(pushed(grafana)) == 2 + len(FILES)


def test_without_a_data_source_one_must_say_where_prometheus_is(grafana: Grafana) -> None:
    with pytest.raises(GrafanaError, match="say by --prometheus where"):
        pushed(grafana, None)


def test_names_that_others_have_taken_are_told(grafana: Grafana) -> None:
    grafana.folders["other"] = {"uid": "other", "title": "Longview"}
    message = refused(grafana.url)
    assert "a folder with the same name already exists" in message
    assert "rename or remove it there" in message
    grafana.folders.clear()
    grafana.sources["other"] = {"uid": "other", "name": "Longview"}
    assert "data source with the same name already exists" in refused(grafana.url)


def test_an_unreachable_host_is_told() -> None:
    assert "http://127.0.0.1:1 cannot be reached (Connection refused)" in refused("http://127.0.0.1:1")
    assert "cannot be reached (Name or service not known)" in refused("http://grafana.invalid:3000")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, "404 page not found\n"), "answers, but not as Grafana does"),
        ((404, '<p class="message">nothing here</p>'), "answers, but not as Grafana does"),
        ((200, "<html>Please log in</html>"), "answers, but not as Grafana does"),
        ((200, [1, 2]), "answers, but not as Grafana does"),
        (
            (301, "", ("Location", "https://grafana/x?code=secret")),
            "redirects to https://grafana/x: give the",
        ),
        ((503, {"message": "database is locked"}), "fails with 503: database is locked"),
    ],
)
def test_what_is_no_grafana_or_a_sick_one_is_told(answer: tuple[Any, ...], words: str) -> None:
    for url in serve(lambda *_: answer):
        message = refused(url)
        assert words in message
        assert "secret" not in message


def test_a_host_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TIMEOUT_SECONDS <= 30
    monkeypatch.setattr("longview.monitoring.grafana.TIMEOUT_SECONDS", 0.2)
    released = threading.Event()
    for url in serve(lambda *_: (released.wait(30), (200, {}))[1]):
        assert "does not answer within 0.2 s" in refused(url)
        released.set()


@pytest.mark.parametrize(
    "url", ["grafana:3000", "http://admin:geheim@grafana", "http://grafana:x", "http://["]
)
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    message = refused(url)
    assert "must be like http://host:3000" in message
    assert "geheim" not in message


@pytest.mark.parametrize(("url", "token"), [("", TOKEN), ("http://grafana", ""), ("", "")])
def test_what_the_environment_lacks_is_told(url: str, token: str) -> None:
    result = CliRunner().invoke(app, ["push"], env={"GRAFANA_URL": url, "GRAFANA_TOKEN": token})
    assert result.exit_code == 2
    assert ("GRAFANA_URL" in result.output) == (not url)
    assert ("GRAFANA_TOKEN" in result.output) == (not token)
