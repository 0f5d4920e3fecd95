"""The links of the OpenAPI document: which request may follow an answer, for readers and for fuzzers (schemathesis)."""

from __future__ import annotations

from typing import Any

Link = tuple[str, str, dict[str, str]]  # method, path and parameters of the next request

OF_RUN: dict[tuple[str, str, str], list[Link]] = {  # for the short paths, and below /runs/{run}
    ("get", "/weights", "200"): [
        ("get", "/batches/{step}", {"step": "$response.body#/step"}),
        ("get", "/phases", {"from": "$response.body#/start"}),
    ],
    ("get", "/phases", "200"): [("get", "/phases", {"from": "$response.body#/next_step"})],
    ("get", "/status", "200"): [
        ("get", "/weights", {"step": "$response.body#/next_step"}),
        ("get", "/batches", {"from": "$response.body#/next_step"}),
        ("get", "/progress", {"step": "$response.body#/frontier"}),
    ],
    ("get", "/batches/{step}", "200"): [
        ("get", "/weights", {"step": "$request.path.step"}),
        ("get", "/progress", {"step": "$request.path.step"}),
    ],
    ("post", "/feedback", "200"): [("get", "/progress", {"step": "$request.body#/step"})],
    ("post", "/pivots", "201"): [
        ("get", "/weights", {"step": "$response.body#/at_step"}),
        ("get", "/pivots", {}),
    ],
}
MADE: list[Link] = [
    (method, "/runs/{run}" + path, {"run": "$response.body#/name"})
    for method, path in (
        ("get", ""),
        ("get", "/weights"),
        ("get", "/batches"),
        ("get", "/status"),
        ("get", "/walk"),
        ("post", "/feedback"),
        ("post", "/pivots"),
        ("post", "/fork"),
        ("post", "/pause"),
        ("post", "/resume"),
        ("post", "/archive"),
    )
]
OF_RUNS: dict[tuple[str, str, str], list[Link]] = {
    ("get", "/runs", "200"): [
        ("get", "/runs/{run}", {"run": "$response.body#/0/name"}),
        ("get", "/runs/{run}/status", {"run": "$response.body#/0/name"}),
    ],
    ("get", "/runs/{run}", "200"): MADE,
    ("post", "/runs", "201"): MADE,
    ("post", "/runs/{run}/fork", "201"): MADE,
    **{("post", f"/runs/{{run}}/{action}", "200"): MADE for action in ("pause", "resume", "archive")},
}


def add_links(document: dict[str, Any]) -> None:
    """Add the links between routes that an OpenAPI document has."""
    links = dict(OF_RUNS)
    for prefix, named in (("", {}), ("/runs/{run}", {"run": "$request.path.run"})):
        for (method, path, status), found in OF_RUN.items():
            links[method, prefix + path, status] = [(m, prefix + p, parameters | named) for m, p, parameters in found]
    paths = document["paths"]
    for (method, path, status), found in links.items():
        operation = paths.get(path, {}).get(method)
        for m, p, parameters in found if operation is not None else ():
            target = paths.get(p, {}).get(m)
            if target is not None:
                link = {"operationId": target["operationId"], "parameters": parameters}
                operation["responses"][status].setdefault("links", {})[target["operationId"]] = link
