"""Puts folder, data source and dashboards on a Grafana. A repeated push changes nothing."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FOLDER = {"uid": "longview", "title": "Longview"}
SOURCE = {"uid": "longview-prometheus", "name": "Longview", "type": "prometheus", "access": "proxy"}
KNOWN_VERSIONS = range(10, 14)
"""Major versions that load classic dashboards."""
TIMEOUT_SECONDS = 10.0
"""Longest wait for an answer."""


class GrafanaError(Exception):
    """A request that Grafana did not fulfil; the message says why, and what to do."""


def push(url: str, token: str, files: Sequence[Path], prometheus: str | None) -> Iterator[str]:
    """Create or renew the folder, the data source and the dashboards. Changes that somebody made to these
    dashboards are overwritten.

    Args:
        url: Grafana's address; it may have a path.
        token: of a service account with the role Admin.
        files: dashboards.
        prometheus: Prometheus' address as Grafana reaches it; None leaves the data source as it is.

    Yields:
        A line for each thing that was created, renewed or already present.

    Raises:
        GrafanaError: the address cannot be reached, is no Grafana's, or is a Grafana of an unknown version;
            Grafana refuses the token or a change; or Grafana has no data source yet and `prometheus` is None.
    """
    dashboards = [json.loads(file.read_text()) for file in files]
    api = _connect(url, token)
    try:
        _check_version(api, url)
        yield f"folder {FOLDER['title']}: {_put_folder(api)}"
        yield f"data source {SOURCE['name']}: {_put_source(api, prometheus)}"
        for dashboard in dashboards:
            yield f"{dashboard['title']}: {_put_dashboard(api, dashboard)}"
    except OSError as error:  # of requests
        raise GrafanaError(_explain(url, error)) from None
    except _refusal() as error:
        raise GrafanaError(_explain_refusal(url, error)) from None


def _connect(url: str, token: str) -> Any:
    from grafana_api.grafana_face import GrafanaFace

    try:
        parts, _ = urlsplit(url), urlsplit(url).port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise GrafanaError(
            "Grafana's address must be like http://host:3000 or https://host/path, without user or password: "
            "the token alone says who you are"
        )
    # The HTTP client's error for a malformed token would contain the token.
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise GrafanaError(
            "GRAFANA_TOKEN is no token: it holds blanks, line ends or other strange characters"
        )
    prefix = f"{path}/" if (path := parts.path.strip("/")) else ""
    grafana = GrafanaFace(token, parts.netloc, None, prefix, parts.scheme, timeout=TIMEOUT_SECONDS)
    grafana.api.s.max_redirects = 0  # followed, a POST would become a GET
    return grafana.api


def _check_version(api: Any, url: str) -> None:
    try:
        health = api.GET("/health")
        version = str(health.get("version") or api.GET("/frontend/settings")["buildInfo"]["version"])
    except (AttributeError, LookupError, TypeError, ValueError):
        raise GrafanaError(_no_grafana(url)) from None
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) not in KNOWN_VERSIONS:
        raise GrafanaError(
            f"Grafana at {url} has version {version}; known are {KNOWN_VERSIONS[0]} to {KNOWN_VERSIONS[-1]}. "
            "Nothing was changed; the files in monitoring/dashboards can be imported by hand"
        )


def _put_folder(api: Any) -> str:
    if _found(api, f"/folders/{FOLDER['uid']}") is not None:
        return "there"
    api.POST("/folders", json=FOLDER)
    return "created"


def _put_source(api: Any, prometheus: str | None) -> str:
    path = f"/datasources/uid/{SOURCE['uid']}"
    found = _found(api, path)
    if prometheus is None:
        if found is None:
            raise GrafanaError(
                "there is no data source yet: say by --prometheus where Grafana finds Prometheus"
            )
        return f"there, {found['url']}"
    wanted = (found or {}) | SOURCE | {"url": prometheus}
    if found == wanted:
        return f"there, {prometheus}"
    if found is None:
        api.POST("/datasources", json=wanted)
        return f"created, {prometheus}"
    api.PUT(path, json=wanted)
    return f"renewed, {prometheus}"


def _put_dashboard(api: Any, dashboard: dict[str, Any]) -> str:
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "datasource":
            variable["current"] = {"text": SOURCE["name"], "value": SOURCE["uid"]}
    found = _found(api, f"/dashboards/uid/{dashboard['uid']}")
    if found is not None and found["meta"].get("folderUid") == FOLDER["uid"]:
        given_by_grafana = {name: found["dashboard"].get(name) for name in ("id", "version")}
        if found["dashboard"] == dashboard | given_by_grafana:
            return "there"
    api.POST("/dashboards/db", json={"dashboard": dashboard, "folderUid": FOLDER["uid"], "overwrite": True})
    return "created" if found is None else "renewed"


def _found(api: Any, path: str) -> dict[str, Any] | None:
    """Get what Grafana has at a path; None if it has nothing."""
    try:
        found: dict[str, Any] = api.GET(path)
    except _refusal() as error:
        if error.status_code == 404:
            return None
        raise
    return found


def _refusal() -> Any:
    """The exception that grafana-api raises when Grafana answers with an error."""
    from grafana_api.grafana_api import GrafanaException

    return GrafanaException


def _no_grafana(url: str) -> str:
    return f"{url} answers, but not as Grafana does: is it Grafana's address?"


def _explain(url: str, error: BaseException) -> str:
    """Explain why a request got no answer."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"{url} redirects to {response.headers['location'].partition('?')[0]}: give the final address"
    if "timed out" in str(error):
        return f"Grafana at {url} does not answer within {TIMEOUT_SECONDS:g} s: can it be reached from here?"
    while error.__context__ is not None:  # the innermost error has the reason, the outer ones class names
        error = error.__context__
    reason = getattr(error, "strerror", None) or error
    return f"Grafana at {url} cannot be reached ({reason}): is it up, and is that its address?"


def _explain_refusal(url: str, error: Any) -> str:
    response = error.response
    said = response.get("message") if isinstance(response, dict) else None
    match error.status_code:
        case 401:
            return (
                f"{url} does not accept GRAFANA_TOKEN: make one in Administration, Service accounts, "
                "for the role Admin"
            )
        case 403:
            return (
                f"the service account of GRAFANA_TOKEN lacks a permission ({said}): give it the role Admin, "
                "which data sources need"
            )
        case 404 if said is None:
            return _no_grafana(url)
        case 409 | 412:
            return f"Grafana at {url} has another thing of that name ({said}): rename or remove it there"
    return f"Grafana at {url} fails with {error.status_code}: {said or str(error.message)[:200]}"
