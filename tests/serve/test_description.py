"""Requests made from the server's own description: no crash, no hang, answers as described."""

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode, checks
from stub_server import served

OPERATIONS = (
    ("get", "/v1/models"), ("get", "/v1/models/{model}"), ("post", "/v1/completions"),
    ("post", "/v1/chat/completions"), ("get", "/health"), ("get", "/metrics"),
)  # fmt: skip
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def server():
    with served() as running:
        yield running
        running.wait_until(lambda: running.worker.n_open == 0)


@pytest.fixture(scope="module")
def described(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


# Only a body can be wrong.
CASES = [(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
CASES += [(m, path, GenerationMode.NEGATIVE) for m, path in OPERATIONS if m == "post"]


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_requests_made_from_the_description(described, method, path, mode):
    requests = described[path][method].as_strategy(generation_mode=mode)

    @hypothesis.given(case=requests)
    @hypothesis.settings(
        max_examples=15 if method == "post" else 5, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    def answer(case):
        if method == "post" and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "alphabet"  # else nearly all would end at the unknown model
        case.call_and_validate(checks=CHECKS, timeout=20)

    answer()


def test_every_endpoint_is_described(server):
    described = server.http.get("/openapi.json").json()
    assert {(m, path) for path, found in described["paths"].items() for m in found} == {*OPERATIONS}
    for path, operations in described["paths"].items():
        assert all("422" not in o["responses"] for o in operations.values()), path
