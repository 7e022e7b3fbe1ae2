"""What a served classifier answers: that of `predict`, whatever arrives beside it, within limits, and nothing else."""

import asyncio
import inspect
import json
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import byte_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st

from gptclf import (
    GPT2,
    MultiLabel,
    Preparation,
    Regression,
    SingleLabel,
    add_classifier_head,
    explain,
    predict,
    predict_proba,
    save_model,
)
from gptclf.cli.options import Serve
from gptclf.serving import create_app, serve
from gptclf.serving.batching import Batcher, QueueFull

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")

KEYS = ["input", "model", "target"]

ODD_TEXTS = [
    "you won a prize",
    "",
    " ",
    "<script>alert(1)</script>",
    "a\0b",
    "\ud800 alone",
    "🎉 naïve 漢字 \u202e mirrored",
    "=HYPERLINK(1)",
    "<|endoftext|>",
    "line\nbreak\r\n",
    "far too long " * 100,
]


def classifier(task: Any = None) -> GPT2:
    clf = add_classifier_head(byte_gpt2(), task=task or SingleLabel(["ham", "spam", "other"]), seed=1)
    clf.head.forget_fresh()
    clf.preparation = Preparation()
    return clf


@pytest.fixture(scope="module")
def clf() -> GPT2:
    return classifier()


@pytest.fixture(scope="module")
def app(clf: GPT2) -> Any:
    return create_app(clf)


def asked(app: Any, use: Callable[[Any], Awaitable[Any]], *, host: str = "localhost") -> Any:
    """What `use` returns, called with a client of an application."""

    async def ask() -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await use(client)

    return asyncio.run(ask())


def post(app: Any, where: str = "/classify", **options: Any) -> Any:
    return asked(app, lambda client: client.post(where, **options))


def get(app: Any, where: str, **options: Any) -> Any:
    return asked(app, lambda client: client.get(where), **options)


def escaped(body: Any) -> dict[str, Any]:
    """A body in JSON with lone surrogates, which httpx's own JSON has none of."""
    return {"content": json.dumps(body), "headers": {"content-type": "application/json"}}


def probabilities(rows: list[dict[str, Any]]) -> Any:
    return np.array([row["probs"] for row in rows], dtype=np.float32)


def test_answers_are_those_of_predict_in_the_shape_of_vllm(clf: GPT2) -> None:
    answer = post(
        create_app(clf, name="mails"), **escaped({"model": "mails", "input": ODD_TEXTS, "user": "me", "priority": 3})
    )
    assert answer.status_code == 200
    found = answer.json()
    assert list(found) == ["id", "object", "created", "model", "data", "usage"]
    assert found["id"].startswith("classify-")
    assert (found["object"], found["model"]) == ("list", "mails")
    assert [row["index"] for row in found["data"]] == list(range(len(ODD_TEXTS)))
    assert [row["label"] for row in found["data"]] == predict(clf, ODD_TEXTS)
    np.testing.assert_array_equal(probabilities(found["data"]), predict_proba(clf, ODD_TEXTS))
    assert {row["num_classes"] for row in found["data"]} == {3}
    assert [row["truncated"] for row in found["data"]] == [len(text) > 512 for text in ODD_TEXTS]
    # One token per byte; empty text is one end of text, and the context is 512 tokens.
    tokens = sum(min(512, max(1, len(text.encode(errors="replace")))) for text in ODD_TEXTS)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    assert abs(found["usage"].pop("prompt_tokens") - usage.pop("prompt_tokens")) <= 2  # the lone surrogate's bytes
    assert found["usage"].keys() == usage.keys()


def test_a_text_alone_is_answered_like_a_list_of_one(clf: GPT2) -> None:
    app = create_app(clf)
    alone, listed = (post(app, json={"input": given}).json()["data"] for given in ("win cash", ["win cash"]))
    assert alone == listed
    assert post(app, json={"input": []}).json()["data"] == []


def test_answers_of_other_tasks_have_a_place_of_their_own() -> None:
    texts = ["win cash", "see you"]
    labels = classifier(MultiLabel(["sport", "news", "art"], thresholds=0.4))
    rows = post(create_app(labels), json={"input": texts}).json()["data"]
    assert [row["labels"] for row in rows] == predict(labels, texts)
    assert [row["label"] for row in rows] == [None, None]
    np.testing.assert_array_equal(probabilities(rows), predict_proba(labels, texts))
    numbers = classifier(Regression(2))
    rows = post(create_app(numbers), json={"input": texts}).json()["data"]
    assert [row["values"] for row in rows] == predict(numbers, texts)
    assert [(row["label"], row["probs"], row["num_classes"]) for row in rows] == [(None, [], 0)] * 2
    kinds = classifier(SingleLabel([1, "1"]))
    (row,) = post(create_app(kinds), json={"input": "x"}).json()["data"]
    assert row["label"] == repr(predict(kinds, ["x"])[0])


