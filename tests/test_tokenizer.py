"""The tokenizer compared with tiktoken and with the `tokenizers` library, and the places searched for it."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from conftest import byte_gpt2, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from gptclf import GPT2, GPT2Config, TextDataset, load_gpt2
from gptclf.tokenizer import find as vocabulary
from gptclf.tokenizer.bpe import END_OF_TEXT, build_tokenizer, byte_characters, make_encoding, merges_of
from gptclf.tokenizer.find import find_tokenizer, pin_tokenizer
from gptclf.tokenizer.read import read_tokenizer
from gptclf.tokenizer.write import tokenizer_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GPT2_VOCABULARY = 50257
TRAINED = 319  # tokens of the small table in `trained`

# Special cases of GPT-2's splitting pattern: contractions, runs of white space, NUL, other scripts.
PIECES = [
    "'s",
    "'t",
    "'ll",
    "'LL",
    "'re",
    "'ve",
    "'d",
    "'m",
    "'",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\x00",
    "\x85",
    "the",
    " the",
    "don't",
    "1984",
    " 1984",
    "...",
    " !?",
    "é",
    "e\u0301",
    "ß",
    "_",
    "東京",
    "Привет",
    "👍🏽",
]
pieces = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)
with_surrogates = st.lists(st.sampled_from(PIECES) | st.text(st.characters(), max_size=4), max_size=12).map("".join)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with merges.txt and vocab.json of a small BPE that the `tokenizers` library trained."""
    folder = tmp_path_factory.mktemp("trained")
    rng = random.Random(3)
    words = ["the", "they're", "don't", "happier", "1984", "naïve", "東京", "Привет", "", "tail", "\n\n", "you'll"]
    texts = [" ".join(rng.choices(words, k=20)) for _ in range(50)]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=400, min_frequency=2, special_tokens=[], show_progress=False)
    bpe.save_model(str(folder))
    # The trainer would put a special token first; GPT-2 has it last.
    table = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    table[END_OF_TEXT] = len(table)
    assert len(table) == TRAINED
    (folder / "vocab.json").write_text(json.dumps(table), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def peer(trained: Path) -> Any:
    return ByteLevelBPETokenizer(str(trained / "vocab.json"), str(trained / "merges.txt"))


@pytest.fixture(scope="module")
def ours(trained: Path) -> tiktoken.Encoding:
    return build_tokenizer(trained / "merges.txt", trained / "vocab.json")


@pytest.fixture(scope="module")
def gpt2(shared: Path) -> tiktoken.Encoding:
    return build_tokenizer(shared / "gpt2_bpe" / "vocab.bpe", shared / "gpt2_bpe" / "encoder.json")


@pytest.fixture(scope="module")
def tiktokens_own(shared: Path) -> tiktoken.Encoding:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken_cache"))
        return tiktoken.get_encoding("gpt2")


class TestIds:
    def test_ids_of_random_unicode_equal_those_of_the_tokenizers_library(
        self, ours: tiktoken.Encoding, peer: Any
    ) -> None:
        @settings(max_examples=300, deadline=None)
        @given(pieces)
        def check(text: str) -> None:
            assert ours.encode_ordinary(text) == peer.encode(text).ids

        check()

    def test_ids_of_a_text_it_was_trained_on_use_its_merges(self, ours: tiktoken.Encoding) -> None:
        assert len(ours.encode_ordinary("they're happier")) <= 4

    def test_decoding_gives_the_text_back(self, ours: tiktoken.Encoding) -> None:
        @settings(max_examples=100, deadline=None)
        @given(pieces)
        def check(text: str) -> None:
            assert ours.decode_bytes(ours.encode_ordinary(text)) == text.encode()

        check()

    def test_the_end_of_text_in_a_text_is_ordinary_characters(self, ours: tiktoken.Encoding) -> None:
        ids = ours.encode_ordinary(f"a{END_OF_TEXT}b")
        assert ours.eot_token not in ids
        assert ours.decode(ids) == f"a{END_OF_TEXT}b"

    def test_the_end_of_text_comes_after_the_last_token(self, ours: tiktoken.Encoding) -> None:
        assert ours.eot_token == ours.n_vocab - 1

    def test_a_lone_surrogate_becomes_the_replacement_character(self, ours: tiktoken.Encoding) -> None:
        assert ours.encode_ordinary("a\ud800b") == ours.encode_ordinary("a\ufffdb")

    def test_a_pair_of_surrogates_is_the_character_they_stand_for(self, ours: tiktoken.Encoding) -> None:
        assert ours.encode_ordinary("\ud83d\udc4d") == ours.encode_ordinary("👍")

    def test_a_byte_tokenizer_has_one_id_per_byte_in_the_order_of_gpt2(self) -> None:
        tokenizer = byte_tokenizer()
        order = list(byte_characters())

        @settings(max_examples=50, deadline=None)
        @given(pieces)
        def check(text: str) -> None:
            assert [order[i] for i in tokenizer.encode_ordinary(text)] == list(text.encode())

        check()
        assert (tokenizer.n_vocab, tokenizer.eot_token) == (257, 256)

    def test_the_byte_alphabet_is_that_of_the_tokenizers_library(self, peer: Any) -> None:
        assert [peer.token_to_id(char) for char in byte_characters().values()] == list(range(256))

    def test_a_merges_file_with_windows_line_ends_is_the_same_table(self, trained: Path, tmp_path: Path) -> None:
        merges = tmp_path / "merges.txt"
        merges.write_bytes((trained / "merges.txt").read_bytes().replace(b"\n", b"\r\n"))
        assert (
            build_tokenizer(merges, trained / "vocab.json").n_vocab == build_tokenizer(trained / "merges.txt").n_vocab
        )


class TestAgainstTiktoken:
    def test_random_unicode_has_the_ids_of_tiktokens_gpt2(
        self, gpt2: tiktoken.Encoding, tiktokens_own: tiktoken.Encoding
    ) -> None:
        @settings(max_examples=500, deadline=None)
        @given(with_surrogates)
        def check(text: str) -> None:
            assert gpt2.encode_ordinary(text) == tiktokens_own.encode_ordinary(text)

        check()

    def test_the_whole_table_is_that_of_tiktoken(
        self, gpt2: tiktoken.Encoding, tiktokens_own: tiktoken.Encoding
    ) -> None:
        assert gpt2.n_vocab == tiktokens_own.n_vocab == GPT2_VOCABULARY
        assert gpt2.eot_token == tiktokens_own.eot_token == 50256
        assert gpt2.token_byte_values() == tiktokens_own.token_byte_values()

    def test_the_data_sets_have_the_ids_of_tiktokens_gpt2(
        self, shared_data: Path, gpt2: tiktoken.Encoding, tiktokens_own: tiktoken.Encoding
    ) -> None:
        texts = TextDataset.from_file(shared_data / "sms_spam.tsv", text=1, label=0, tokenizer=byte_tokenizer()).texts
        for name in ("banking77_train.csv", "banking77_test.csv"):
            texts += TextDataset.from_file(shared_data / name, label=None, tokenizer=byte_tokenizer()).texts
        assert len(texts) == 5574 + 13083
        for text in texts:
            assert gpt2.encode_ordinary(text) == tiktokens_own.encode_ordinary(text)

    @pytest.mark.slow
    def test_the_corpora_have_the_ids_of_tiktokens_gpt2(
        self, shared: Path, gpt2: tiktoken.Encoding, tiktokens_own: tiktoken.Encoding
    ) -> None:
        files = sorted((shared / "corpus").glob("*.txt"))
        assert files
        for file in files:
            text = file.read_text(encoding="utf-8")
            assert gpt2.encode_to_numpy(text, disallowed_special=()).tobytes() == (
                tiktokens_own.encode_to_numpy(text, disallowed_special=()).tobytes()
            ), file

    def test_merges_of_gpt2_are_the_lines_of_vocab_bpe(self, shared: Path, gpt2: tiktoken.Encoding) -> None:
        written = tokenizer_files(gpt2, 1024)
        lines = (shared / "gpt2_bpe" / "vocab.bpe").read_text(encoding="utf-8").splitlines()
        assert written["merges.txt"].splitlines()[1:] == lines[1:]
        table = json.loads((shared / "gpt2_bpe" / "encoder.json").read_text(encoding="utf-8"))
        assert json.loads(written["vocab.json"]) == table


class TestFilesWritten:
    def test_merges_and_ids_are_those_it_was_built_from(self, trained: Path, ours: tiktoken.Encoding) -> None:
        written = tokenizer_files(ours, 40)
        assert written["merges.txt"].splitlines()[1:] == (trained / "merges.txt").read_text("utf-8").splitlines()[1:]
        assert json.loads(written["vocab.json"]) == json.loads((trained / "vocab.json").read_text("utf-8"))

    def test_transformers_reads_the_files_and_gives_equal_ids(self, ours: tiktoken.Encoding, tmp_path: Path) -> None:
        for name, text in tokenizer_files(ours, 40).items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        theirs = AutoTokenizer.from_pretrained(tmp_path)

        @settings(max_examples=150, deadline=None)
        @given(pieces)
        def check(text: str) -> None:
            assert theirs(text)["input_ids"] == ours.encode_ordinary(text)

        check()
        assert theirs.eos_token_id == theirs.pad_token_id == ours.eot_token
        assert theirs.model_max_length == 40

    def test_what_is_written_is_read_back_alike(self, ours: tiktoken.Encoding, tmp_path: Path) -> None:
        for name, text in tokenizer_files(ours, 40).items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        again = read_tokenizer(tmp_path)
        assert again is not None
        assert again.token_byte_values() == ours.token_byte_values()

    def test_an_encoding_with_more_special_tokens_is_refused_by_name(self) -> None:
        odd = tiktoken.Encoding(
            "odd",
            pat_str=r"\S+|\s+",
            mergeable_ranks={bytes([i]): i for i in range(256)},
            special_tokens={END_OF_TEXT: 256, "<|pad|>": 257},
        )
        with pytest.raises(ValueError, match=r"'odd' is not laid out like GPT-2's.*256.*257"):
            tokenizer_files(odd, 40)

    def test_ranks_that_no_merges_give_are_refused(self) -> None:
        ranks = {bytes([byte]): i for i, byte in enumerate(byte_characters())}
        with pytest.raises(ValueError, match="cannot be reached"):
            merges_of({**ranks, b"abc": 256})


def _edit(change: Callable[[list[str]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        change(lines)
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return apply


class TestDamage:
    @pytest.fixture
    def folder(self, trained: Path, tmp_path: Path) -> Path:
        for name in ("merges.txt", "vocab.json"):
            (tmp_path / name).write_bytes((trained / name).read_bytes())
        return tmp_path

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (_edit(lambda lines: lines.insert(3, "abc")), 4),
            (_edit(lambda lines: lines.insert(2, "a b c")), 3),
            (_edit(lambda lines: lines.insert(4, "a \u20ac")), 5),
            (_edit(lambda lines: lines.append(lines[5])), None),
            (_edit(lambda lines: lines.insert(1, "abc def")), 2),
        ],
        ids=["no space", "three parts", "no byte's character", "a merge twice", "parts that no merge made"],
    )
    def test_a_line_that_is_no_merge_is_named(
        self, folder: Path, change: Callable[[Path], None], line: int | None
    ) -> None:
        change(folder)
        # Without the id table, so that the merges alone must be refused.
        (folder / "vocab.json").unlink()
        with pytest.raises(ValueError, match=rf"merges\.txt, line {line or '[0-9]+'}: "):
            read_tokenizer(folder)

    def test_a_cut_merges_file_disagrees_with_its_id_table(self, folder: Path) -> None:
        _edit(lambda lines: lines.__delitem__(-1))(folder)
        with pytest.raises(ValueError, match=r"vocab\.json.*do not belong together"):
            read_tokenizer(folder)

    def test_swapped_merges_disagree_with_the_id_table(self, folder: Path) -> None:
        def swap(lines: list[str]) -> None:
            lines[1], lines[2] = lines[2], lines[1]

        _edit(swap)(folder)
        with pytest.raises(ValueError, match=r"vocab\.json gives .* the id"):
            read_tokenizer(folder)

    def test_an_id_table_that_has_more_tokens_is_refused(self, folder: Path) -> None:
        table = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        (folder / "vocab.json").write_text(json.dumps({**table, "<|pad|>": len(table)}), encoding="utf-8")
        with pytest.raises(ValueError, match=r"vocab\.json has 1 tokens that no merge produces.*<\|pad\|>"):
            read_tokenizer(folder)

    @pytest.mark.parametrize("content", ["", '{"a": 1', "[1, 2]", '"text"', "null"])
    def test_an_id_table_that_is_none_is_named(self, folder: Path, content: str) -> None:
        (folder / "vocab.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"vocab\.json"):
            read_tokenizer(folder)

    @pytest.mark.parametrize("name", ["merges.txt", "vocab.json"])
    def test_a_file_that_is_not_text_is_named(self, folder: Path, name: str) -> None:
        (folder / name).write_bytes(b"\x89PNG\xff\xfe\x00")
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_tokenizer(folder)

    def test_a_tokenizer_larger_than_the_vocabulary_is_refused(self, ours: tiktoken.Encoding) -> None:
        with pytest.raises(ValueError, match=r"319 tokens but the model's vocabulary is 257"):
            byte_gpt2(tokenizer=ours)


def _cache(root: Path, repo: str, source: Path) -> None:
    """Create a Hugging Face cache by hand."""
    folder = root / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for name in ("merges.txt", "vocab.json"):
        (snapshot / name).write_bytes((source / name).read_bytes())


class TestWhereItIsFound:
    """The small trained table replaces GPT-2's, so the tokenizer found tells the place it came from."""

    @pytest.fixture(autouse=True)
    def _no_tiktoken_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")

    @pytest.fixture
    def hub_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        return tmp_path / "hub"

    @pytest.fixture
    def tiktoken_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """tiktoken's cache with a table of 257 tokens in place of the published one."""
        folder = tmp_path / "tiktoken"
        folder.mkdir()
        written = tokenizer_files(byte_tokenizer(), 8)
        digests = {}
        for name, content in (("vocab.bpe", written["merges.txt"]), ("encoder.json", written["vocab.json"])):
            address = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/" + name
            (folder / hashlib.sha1(address.encode()).hexdigest()).write_text(content, encoding="utf-8")
            digests[name] = hashlib.sha256(content.encode()).hexdigest()
        monkeypatch.setattr(vocabulary, "TIKTOKEN_FILES", digests)
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return folder

    def model(self) -> GPT2:
        config = GPT2Config(context_length=8, emb_dim=2, n_heads=1, n_layers=1)
        return load_gpt2(config, weights="random", seed=0)

    def test_files_beside_the_weights_come_first(
        self, trained: Path, hub_cache: Path, tiktoken_cache: Path, tmp_path: Path
    ) -> None:
        beside = tmp_path / "weights"
        beside.mkdir()
        make = make_encoding({bytes([byte]): i for i, byte in enumerate(byte_characters())} | {b"zq": 256})
        for name, text in tokenizer_files(make, 8).items():
            (beside / name).write_text(text, encoding="utf-8")
        _cache(hub_cache, "openai-community/gpt2", trained)
        assert pin_tokenizer(beside, None, None, None, GPT2_VOCABULARY)().n_vocab == 258

    def test_openais_file_names_are_known_beside_the_weights(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "vocab.bpe").write_bytes((trained / "merges.txt").read_bytes())
        (tmp_path / "encoder.json").write_bytes((trained / "vocab.json").read_bytes())
        assert pin_tokenizer(tmp_path, None, None, None, GPT2_VOCABULARY)().n_vocab == TRAINED

    def test_the_hugging_face_cache_comes_before_tiktokens(
        self, trained: Path, hub_cache: Path, tiktoken_cache: Path
    ) -> None:
        _cache(hub_cache, "openai-community/gpt2", trained)
        assert self.model().tokenizer.n_vocab == TRAINED

    def test_a_cache_given_by_hand_is_looked_into(self, trained: Path, tmp_path: Path) -> None:
        _cache(tmp_path / "mine", "openai-community/gpt2", trained)
        model = load_gpt2(
            GPT2Config(context_length=8, emb_dim=2, n_heads=1, n_layers=1),
            weights="random",
            seed=0,
            cache_dir=tmp_path / "mine",
        )
        assert model.tokenizer.n_vocab == TRAINED

    def test_a_repositorys_own_files_come_before_gpt2s(self, trained: Path, hub_cache: Path) -> None:
        _cache(hub_cache, "someone/model", trained)
        assert find_tokenizer("someone/model", None, None, GPT2_VOCABULARY).n_vocab == TRAINED

    def test_tiktokens_cache_is_read_where_hugging_faces_is_empty(self, tiktoken_cache: Path) -> None:
        assert self.model().tokenizer.n_vocab == 257

    def test_the_published_files_in_tiktokens_cache_are_taken(
        self, shared: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken_cache"))
        assert self.model().tokenizer.n_vocab == GPT2_VOCABULARY

    def test_a_file_in_tiktokens_cache_with_other_bytes_is_passed_over(self, tiktoken_cache: Path) -> None:
        for file in tiktoken_cache.iterdir():
            file.write_bytes(file.read_bytes() + b"\n")
        with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
            _ = self.model().tokenizer

    def test_without_any_the_error_says_what_to_put_where(self) -> None:
        model = self.model()
        with pytest.raises(FileNotFoundError, match=r"merges\.txt.*not in the cache.*HF_HUB_OFFLINE.*folder"):
            _ = model.tokenizer

    def test_a_vocabulary_of_another_size_never_gets_gpt2s(self, trained: Path, hub_cache: Path) -> None:
        _cache(hub_cache, "openai-community/gpt2", trained)
        with pytest.raises(FileNotFoundError, match=r"no tokenizer for a vocabulary of 999 tokens"):
            find_tokenizer(None, None, None, 999)

    def test_a_tokenizer_given_wins(self, ours: tiktoken.Encoding) -> None:
        config = GPT2Config(vocab_size=TRAINED, context_length=8, emb_dim=2, n_heads=1, n_layers=1)
        assert load_gpt2(config, weights="random", seed=0, tokenizer=ours).tokenizer is ours

    def test_a_model_made_by_hand_says_that_it_has_no_tokenizer(self, small_gpt2: GPT2) -> None:
        with pytest.raises(ValueError, match=r"load it with tokenizer= or set model\.tokenizer"):
            _ = small_gpt2.tokenizer


def test_a_folder_with_only_a_tokenizer_json_of_another_vocabulary_does_not_get_gpt2s(
    ours: tiktoken.Encoding, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 5 writes only tokenizer.json; with GPT-2's own table such a model would get wrong ids."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    _cache(tmp_path / "hub", "openai-community/gpt2", trained)
    beside = tmp_path / "weights"
    beside.mkdir()
    other = make_encoding({bytes([byte]): i for i, byte in enumerate(byte_characters())} | {b"zq": 256})
    (beside / "tokenizer.json").write_text(tokenizer_files(other, 8)["tokenizer.json"], encoding="utf-8")
    try:
        found = pin_tokenizer(beside, None, None, None, GPT2_VOCABULARY)().token_byte_values()
    except (ValueError, FileNotFoundError) as error:
        if "tokenizer.json" not in str(error):
            raise
    else:
        assert found == other.token_byte_values()
