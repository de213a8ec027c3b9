"""The OpenAPI document against the server, by schemathesis: many requests, right and wrong."""

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from serve.apps import encoded, listening

PICTURES = st.sampled_from([encoded(np.full((64, 64, 3), 99, np.uint8)), b"", b"no picture"])
schemathesis.openapi.media_type("image/*", PICTURES)


@pytest.fixture(scope="module")
def document():
    with listening() as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


OPERATIONS = [
    ("POST", "/v1/segment"),
    ("GET", "/v1/models"),
    ("GET", "/v1/example"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
]


RIGHT = [(GenerationMode.POSITIVE, *operation) for operation in OPERATIONS]
WRONG = [(GenerationMode.NEGATIVE, *operation) for operation in OPERATIONS[:1] + OPERATIONS[2:3]]


@pytest.mark.parametrize(("mode", "method", "path"), RIGHT + WRONG)  # others have no parameters
def test_answers_are_as_documented(document, mode, method, path):
    operation = document[path][method]
    seen = set()
    # That a picture, or a size, is refused is right for most of what is generated.
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]

    @settings(
        max_examples=40 if method == "POST" else 15,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        answer = case.call_and_validate(excluded_checks=excluded)
        kind = answer.request.headers.get("content-type", "").partition("/")[0]
        seen.add((kind, answer.status_code))

    ask()
    if (mode, method) == (GenerationMode.POSITIVE, "POST"):
        assert {("image", 200), ("image", 415), ("multipart", 200)} <= seen
    elif mode is GenerationMode.POSITIVE:
        assert {status for _, status in seen} == {200}


def test_every_operation_is_asked(document):
    documented = {
        (method.upper(), path)
        for path, methods in document.raw_schema["paths"].items()
        for method in methods
    }
    assert documented == set(OPERATIONS)


def test_the_document_tells_the_choices(document):
    raw = document.raw_schema
    segment = raw["paths"]["/v1/segment"]["post"]
    parameters = {entry["name"]: entry["schema"] for entry in segment["parameters"]}
    assert parameters["backend"]["enum"] == ["auto", "reference"]
    assert parameters["model"]["const"] == "fassd_net_l2"
    assert set(segment["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    statuses = {"200", "400", "403", "408", "413", "415", "422", "429", "500", "503", "504"}
    assert set(segment["responses"]) == statuses
    assert set(segment["responses"]["200"]["content"]) == {"image/png", "application/json"}
    assert "/" not in raw["paths"] and "/docs" not in raw["paths"]