def test_a_language_model_and_a_wrong_argument_are_refused_before_anything_listens(tmp_path: Path) -> None:
    clf = classifier()
    with pytest.raises(TypeError, match="this is a language model"):
        create_app(byte_gpt2())
    with pytest.raises(TypeError, match="model is 3; it must be a path"):
        create_app(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="allowed_hosts is 'localhost'"):
        create_app(clf, allowed_hosts="localhost")
    with pytest.raises(ValueError, match="max_waiting is 5; it must be at least max_texts, which is 1000"):
        create_app(clf, max_waiting=5)
    with pytest.raises(ValueError, match="precision is 'auto'"):
        create_app(clf, precision="auto")
    with pytest.raises(ValueError, match="port is 70000"):
        serve(clf, port=70000)
    save_model(clf, tmp_path / "mails")
    (described,) = get(create_app(tmp_path / "mails"), "/v1/models").json()["data"]
    assert (described["id"], described["outputs"]) == ("mails", ["ham", "spam", "other"])


@pytest.mark.parametrize("missing", ["starlette.applications", "uvicorn"])
def test_without_a_server_library_it_says_what_to_install(
    missing: str, clf: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "gptclf.serving.app", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'gptclf\[serve\]'"):
        serve(clf, port=0)


def test_a_port_in_use_is_found_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port}: .*in use; give another port, or 0 for any that is free"):
            serve("nowhere/at/all", port=port)


def test_health_is_empty_and_unknown_ways_are_errors_in_json(clf: GPT2) -> None:
    app = create_app(clf)
    health = get(app, "/health")
    assert (health.status_code, health.content) == (200, b"")
    for answer, status in ((get(app, "/nothing"), 404), (get(app, "/classify"), 405)):
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == status


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "form": ({"data": {"input": "x"}}, 415, "application/x-www-form-urlencoded"),
    "plain text": ({"content": '{"input": "x"}', "headers": {"content-type": "text/plain"}}, 415, "text/plain"),
    "no type": ({"content": '{"input": "x"}'}, 415, "must be application/json"),
    "no JSON": ({"content": "input=x", "headers": {"content-type": "application/json"}}, 400, "not JSON"),
    "no UTF-8": ({"content": b'{"input": "\xff"}', "headers": {"content-type": "application/json"}}, 400, "at byte 11"),
    "deep": ({"content": "[" * 100_000, "headers": {"content-type": "application/json"}}, 400, "nested too deeply"),
    "long number": ({"content": "9" * 9000, "headers": {"content-type": "application/json"}}, 400, "too long"),
    "nothing": ({"content": "", "headers": {"content-type": "application/json"}}, 400, "not JSON"),
    "list": ({"json": ["x"]}, 400, "the body is a list"),
    "no input": ({"json": {"text": "x"}}, 400, "no \"input\", a text or a list of texts; it has ['text']"),
    "null": ({"json": {"input": None}}, 400, "input is null"),
    "vLLM's": ({"json": {"input": "x", "truncate_prompt_tokens": 1}}, 400, "truncate_prompt_tokens is not supported"),
    "number": ({"json": {"input": 3}}, 400, "input is a number"),
    "tokens": ({"json": {"input": ["x", 15496]}}, 400, "input[1] is a number"),
    "other model": ({"json": {"model": "gpt-4", "input": "x"}}, 404, "the model 'gpt-4' does not exist"),
    "many texts": ({"json": {"input": ["x"] * 21}}, 413, "21 texts; a request may have 20"),
    "long text": ({"json": {"input": ["x", "y" * 1001]}}, 413, "input[1] has 1,001 characters; a text may have 1,000"),
    "long body": ({"json": {"input": ["y" * 10_001]}}, 413, "more than 10,000 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_refused_with_the_reason(case: str, clf: GPT2) -> None:
    request, status, reason = REFUSED[case]
    app = create_app(clf, max_texts=20, max_characters=1000, max_bytes=10_000 if case == "long body" else 200_000)
    answer = post(app, **request)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert reason in error["message"]
    assert (error["code"], error["param"]) == (status, None)
    assert error["type"] == ("NotFoundError" if status == 404 else "BadRequestError")


def some_json(inner: Any) -> Any:
    return st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4)


@settings(max_examples=50, deadline=None)
@given(some_json(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), some_json)))
def test_any_body_is_answered_or_refused_and_never_an_error_of_the_server(app: Any, body: Any) -> None:
    for where in ("/classify", "/explain"):
        for given_ in (body, {"input": body}):
            answer = post(app, where, **escaped(given_))
            assert answer.status_code in (200, 400, 404, 413)
            answer.json()


