"""The model card: metadata that every reader can parse, whatever texts it contains, and its sections."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from gptclf import ClassifierHead, NextToken, SingleLabel, Task
from gptclf.saving.card import Card, is_our_card, model_card

yaml = pytest.importorskip("yaml")

# Every character, lone surrogates included, and strings with a meaning in YAML or Markdown.
TRICKY = [
    "no",
    "1.0",
    "a: b",
    "- x",
    "'",
    '"',
    "\\",
    "#",
    "\n---\n",
    "---",
    "{",
    "%",
    "&a",
    "*a",
    "!x",
    "|",
    ">",
    "`",
    "``",
    "\x85",
    "\u2028",
    "\ufeff",
    "\x00",
    "\x7f",
    "\ud800",
    "👍",
    "東京",
    "~",
    "null",
    " x ",
    "",
    "\t",
    "\r\n",
    "\\n",
    "@",
    "<b>",
    "2026-01-01",
    "1e-05",
    "=",
    "0x10",
    "1:30",
]
TEXTS = st.one_of(
    st.sampled_from(TRICKY),
    st.text(st.characters(exclude_categories=())),
    st.lists(st.sampled_from(TRICKY), min_size=2, max_size=4).map("".join),
)


def card(**values: Any) -> Card:
    """A card, by default of a classifier; `labels` are those that it shows."""
    task = values.pop("task", SingleLabel(["ham", "spam"]).card())
    if "labels" in values:
        task = dataclasses.replace(task, labels=values.pop("labels"))
    return Card(**{"name": "spam", "task": task, "exported": True, "parameters": 100, **values})


def looks_at(pooling: str) -> str:
    return ClassifierHead(4, 2, pooling=pooling).looks_at


class Distances(Task):
    """A task of one's own."""

    n_outputs = 1


def hub_data(text: str) -> Any:
    return ModelCard(text, ignore_metadata_errors=False).data


def front(text: str) -> dict[str, Any]:
    """Return the metadata as read by PyYAML and by the hub's own reader, which must agree."""
    assert text.startswith("---\n")
    block = text[4:].partition("\n---\n")[0]
    values = dict(yaml.safe_load(block))
    assert hub_data(text).to_dict() == values
    return values


class TestMetadata:
    def test_all_of_it(self) -> None:
        text = model_card(
            card(
                base_model="openai-community/gpt2",
                datasets=["ucirvine/sms_spam"],
                metrics={"accuracy": 0.96, "loss": 1e-5},
                measured_on="SMS Spam, test set",
                license="mit",
            )
        )
        assert front(text) == {
            "library_name": "transformers",
            "pipeline_tag": "text-classification",
            "license": "mit",
            "base_model": "openai-community/gpt2",
            "datasets": ["ucirvine/sms_spam"],
            "metrics": ["accuracy", "loss"],
            "tags": ["gptclf", "gpt2"],
            "model-index": [
                {
                    "name": "spam",
                    "results": [
                        {
                            "task": {"type": "text-classification"},
                            "dataset": {"name": "SMS Spam, test set", "type": "ucirvine/sms_spam"},
                            "metrics": [{"type": "accuracy", "value": 0.96}, {"type": "loss", "value": 1e-5}],
                        }
                    ],
                }
            ],
        }

    def test_the_hubs_reader_finds_the_results(self) -> None:
        data = hub_data(model_card(card(metrics={"accuracy": 0.5}, measured_on="mine", base_model="a/gpt2")))
        results = data.eval_results
        assert [(r.dataset_name, r.metric_type, r.metric_value) for r in results] == [("mine", "accuracy", 0.5)]
        assert (data.model_name, data.base_model) == ("spam", "a/gpt2")

    def test_a_model_that_only_we_can_load_says_so(self) -> None:
        assert front(model_card(card(exported=False)))["library_name"] == "gptclf"

    def test_a_language_model_generates(self) -> None:
        assert front(model_card(card(task=NextToken(50).card())))["pipeline_tag"] == "text-generation"

    def test_what_is_not_known_is_left_out(self) -> None:
        assert set(front(model_card(card()))) == {"library_name", "pipeline_tag", "tags"}

    @pytest.mark.parametrize(
        "name", ["nano", "/home/me/models/gpt2", "./gpt2", "a/b/c", "my model", "C:\\gpt2", "..", "../x"]
    )
    def test_a_folder_is_no_base_model_on_the_hub(self, name: str) -> None:
        assert "base_model" not in front(model_card(card(base_model=name)))

    @pytest.mark.parametrize(
        "value", [float("nan"), float("inf"), -float("inf"), 1e300, 5e-324, 0.1, 3, -0.0, 1e16, 0.1 + 0.2]
    )
    def test_every_number_stays_a_number(self, value: float) -> None:
        values = front(model_card(card(metrics={"m": value}, measured_on="x")))
        found = values["model-index"][0]["results"][0]["metrics"][0]["value"]
        assert isinstance(found, float)
        assert found == value or (found != found and value != value)

    @given(texts=st.lists(TEXTS, min_size=6, max_size=6))
    def test_every_text_is_parsed_as_it_was(self, texts: list[str]) -> None:
        name, policy, dataset, metric, where, license = texts
        text = model_card(
            card(
                name=name,
                labels=texts,
                datasets=[dataset],
                metrics={metric: 1.0},
                measured_on=where,
                license=license,
                data=where,
                base_model=name,
                policy=policy,
                trained={metric: 3},
            )
        )
        text.encode("utf-8")
        values = yaml.safe_load(text[4:].partition("\n---\n")[0])
        assert values["datasets"] == [dataset]
        assert values["metrics"] == [metric]
        assert values.get("license", "") == license
        if where:
            result = values["model-index"][0]
            assert (result["name"], result["results"][0]["dataset"]["name"]) == (name, where)


