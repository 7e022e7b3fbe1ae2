"""What people see of an evaluation: HTML that is valid and safe, pictures of the right numbers, the surest errors."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptclf import (
    Evaluation,
    MultiLabel,
    Regression,
    SingleLabel,
    Task,
    TextDataset,
    add_classifier_head,
    compare,
    evaluate,
    freeze,
    load_gpt2,
    train,
)
from gptclf.plotting import short_labels
from gptclf.results.errors import ConfidentError
from gptclf.results.html import class_table, error_table, fragment

SCRIPT = "<script>alert('x')</script>"
ODD = [SCRIPT, "a\0b\x1f\x7f\ud800\ufffe", "x" * 100_000, '$5_x$ & <b>"it\'s"', "\u202eright to left", "😀 日本語", ""]


def an_evaluation(
    task: Task, n: int = 200, *, seed: int = 0, scale: float = 1.0, texts: Sequence[str] | None = None
) -> Evaluation:
    """Random outputs that say something about the targets."""
    rng = np.random.default_rng(seed)
    kind = task.answers(torch.zeros(1, task.n_outputs))[0]
    outputs = rng.normal(size=(n, task.n_outputs)) * scale
    labels: list[Any]
    if isinstance(kind, list):  # several classes
        labels = [[c for c in task.classes or [] if rng.random() < 0.4] for _ in range(n)]
        outputs += scale * (2 * task.targets(labels) - 1)
    elif isinstance(kind, float):
        labels = rng.normal(size=n).tolist()
        outputs[:, 0] += labels
    else:
        targets = rng.integers(0, task.n_outputs, n)
        outputs[np.arange(n), targets] += 1.5 * scale
        labels = [(task.classes or [])[i] for i in targets]
    given = [f"secret text {i}" for i in range(n)] if texts is None else [texts[i % len(texts)] for i in range(n)]
    return Evaluation.of(task, outputs, labels, given)


def checked(page: str) -> Any:
    """The parsed page, if it is valid HTML without anything that runs or is fetched."""
    html5lib = pytest.importorskip("html5lib")
    bs4 = pytest.importorskip("bs4")
    html5lib.HTMLParser(strict=True).parse(page)
    soup = bs4.BeautifulSoup(page, "html5lib")
    assert not soup.find_all(["script", "link", "iframe", "img", "object"])
    assert not [attribute for tag in soup.find_all(True) for attribute in tag.attrs if attribute.startswith("on")]
    assert not re.search(r"https?:|url\(|@import|src=|href=", page)
    page.encode("utf-8")
    return soup


def whole(fragment: str) -> str:
    return f"<!DOCTYPE html><html><head><title>x</title></head><body>{fragment}</body></html>"


def cells(soup: Any, label: str) -> list[list[str]]:
    """The rows of the table in the section of that name."""
    section = soup.find("section", attrs={"aria-label": re.compile(label)})
    assert section is not None, f"there is no table {label!r}"
    return [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in section.find_all("tr")]


# HTML


def test_a_notebook_shows_the_numbers() -> None:
    result = an_evaluation(SingleLabel(["ham", "spam", "eggs"]))
    soup = checked(whole(result._repr_html_()))
    head, *measures = cells(soup, "Measures")
    assert head == ["measure", "value", "95 % interval"]
    intervals = result.intervals()
    assert {name: value for name, value, _ in measures} == {k: f"{v:.4f}" for k, v in result.metrics.items()}
    low, high = intervals["accuracy"]
    assert next(row[2] for row in measures if row[0] == "accuracy") == f"{low:.4f} \u2013 {high:.4f}"
    head, *classes = cells(soup, "Classes")
    assert [row[0] for row in classes] == result.classes
    for name, values in result.per_class.items():
        column = head.index({"support": "texts"}.get(name, name))
        assert [float(row[column].replace(",", "")) for row in classes] == pytest.approx(values, abs=5e-4)
    _, *confusion = cells(soup, "true class")
    assert [[int(n.replace(",", "")) for n in row[1:]] for row in confusion] == result.confusion.tolist()


def test_the_reliability_diagram_has_a_point_for_each_bin_with_texts() -> None:
    result = an_evaluation(SingleLabel(["ham", "spam", "eggs"]))
    picture, curve = checked(whole(result._repr_html_())).find("svg"), result.reliability()
    has = np.flatnonzero(curve.count)
    points = picture.find_all("circle")
    assert len(points) == len(has) > 5
    x = np.array([float(point["cx"]) for point in points])
    y = np.array([float(point["cy"]) for point in points])
    np.testing.assert_allclose((x - 30) / 180, curve.confidence[has], atol=1e-3)
    np.testing.assert_allclose(1 - (y - 8) / 180, curve.accuracy[has], atol=1e-3)
    assert points[0].find("title").get_text().endswith(f"{curve.count[has[0]]} texts")


def test_many_classes_are_a_table_of_the_worst_and_no_matrix() -> None:
    result = an_evaluation(SingleLabel(range(150)), 300)
    page = result._repr_html_()
    assert len(page) < 60_000
    soup = checked(whole(page))
    rows = cells(soup, "100 of 150 classes with the lowest F1")[1:]
    assert len(rows) == 100
    assert [int(row[0]) for row in rows] == np.argsort(result.per_class["f1"], kind="stable")[:100].tolist()
    assert soup.find("section", attrs={"aria-label": re.compile("true class")}) is None
    assert "lowest" not in an_evaluation(SingleLabel(range(30)))._repr_html_()


def test_a_comparison_is_shown_with_its_signs() -> None:
    a, b = (an_evaluation(SingleLabel(["ham", "spam"]), scale=scale) for scale in (1.0, 3.0))
    found = compare(a, b)
    soup = checked(whole(found._repr_html_()))
    rows = {name: (value, bounds) for name, value, bounds in cells(soup, "B minus A")[1:]}
    assert {name: value for name, (value, _) in rows.items()} == {k: f"{v:+.4f}" for k, v in found.differences.items()}
    low, high = found.intervals["log_loss"]
    assert rows["log_loss"][1] == f"{low:+.4f} \u2013 {high:+.4f}"
    assert found.table is not None
    assert [row[1:] for row in cells(soup, "McNemar")[1:]] == [[f"{n}" for n in row] for row in found.table]
    numbers = [an_evaluation(Regression(), seed=1) for _ in range(2)]
    assert "McNemar" not in compare(*numbers)._repr_html_()


def test_a_notebook_does_not_wait_for_the_intervals_of_a_large_set(monkeypatch: pytest.MonkeyPatch) -> None:
    result = an_evaluation(SingleLabel(range(3)))
    assert "from 1,000 resamples" in result._repr_html_()
    monkeypatch.setattr("gptclf.results.evaluation._MANY", 599)
    found = cells(checked(whole(result._repr_html_())), "from 100 resamples")
    low, high = result.intervals(n_resamples=100)["brier"]
    assert next(row[2] for row in found if row[0] == "brier") == f"{low:.4f} \u2013 {high:.4f}"


def test_a_notebook_shows_no_texts_and_a_page_shows_those_of_errors(tmp_path: Path) -> None:
    result = an_evaluation(SingleLabel(["ham", "spam"]))
    assert "secret" not in result._repr_html_()
    path = result.to_html(tmp_path / "new" / "report")
    assert path == tmp_path / "new" / "report.html"
    soup = checked(path.read_text(encoding="utf-8"))
    errors = result.most_confident_errors()
    assert [row[-1] for row in cells(soup, "surest")[1:]] == [error.text for error in errors]
    assert [row[0] for row in cells(soup, "surest")[1:]] == [str(error.row) for error in errors]
    assert soup.find("meta", attrs={"name": "viewport"}) is not None
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = an_evaluation(SingleLabel(["ham", "spam"]))
    path = result.to_html(tmp_path / "report.html")
    before = path.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            result.to_html(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("labels", [["ham", "spam"], ODD[:5]])
def test_odd_texts_and_labels_are_shown_as_text(labels: list[str], tmp_path: Path) -> None:
    task = SingleLabel(labels)
    result = an_evaluation(task, texts=ODD)
    for page in (whole(result._repr_html_()), result.to_html(tmp_path / "x.html").read_text(encoding="utf-8")):
        soup = checked(page)
        assert len(page) < 60_000
    shown = {row[-1] for row in cells(soup, "surest")[1:]} | {row[0] for row in cells(soup, "Classes")[1:]}
    assert SCRIPT in shown
    assert any("�" in text for text in shown)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(), max_size=9), st.text(st.characters())), min_size=1, max_size=4))
def test_whatever_the_strings_the_page_is_valid_and_shows_them(strings: list[tuple[str, str]]) -> None:
    errors = [ConfidentError(row, text, label, label, 0.5) for row, (label, text) in enumerate(strings)]
    soup = checked(whole(fragment(strings[0][1], [error_table(errors, texts=True)])))
    for (_, _, target, prediction, text), given_strings in zip(cells(soup, "surest")[1:], strings, strict=True):
        assert target == prediction
        for shown, expected in zip((target, text), given_strings, strict=True):
            expected = expected.replace("\r\n", "\n").replace("\r", "\n")  # as every parser reads them
            assert [b for a, b in zip(expected, shown, strict=True) if a != b and b != "�"] == []


def test_the_style_applies_to_results_alone() -> None:
    style = checked(whole(an_evaluation(SingleLabel(["a", "b"]))._repr_html_())).find("style").string
    selectors = re.findall(r"([^{}]+)\{", style.replace("@media (prefers-color-scheme: dark) {", ""))
    assert selectors
    assert all(part.strip().startswith(".gptclf") for some in selectors for part in some.split(","))


@pytest.mark.parametrize(
    "task", [MultiLabel(["sport", "politics"]), Regression(), Regression(2), SingleLabel(["only"])]
)
def test_other_tasks_show_what_they_have(task: Task, tmp_path: Path) -> None:
    result = an_evaluation(task) if task.n_outputs == 1 or task.classes else two_measurements(task)
    soup = checked(result.to_html(tmp_path / "x.html").read_text(encoding="utf-8"))
    checked(whole(result._repr_html_()))
    assert {row[0] for row in cells(soup, "Measures")[1:]} == set(result.metrics)


def two_measurements(task: Task) -> Evaluation:
    labels = np.random.default_rng(0).normal(size=(50, 2)).tolist()
    return Evaluation.of(task, np.asarray(labels) + 0.5, labels)


# The surest errors


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 60), st.sampled_from([None, 0.2]))
def test_the_surest_errors_are_those_of_brute_force(seed: int, classes: int, n: int, threshold: float | None) -> None:
    task = SingleLabel(range(classes), thresholds=threshold and {1: threshold})
    result = an_evaluation(task, 40, seed=seed, scale=3)
    rows = []
    probabilities = task.probabilities(torch.from_numpy(result.outputs).double())
    for row, (p, target, answer) in enumerate(zip(probabilities, result.targets, result.predictions, strict=True)):
        if target != answer:
            rows.append((-p[answer], p[target], row, result.texts[row], target, answer))
    found = result.most_confident_errors(n)
    assert [(e.row, e.text, e.target, e.prediction) for e in found] == [row[2:] for row in sorted(rows)][:n]
    assert [e.probability for e in found] == [float(-row[0]) for row in sorted(rows)][:n]


def test_errors_of_several_classes_are_ordered_by_their_least_certain_decision() -> None:
    result = an_evaluation(MultiLabel(["a", "b", "c"]))
    found = result.most_confident_errors(500)
    sure = result.task.confidences(torch.from_numpy(result.outputs))
    wrong = [i for i in range(200) if set(result.targets[i]) != set(result.predictions[i])]
    assert [e.row for e in found] == sorted(wrong, key=lambda i: (-sure[i], i))
    assert len(found) > 10


def test_errors_are_a_table() -> None:
    pytest.importorskip("pandas")
    result = an_evaluation(SingleLabel(["ham", "spam"]))
    errors = result.most_confident_errors(4)
    frame = errors.to_frame()
    assert list(frame.columns) == ["row", "text", "target", "prediction", "probability"]
    assert frame["row"].tolist() == [error.row for error in errors]
    assert len(result.most_confident_errors(1000)) == round((1 - result.accuracy) * 200)
    perfect = an_evaluation(SingleLabel(["ham", "spam"]), scale=0.0001, n=0 + 5)
    assert list(type(errors)([]).to_frame().columns) == list(frame.columns)
    assert len(perfect.most_confident_errors(3)) <= 3


def test_wrong_labels_are_found_first() -> None:
    rng = np.random.default_rng(0)
    words = {"ham": ["dinner", "home", "tonight", "mum"], "spam": ["prize", "cash", "winner", "free"]}
    labels = ["ham", "spam"] * 80
    texts = [" ".join(rng.choice(words[label], 6)) for label in labels]
    clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], pooling="mean", seed=0)
    freeze(clf, trainable="head")
    data = TextDataset(texts[:80], labels[:80], tokenizer=clf.tokenizer)
    train(clf, data, epochs=5, lr=3e-2, seed=1, progress=False)
    planted = [3, 20, 41, 66]
    wrong = [{"ham": "spam", "spam": "ham"}[y] if i in planted else y for i, y in enumerate(labels[80:])]
    test_set = TextDataset(texts[80:], wrong, tokenizer=clf.tokenizer, classes=clf.classes)
    assert {error.row for error in evaluate(clf, test_set).most_confident_errors(4)} == set(planted)


# Pictures


def drawn(monkeypatch: pytest.MonkeyPatch, method: Any, **options: Any) -> Any:
    """The figure that a method would save; a warning is an error."""
    pytest.importorskip("matplotlib")
    figures: list[Any] = []
    monkeypatch.setattr("gptclf.results.pictures.save_figure", lambda figure, path: figures.append(figure))
    method("unused.png", **options)
    return figures[0]


@pytest.mark.parametrize("strategy", ["width", "mass"])
def test_a_reliability_diagram_has_the_numbers(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = pytest.importorskip("scipy.stats")
    before, after = (an_evaluation(SingleLabel(range(4)), 300, scale=scale) for scale in (4.0, 1.0))
    figure = drawn(monkeypatch, after.plot_reliability, before=before, n_bins=8, strategy=strategy)
    panel, below = figure.axes
    assert (panel.get_xlim(), panel.get_ylim()) == ((0, 1), (0, 1))
    assert len(panel.containers) == 2
    for bars, result, name in zip(panel.containers, (before, after), ("before", "after"), strict=True):
        curve = result.reliability(8, strategy)
        has = curve.count > 0
        x, y = bars.lines[0].get_data()
        np.testing.assert_array_equal(x, curve.confidence[has])
        np.testing.assert_array_equal(y, curve.accuracy[has])
        for segment, right, n in zip(bars.lines[2][0].get_segments(), y, curve.count[has], strict=True):
            low, high = stats.binomtest(round(right * n), n).proportion_ci(method="wilson")
            assert segment[:, 1].tolist() == pytest.approx([low, high], abs=1e-4)
        gap = result.metrics["ece" if strategy == "width" else "ece_equal_mass"]
        assert bars.get_label().startswith(f"{name}, calibration error ")
        if strategy == "width":
            assert abs(float(bars.get_label().split()[-1]) - gap) < 0.05  # of 15 bins
    for steps, result in zip(below.patches, (before, after), strict=True):
        values, edges, _ = steps.get_data()
        assert values.sum() == pytest.approx(1)
        np.testing.assert_allclose(edges, np.linspace(0, 1, 9))
        np.testing.assert_allclose(values, result.reliability(8).count / 300)
    alone = drawn(monkeypatch, after.plot_reliability)
    assert len(alone.axes[0].containers) == 1


def test_a_picture_of_the_reject_option_has_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    result = an_evaluation(SingleLabel(range(4)))
    curve = result.risk_coverage()
    panel, below = drawn(monkeypatch, result.plot_risk_coverage).axes
    for axes, values in ((panel, curve.risk), (below, curve.threshold)):
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), curve.coverage)
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), values)


def test_a_picture_of_classes_has_their_intervals_the_lowest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    result = an_evaluation(SingleLabel(["ham", "spam", "$5_x$ é"]))
    panel = drawn(monkeypatch, result.plot_per_class).axes[0]
    f1 = np.sort(result.per_class["f1"])
    np.testing.assert_array_equal(panel.containers[0].lines[0].get_xdata(), f1)
    assert result.classes is not None
    names = [label.get_text() for label in panel.get_yticklabels()]
    order = np.argsort(result.per_class["f1"])
    assert names == [f"{result.classes[i]}  ({result.per_class['support'][i]})" for i in order]
    assert not any(label.get_parse_math() for label in panel.get_yticklabels())
    segments = panel.containers[0].lines[2][0].get_segments()
    assert all(low[0] <= middle <= high[0] for (low, high), middle in zip(segments, f1, strict=True))
    many = drawn(monkeypatch, an_evaluation(SingleLabel(range(100))).plot_per_class).axes[0]
    assert len(many.get_yticklabels()) == 80
    assert many.get_title() == "the lowest 80 of 100 classes"


@pytest.mark.parametrize("classes", [["a", "b"], [f"$label_{i}$ {'long ' * 10}" for i in range(77)]])
def test_pictures_are_written(classes: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = an_evaluation(SingleLabel(classes), 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("reliability", "risk_coverage", "per_class"):
            path = getattr(result, f"plot_{name}")(tmp_path / "new" / name)
            assert path == tmp_path / "new" / f"{name}.png"
            assert path.read_bytes()[:4] == b"\x89PNG"
    assert len(list((tmp_path / "new").iterdir())) == 3


@pytest.mark.parametrize("name", ["plot_reliability", "plot_risk_coverage", "plot_per_class", "plot_confusion"])
def test_a_measurement_has_none_of_these_pictures_and_says_so(name: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, AttributeError), match=r"Regression|has no '"):
        getattr(an_evaluation(Regression()), name)(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_arguments_are_checked(tmp_path: Path) -> None:
    result = an_evaluation(SingleLabel(["a", "b"]))
    with pytest.raises(TypeError, match=r"before is 'x' .str.; it must be an Evaluation"):
        result.plot_reliability(tmp_path / "x.png", before="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n is 0; it must be an integer of at least 1"):
        result.most_confident_errors(0)
    with pytest.raises(TypeError, match="Regression gives no probabilities"):
        an_evaluation(Regression()).most_confident_errors()
    with pytest.raises(TypeError, match="path is 5"):
        result.to_html(5)  # type: ignore[arg-type]


def test_long_labels_that_differ_at_their_ends_stay_distinct() -> None:
    labels = ["verify_my_identity_with_a_document", "verify_my_identity_with_a_picture", "short"]
    assert short_labels(labels) == ["verify_my_i...a_document", "verify_my_i..._a_picture", "short"]
    inside = [f"{'a' * 15}{letter}{'z' * 15}" for letter in "xy"]
    assert len({*short_labels(inside)}) == 2
    assert max(map(len, short_labels(["a" * 1000, "b" * 1000]))) == 24
    shown = class_table(labels, {"f1": np.ones(3), "support": np.ones(3)}, np.ones((3, 2)))
    assert f'<span title="{labels[0]}">verify_my_ident...' in shown