def test_a_body_without_a_length_is_read_no_further_than_the_limit(clf: GPT2) -> None:
    sent = []

    async def endless() -> Any:
        for _ in range(1000):
            sent.append(1)
            yield b" " * 1000

    answer = post(create_app(clf, max_bytes=5000), content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


def test_a_client_that_sends_too_slowly_is_turned_away(clf: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow() -> Any:
        yield b'{"input": '
        await asyncio.sleep(10)

    monkeypatch.setattr("gptclf.serving.reading._PATIENCE", 0.01)
    answer = post(create_app(clf), content=slow(), headers={"content-type": "application/json"})
    assert answer.status_code == 408


@pytest.mark.parametrize("task", [SingleLabel([1, "1"]), MultiLabel(["sport", "news"]), Regression()], ids=repr)
def test_an_explanation_is_that_of_explain(task: Any) -> None:
    clf = classifier(task)
    app = create_app(clf, name="mails")
    text = "win <b>cash</b> 🎉"
    last = task.output_names[-1]
    for target, ours in ((None, None), (last, task.target_of(task.n_outputs - 1))):
        found = post(app, "/explain", json={"model": "mails", "input": text, "target": target}).json()
        (expected,) = explain(clf, [text], ours)
        assert found.pop("target") == task.output_names[task.output_of(expected.target)]
        assert found == {key: value for key, value in expected.to_dict().items() if key != "target"}
    assert post(app, "/explain", **escaped({"input": "\ud800"})).json()["text"] == "\ufffd"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"input": "x", "target": "eggs"}, 400, "target is 'eggs'"),
        ({"input": "x", "target": ["ham"]}, 400, "target is"),
        ({"input": "x", "model": "gpt-4"}, 404, "does not exist"),
        ({"input": ["x", "y"]}, 413, "one text of at most 2,000 characters"),
        ({"input": "x" * 2001}, 413, "one text of at most 2,000 characters"),
        ({"input": []}, 413, "one text of at most 2,000 characters"),
    ],
)
def test_what_cannot_be_explained_is_refused_with_the_reason(
    body: dict[str, Any], status: int, reason: str, clf: GPT2
) -> None:
    answer = post(create_app(clf), "/explain", json=body)
    assert answer.status_code == status
    assert reason in answer.json()["error"]["message"]