class TestWhatItSays:
    def test_labels_stand_in_order_each_on_its_line(self) -> None:
        text = model_card(card(labels=["ham", "a|b", "x\n---\ny", "`", "", " z", "\ud800"]))
        lines = text[text.index("## Labels") :].splitlines()[4:11]
        assert lines == [
            "0. `ham`",
            "1. `a|b`",
            '2. `"x\\n---\\ny"`',
            "3. `` ` ``",
            '4. `""`',
            '5. `" z"`',
            '6. `"\\ud800"`',
        ]

    def test_labels_of_one_text_are_told_apart(self) -> None:
        text = model_card(card(labels=[1, "1", ("a", 2)]))
        assert all(line in text for line in ("0. `1`\n", "1. `'1'`\n", "2. `('a', 2)`\n"))

    def test_a_thousand_labels_are_cut_short(self) -> None:
        text = model_card(card(labels=range(1000)))
        assert "199. `199`\n" in text
        assert "200. " not in text
        assert "and 800 more, in `gptclf.json`." in text

    def test_the_policy_and_what_it_trains(self) -> None:
        text = model_card(card(policy="last_block", trained={"head.output.weight": 10, "trunk.norm.bias": 5}))
        assert "15 of 100 parameters are trainable (policy `last_block`)" in text
        assert "| `head.output.weight` | 10 |\n| `trunk.norm.bias` | 5 |" in text
        assert "All 100 parameters are trainable." in model_card(card(trained={"a": 60, "b": 40}))
        assert "None of its parameters is trainable." in model_card(card())

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({}, "longer than the model's context lose their end. Texts are not padded to a fixed length"),
            ({"max_length": 1000, "truncation": "head"}, "longer than 1,000 tokens lose their beginning."),
            ({"truncation": "middle"}, "lose their middle."),
            ({"pad_to": 120, "max_length": 120}, "padded to 120 tokens with the end-of-text token"),
            ({"looks_at": looks_at("last")}, "The head looks at the last token."),
            ({"looks_at": looks_at("first")}, "The head looks at the first token."),
            ({"looks_at": looks_at("mean")}, "The head looks at the mean of all tokens."),
            ({"looks_at": looks_at("max")}, "The head looks at the largest value of each dimension over all tokens."),
        ],
        ids=str,
    )
    def test_how_texts_are_prepared(self, values: dict[str, Any], said: str) -> None:
        assert said in model_card(card(**values))

    def test_transformers_are_promised_only_where_they_load_it(self) -> None:
        assert 'pipeline("text-classification"' in model_card(card())
        assert 'pipeline("text-generation"' in model_card(card(task=NextToken(50).card()))
        alone = model_card(card(exported=False))
        assert "pipeline(" not in alone
        assert "`transformers` cannot load it" in alone

    def test_rows_that_were_filled_up_are_warned_of(self) -> None:
        alone = model_card(card(pad_to=120, exported=False))
        assert "`transformers` cannot load it: its pipeline cannot pad texts to 120 tokens" in alone
        assert "pipeline(" not in alone

    def test_data_and_metrics_are_the_users_words(self) -> None:
        text = model_card(card(data="**1,494** messages.", metrics={"accuracy": 0.9567}, measured_on="test"))
        assert "## Data\n\n**1,494** messages.\n" in text
        assert "Measured on test.\n\n| metric | value |\n| --- | ---: |\n| `accuracy` | 0.9567 |" in text
        assert "was not recorded" in model_card(card())

    def test_what_openai_trained_on_is_said_of_openais_weights_alone(self) -> None:
        assert "before 2018" in model_card(card(base_model="openai-community/gpt2"))
        for base in ("nano", None, "somebody/gpt2"):
            assert "before 2018" not in model_card(card(base_model=base))

    def test_a_task_and_a_head_of_ones_own_are_described_without_guesses(self) -> None:
        text = model_card(card(task=Distances().card(), exported=False, metrics={"r": 0.5}, measured_on="x"))
        assert "A GPT-2 for the task `Distances`, with 100 parameters." in text
        assert "## Labels" not in text
        assert "The head looks at" not in text
        assert "pipeline_tag" not in front(text)
        assert "`transformers` cannot load it" in text

    def test_its_title_is_one_line(self) -> None:
        assert "\n# a b\n" in model_card(card(name="a\n\nb"))


def test_equal_values_give_equal_cards() -> None:
    values = {"metrics": {"b": 1.0, "a": 2.0}, "measured_on": "x", "trained": {"w": 1}}
    assert model_card(card(**values)) == model_card(dataclasses.replace(card(**values)))


def test_a_card_is_ours_until_somebody_takes_it_over(tmp_path: Path) -> None:
    text, path = model_card(card()), tmp_path / "README.md"
    assert not is_our_card(path)
    path.write_text(text)
    assert is_our_card(path)
    for other in ("\n".join(line for line in text.splitlines() if not line.startswith("<!-- Written")), "# My model\n"):
        path.write_text(other)
        assert not is_our_card(path)