def test_numbers_are_explained_one_at_a_time() -> None:
    answer = post(create_app(classifier(Regression(2))), "/explain", json={"input": "x"})
    assert answer.status_code == 400
    assert "target is None" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost:8000", True),
        ("127.0.0.1", True),
        ("[::1]:8000", True),
        ("LOCALHOST", True),
        ("attacker.example", False),
        ("localhost.attacker.example", False),
        ("127.0.0.1.attacker.example:8000", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_only_known_hosts_are_answered(host: str, known: bool, clf: GPT2) -> None:
    def answers(app: Any) -> Any:
        return asked(app, lambda client: client.get("/v1/models", headers={"host": host}))

    found = answers(create_app(clf))
    assert found.status_code == (200 if known else 400)
    assert known or "allowed_hosts" in found.json()["error"]["message"]
    assert answers(create_app(clf, allowed_hosts=None)).status_code == 200
    assert (
        get(create_app(clf, allowed_hosts=["Spam.example.com"]), "/health", host="spam.example.com").status_code == 200
    )


def test_every_response_forbids_a_browser_what_the_page_does_not_need(clf: GPT2) -> None:
    app = create_app(clf)
    others = asked(app, lambda client: client.options("/classify", headers={"origin": "http://attacker.example"}))
    for answer in (get(app, "/"), get(app, "/health"), get(app, "/nothing"), others, get(app, "/", host="x.example")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_answer_that_cannot_be_computed_is_an_error_without_details(clf: GPT2) -> None:
    broken = classifier()
    app = create_app(broken)
    next(broken.head.parameters()).data[:] = float("nan")
    answer = post(app, json={"input": "x"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "InternalServerError"
    assert "NaN" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def gathered(*calls: Any) -> list[Any]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*(call() for call in calls), return_exceptions=True)

    return asyncio.run(gather())


def test_requests_at_once_are_computed_together_and_each_gets_its_own() -> None:
    sizes = []

    def double(texts: list[str]) -> list[str]:
        sizes.append(len(texts))
        return [text * 2 for text in texts]

    batcher = Batcher(double, 1000, most_texts=8)
    found = gathered(*(lambda i=i: batcher.answer([f"{i}a", f"{i}b"]) for i in range(20)))
    assert found == [[f"{i}a{i}a", f"{i}b{i}b"] for i in range(20)]
    assert max(sizes) == 8
    assert len(sizes) == 5


def test_a_short_request_does_not_wait_for_all_of_a_long_one() -> None:
    done: list[str] = []

    def compute(texts: list[str]) -> list[str]:
        done.extend(texts)
        return texts

    batcher = Batcher(compute, 1000, most_texts=4)
    gathered(lambda: batcher.answer([f"long {i}" for i in range(100)]), lambda: batcher.answer(["short"]))
    assert done.index("short") < 4
    assert len(done) == 101


def test_a_text_that_cannot_be_computed_fails_its_own_request_alone() -> None:
    def compute(texts: list[str]) -> list[str]:
        if "bad" in texts:
            raise FloatingPointError("overflow")
        return texts

    batcher = Batcher(compute, 100)
    good, bad, other = gathered(
        lambda: batcher.answer(["a", "b"]), lambda: batcher.answer(["c", "bad", "d"]), lambda: batcher.answer(["e"])
    )
    assert (good, other) == (["a", "b"], ["e"])
    assert isinstance(bad, FloatingPointError)
    assert gathered(lambda: batcher.answer(["x"] * 100)) == [["x"] * 100]  # nothing of it is waiting still


def test_a_full_queue_turns_away_and_what_was_given_up_is_not_computed() -> None:
    started, go, seen = threading.Event(), threading.Event(), []

    def compute(texts: list[str]) -> list[str]:
        started.set()
        go.wait(10)
        seen.extend(texts)
        return texts

    async def use() -> None:
        batcher = Batcher(compute, 4, most_texts=1)
        first = asyncio.create_task(batcher.answer(["first"]))
        await asyncio.to_thread(started.wait, 10)
        given_up = asyncio.create_task(batcher.answer(["p", "q"]))
        last = asyncio.create_task(batcher.answer(["r", "s"]))
        await asyncio.sleep(0)
        batcher._pace = 2.6
        with pytest.raises(QueueFull, match="4 texts are waiting already, and 4 may") as full:
            await batcher.answer(["t"])
        assert full.value.seconds == 11
        given_up.cancel()
        await asyncio.sleep(0)
        go.set()
        assert await first == ["first"]
        assert await last == ["r", "s"]
        assert seen == ["first", "r", "s"]
        assert await batcher.answer(["u"] * 4) == ["u"] * 4
        with pytest.raises(QueueFull, match="0 texts are waiting already, and 4 may"):  # counted once, not twice
            await batcher.answer(["u"] * 5)
        assert 0 < batcher._pace < 1  # as it was measured

    asyncio.run(use())


def test_texts_of_a_client_that_went_away_are_not_computed(clf: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go, seen = threading.Event(), threading.Event(), []

    def classify(model: GPT2, texts: list[str], precision: str) -> list[dict[str, Any]]:
        started.set()
        go.wait(10)
        seen.extend(texts)
        return [{"label": "ham", "tokens": 1}] * len(texts)

    monkeypatch.setattr("gptclf.serving.app.classify", classify)
    app = create_app(clf)

    async def call(texts: list[str], *, leave: bool = False) -> list[Any]:
        body, sent = [json.dumps({"input": texts}).encode()], []

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            if not leave:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/classify", "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        return sent

    async def use() -> None:
        first = asyncio.create_task(call(["first"]))
        await asyncio.to_thread(started.wait, 10)
        await call(["gone"] * 5, leave=True)
        go.set()
        assert (await first)[0]["status"] == 200
        assert (await call(["last"]))[0]["status"] == 200

    asyncio.run(use())
    assert seen == ["first", "last"]


def test_health_is_told_by_any_name_and_no_path_is_redirected(clf: GPT2) -> None:
    app = create_app(clf)
    assert get(app, "/health", host="10.0.0.5").status_code == 200
    assert get(app, "/v1/models", host="10.0.0.5").status_code == 400
    assert post(app, "/classify/", json={"input": "x"}).status_code == 404


def test_the_flags_of_serve_have_the_defaults_of_create_app() -> None:
    flags, ours = inspect.signature(Serve).parameters, inspect.signature(create_app).parameters
    shared = set(flags) & set(ours) - {"model", "allowed_hosts"}
    assert shared == {"name", "precision", "max_texts", "max_characters", "max_bytes", "max_waiting"}
    assert [flags[name].default for name in shared] == [ours[name].default for name in shared]
    others = set(flags) - shared - {"model", "allowed_hosts"}
    assert [flags[name].default for name in others] == [inspect.signature(serve).parameters[n].default for n in others]


def test_a_full_queue_is_status_503_and_a_line_of_the_log(
    clf: GPT2, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(self: Batcher, texts: list[str]) -> Iterator[Any]:
        raise QueueFull("4 texts are waiting", 7)

    app = create_app(clf)
    monkeypatch.setattr(Batcher, "answer", full)
    answer = post(app, json={"input": "x"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert caplog.messages == ["turned a request to /classify away: 4 texts are waiting"]
    assert answer.json()["error"] == {
        "message": "4 texts are waiting",
        "type": "ServiceUnavailableError",
        "param": None,
        "code": 503,
    }
