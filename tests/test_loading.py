"""Loading: folders that transformers wrote, hub repositories, caches, configurations, names."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import byte_gpt2, randomised
from hub_server import COMMIT, Hub, serving
from safetensors.torch import load_file, save_file

from gptclf import GPT2, GPT2Config, add_classifier_head, checks, load_gpt2
from gptclf.gpt2.config import ALIASES, PRESETS
from gptclf.weights.hugging_face import from_hugging_face, to_hugging_face, trunk_names

IDS = torch.randint(257, (3, 17), generator=torch.Generator().manual_seed(5))


def their_config(**changes: Any) -> Any:
    """Return transformers' configuration with the shape of `odd_config`, in which no two sizes are equal."""
    values = {
        "vocab_size": 257,
        "n_positions": 40,
        "n_embd": 24,
        "n_head": 3,
        "n_layer": 3,
        "n_inner": 56,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "pad_token_id": 256,
    }
    return transformers.GPT2Config(**{**values, **changes})


def their_model(kind: str = "GPT2LMHeadModel", **changes: Any) -> Any:
    """One of transformers' models with noise in every parameter, so that no bias is 0 and no norm the identity."""
    torch.manual_seed(3)
    model = getattr(transformers, kind)(their_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def their_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


def our_logits(model: GPT2) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)  # type: ignore[no-any-return]


def rewrite_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A language model that transformers saved."""
    their_model().save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


class TestFoldersOfTransformers:
    def test_a_language_model_has_equal_logits(self, tmp_path: Path) -> None:
        theirs = their_model()
        theirs.save_pretrained(tmp_path)
        torch.testing.assert_close(our_logits(load_gpt2(tmp_path)), their_logits(theirs), atol=1e-5, rtol=1e-5)

    def test_a_bare_trunk_has_names_without_a_prefix_and_equal_hidden_states(self, tmp_path: Path) -> None:
        theirs = their_model("GPT2Model")
        theirs.save_pretrained(tmp_path)
        assert "wte.weight" in load_file(tmp_path / "model.safetensors")
        with torch.no_grad():
            want, got = theirs(IDS).last_hidden_state, load_gpt2(tmp_path).trunk(IDS)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("prefix", ["", "transformer."])
    def test_mask_buffers_of_old_releases_are_passed_over(self, prefix: str, folder: Path, tmp_path: Path) -> None:
        want = our_logits(load_gpt2(folder))
        tensors = {name.removeprefix("transformer."): t for name, t in load_file(folder / "model.safetensors").items()}
        for i in range(3):
            tensors[f"h.{i}.attn.bias"] = torch.ones(40, 40).tril().view(1, 1, 40, 40)
            tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        save_file({prefix + name: t for name, t in tensors.items()}, folder / "model.safetensors")
        assert torch.equal(our_logits(load_gpt2(folder)), want)

    def test_a_tied_matrix_that_stands_in_the_file_twice_is_read_once(self, folder: Path) -> None:
        want = our_logits(load_gpt2(folder))
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        save_file(tensors, folder / "model.safetensors")
        assert torch.equal(our_logits(load_gpt2(folder)), want)

    def test_a_model_in_several_files_is_put_together(self, tmp_path: Path) -> None:
        theirs = their_model()
        theirs.save_pretrained(tmp_path, max_shard_size="30KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        assert not (tmp_path / "model.safetensors").exists()
        torch.testing.assert_close(our_logits(load_gpt2(tmp_path)), their_logits(theirs), atol=1e-5, rtol=1e-5)

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        their_model().save_pretrained(tmp_path, max_shard_size="30KB")
        shard = sorted(tmp_path.glob("*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(FileNotFoundError, match=shard.name):
            load_gpt2(tmp_path)

    @pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors"])
    def test_a_shard_outside_the_folder_is_refused(self, folder: Path, name: str) -> None:
        (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
        with pytest.raises(ValueError, match="shards must be beside the index"):
            load_gpt2(folder)

    def test_an_output_matrix_of_its_own_is_used(self, tmp_path: Path) -> None:
        theirs = their_model(tie_word_embeddings=False)
        theirs.save_pretrained(tmp_path)
        ours = load_gpt2(tmp_path)
        assert not ours.config.tied
        torch.testing.assert_close(our_logits(ours), their_logits(theirs), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_weights_in_half_precision_become_float32(self, dtype: torch.dtype, tmp_path: Path) -> None:
        theirs = their_model().to(dtype)
        theirs.save_pretrained(tmp_path)
        ours = load_gpt2(tmp_path)
        assert {p.dtype for p in ours.parameters()} == {torch.float32}
        torch.testing.assert_close(our_logits(ours), their_logits(theirs.float()), atol=1e-5, rtol=1e-5)

    def test_weights_are_the_files_memory_and_no_copy(self, folder: Path) -> None:
        maps = Path("/proc/self/maps")
        if not maps.exists():
            pytest.skip("needs /proc/self/maps to see what is mapped")
        ours = load_gpt2(folder)
        lines = [line for line in maps.read_text().splitlines() if line.endswith(str(folder / "model.safetensors"))]
        ranges = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in lines]
        for name, parameter in ours.named_parameters():
            assert any(start <= parameter.data_ptr() < end for start, end in ranges), name
        # nn.Linear's matrix is the transpose of Conv1D's: as a view, it takes no memory of its own.
        assert not ours.get_parameter("trunk.blocks.0.attention.qkv.weight").is_contiguous()

    def test_a_loaded_model_is_in_eval_mode_and_float32_on_the_cpu(self, folder: Path) -> None:
        ours = load_gpt2(str(folder))
        assert not any(module.training for module in ours.modules())
        assert {(p.dtype, p.device.type) for p in ours.parameters()} == {(torch.float32, "cpu")}
        assert ours.classes is None


class TestConfigurationKeys:
    @pytest.mark.parametrize(
        "changes",
        [
            {"activation_function": "gelu"},
            {"activation_function": "relu"},
            {"activation_function": "silu"},
            {"activation_function": "swish"},
            {"activation_function": "gelu_pytorch_tanh"},
            {"activation_function": "gelu_fast"},
            {"n_inner": None},
            {"layer_norm_epsilon": 0.3},
            {"scale_attn_weights": False},
            {"scale_attn_by_inverse_layer_idx": True},
            {"reorder_and_upcast_attn": True},
            {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
            {"n_head": 6},
        ],
        ids=str,
    )
    def test_a_key_that_changes_the_computation_is_honoured(self, changes: dict[str, Any], tmp_path: Path) -> None:
        theirs = their_model(**changes)
        theirs.save_pretrained(tmp_path)
        torch.testing.assert_close(our_logits(load_gpt2(tmp_path)), their_logits(theirs), atol=2e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        "changes",
        [
            {"activation_function": "gelu"},
            {"layer_norm_epsilon": 0.3},
            {"scale_attn_weights": False},
            {"scale_attn_by_inverse_layer_idx": True},
            {"n_head": 6},
        ],
        ids=str,
    )
    def test_such_a_key_does_change_it(self, changes: dict[str, Any], folder: Path) -> None:
        """So that the test above cannot pass because both sides omit the key."""
        before = our_logits(load_gpt2(folder))
        rewrite_config(folder, **changes)
        assert (our_logits(load_gpt2(folder)) - before).abs().max() > 1e-4

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"add_cross_attention": True}, "add_cross_attention = True: gptclf does not support cross-attention"),
            ({"pruned_heads": {"1": [0]}}, "pruned_heads.*not support pruned attention heads"),
            ({"quantization_config": {"bits": 4}}, "quantization_config.*not support quantized weights"),
            ({"activation_function": "mish"}, "activation_function = 'mish'; gptclf supports gelu_new"),
            ({"model_type": "bert"}, "describes a 'bert' model; gptclf loads GPT-2"),
            ({"n_embd": 25}, "emb_dim 25 is not divisible by n_heads 3"),
            ({"n_layer": 0}, "n_layers is 0"),
        ],
        ids=str,
    )
    def test_what_gptclf_does_not_compute_is_refused_by_name(
        self, changes: dict[str, Any], message: str, folder: Path
    ) -> None:
        rewrite_config(folder, **changes)
        with pytest.raises(ValueError, match=message):
            load_gpt2(folder)

    @pytest.mark.parametrize(
        "changes",
        [{"activation_function": ["relu"]}, {"layer_norm_epsilon": "small"}, {"n_head": "3"}, {"n_positions": None}],
        ids=str,
    )
    def test_a_value_of_another_kind_is_a_value_error(self, changes: dict[str, Any], folder: Path) -> None:
        rewrite_config(folder, **changes)
        with pytest.raises(ValueError):
            load_gpt2(folder)

    def test_the_context_length_may_stand_under_its_old_name(self, folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        values["n_ctx"] = values.pop("n_positions")
        (folder / "config.json").write_text(json.dumps(values))
        assert load_gpt2(folder).config.context_length == 40

    def test_a_configuration_without_its_sizes_names_them(self, folder: Path) -> None:
        (folder / "config.json").write_text('{"model_type": "gpt2", "n_head": 3}')
        with pytest.raises(ValueError, match="lacks n_embd, n_layer"):
            load_gpt2(folder)

    def test_dropout_is_the_callers_choice_and_not_the_files(self, folder: Path) -> None:
        rewrite_config(folder, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
        assert load_gpt2(folder).config.drop_rate == 0.0
        ours = load_gpt2(folder, dropout=0.3)
        assert {m.p for m in ours.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
        assert torch.equal(our_logits(ours), our_logits(load_gpt2(folder)))
        ours.train()
        assert not torch.equal(our_logits(ours), our_logits(ours))


class TestNameTable:
    @pytest.mark.parametrize("preset", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
    def test_it_covers_every_parameter_of_a_published_size_and_of_transformers(self, preset: str) -> None:
        config = PRESETS[preset]
        ours = {name: tuple(p.shape) for name, p in GPT2(config, device="meta").named_parameters()}
        with torch.device("meta"):
            theirs = transformers.GPT2Model(
                transformers.GPT2Config(n_embd=config.emb_dim, n_layer=config.n_layers, n_head=config.n_heads)
            )
        their_shapes = {name: tuple(t.shape) for name, t in theirs.state_dict().items()}
        table = trunk_names(config.n_layers)
        assert set(table) == set(ours)
        assert {name for name, _ in table.values()} == set(their_shapes)
        for name, (there, flip) in table.items():
            assert ours[name] == (their_shapes[there][::-1] if flip else their_shapes[there]), name

    @pytest.mark.parametrize(
        ("preset", "count"),
        [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
    )
    def test_a_published_size_has_the_published_number_of_parameters(self, preset: str, count: int) -> None:
        assert sum(p.numel() for p in GPT2(PRESETS[preset], device="meta").parameters()) == count

    def test_it_is_the_same_table_both_ways(self, small_gpt2: GPT2) -> None:
        parameters = dict(small_gpt2.named_parameters())
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        back = from_hugging_face(to_hugging_face(parameters, small_gpt2.config), shapes, 3, source="here")
        assert set(back) == set(parameters)
        assert all(torch.equal(back[name], parameters[name]) for name in back)

    def test_the_short_names_are_the_published_sizes(self) -> None:
        assert [PRESETS[name].n_layers for name in map(ALIASES.__getitem__, ("124M", "355M", "774M", "1558M"))] == [
            12,
            24,
            36,
            48,
        ]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Iterator[Hub]:
    """A hub on this machine with the model of `folder`, and an empty cache."""
    with serving() as server:
        for path in folder.iterdir():
            server.files[path.name] = path.read_bytes()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield server


def asked_for(hub: Hub) -> set[str]:
    return {seen.path.rpartition("/")[2] for seen in hub.seen}


class TestHub:
    def test_a_repository_is_downloaded_and_is_the_same_model(self, hub: Hub, folder: Path) -> None:
        assert torch.equal(our_logits(load_gpt2("someone/model")), our_logits(load_gpt2(folder)))
        assert all("/someone/model/resolve/" in seen.path for seen in hub.seen)

    def test_what_was_downloaded_needs_no_network(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        first = our_logits(load_gpt2("someone/model"))
        hub.seen.clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert torch.equal(our_logits(load_gpt2("someone/model")), first)
        assert not hub.seen

    def test_a_preset_means_openais_repository(self, hub: Hub) -> None:
        hub.files["config.json"] = b'{"model_type": "bert"}'
        with pytest.raises(ValueError, match=r"openai-community/gpt2-medium/config\.json"):
            load_gpt2("355M")

    def test_another_models_configuration_is_refused_before_its_weights_are_fetched(self, hub: Hub) -> None:
        hub.files["config.json"] = b'{"model_type": "bert", "hidden_size": 768}'
        with pytest.raises(ValueError, match="describes a 'bert' model; gptclf loads GPT-2"):
            load_gpt2("google/bert")
        assert asked_for(hub) == {"config.json"}

    def test_a_model_in_several_files_is_fetched_whole(self, hub: Hub, tmp_path: Path) -> None:
        theirs = their_model()
        theirs.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
        hub.files = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
        torch.testing.assert_close(our_logits(load_gpt2("someone/big")), their_logits(theirs), atol=1e-5, rtol=1e-5)

    def test_a_repository_without_weights_names_the_file_that_is_missing(self, hub: Hub) -> None:
        del hub.files["model.safetensors"]
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
            load_gpt2("someone/model")

    def test_random_weights_need_the_configuration_alone(self, hub: Hub) -> None:
        assert load_gpt2("someone/model", weights="random", seed=1).config.emb_dim == 24
        assert asked_for(hub) == {"config.json"}

    def test_a_revision_is_asked_for(self, hub: Hub, folder: Path) -> None:
        hub.branches = {"v2": COMMIT}
        assert torch.equal(our_logits(load_gpt2("someone/model", revision="v2")), our_logits(load_gpt2(folder)))
        with pytest.raises(FileNotFoundError, match="no such revision"):
            load_gpt2("someone/other", revision="v3")

    def test_a_cache_given_is_used(self, hub: Hub, tmp_path: Path) -> None:
        load_gpt2("someone/model", cache_dir=tmp_path / "mine")
        assert (tmp_path / "mine" / "models--someone--model" / "snapshots" / COMMIT / "model.safetensors").exists()
        assert not (tmp_path / "cache").exists()

    def test_a_push_between_two_downloads_cannot_mix_versions(self, hub: Hub) -> None:
        load_gpt2("someone/model")
        assert all(COMMIT in seen.path for seen in hub.seen if seen.path.endswith(".safetensors"))

    def test_an_existing_cache_is_read_without_a_network(self, tmp_path: Path, folder: Path) -> None:
        repository = tmp_path / "laid" / "models--openai-community--gpt2"
        snapshot = repository / "snapshots" / ("c" * 40)
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir()
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("c" * 40)
        for i, name in enumerate(("config.json", "model.safetensors")):
            (repository / "blobs" / str(i)).write_bytes((folder / name).read_bytes())
            (snapshot / name).symlink_to(Path("../../blobs") / str(i))
        loaded = load_gpt2("gpt2", cache_dir=tmp_path / "laid")
        assert torch.equal(our_logits(loaded), our_logits(load_gpt2(folder)))


class TestWhatANameMeans:
    def test_a_folder_wins_over_a_name_and_says_so(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder.rename(folder.parent / "gpt2")
        monkeypatch.chdir(folder.parent)
        with caplog.at_level(logging.WARNING, logger="gptclf"):
            assert load_gpt2("gpt2").config.emb_dim == 24
        assert "'gpt2' is a local folder; loading it instead of the published model" in caplog.text

    def test_a_folder_without_a_configuration_does_not_hide_a_published_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "nano").mkdir()
        monkeypatch.chdir(tmp_path)
        assert load_gpt2("nano").config == PRESETS["nano"]
        assert "'nano', which holds no weights of nano; loading the published model" in caplog.text

    def test_a_folder_of_another_name_is_loaded_in_silence(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        load_gpt2(folder)
        assert not caplog.messages

    @pytest.mark.parametrize("name", ["gpt3", "./nowhere", "a/b/c", Path("some/where")], ids=str)
    def test_a_name_that_is_none_lists_what_there_is(self, name: str | Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"not a folder, a file or a known.*gpt2-medium.*124M.*owner/name"):
            load_gpt2(name)

    def test_an_empty_folder_names_the_file_it_needs(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
            load_gpt2(tmp_path)

    def test_a_folder_without_weights_says_what_it_holds(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "weights.bin")
        with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor .*it holds .*weights\.bin"):
            load_gpt2(folder)

    def test_a_classifiers_folder_is_pointed_to_load_model(self, tmp_path: Path) -> None:
        their_model("GPT2ForSequenceClassification").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"unexpected: score\.weight.*load it with load_model"):
            load_gpt2(tmp_path)


class TestRandomWeights:
    def test_a_configuration_gives_a_model_of_its_shape(self, odd_config: GPT2Config) -> None:
        model = load_gpt2(odd_config, weights="random", seed=4)
        assert model.config == odd_config
        assert not any(p.is_meta for p in model.parameters())

    def test_a_configuration_has_no_pretrained_weights(self, odd_config: GPT2Config) -> None:
        with pytest.raises(ValueError, match=r"no pretrained weights; give weights='random'"):
            load_gpt2(odd_config)

    def test_a_seed_determines_every_weight(self, odd_config: GPT2Config) -> None:
        first, second, other = (load_gpt2(odd_config, weights="random", seed=seed) for seed in (4, 4, 5))
        assert torch.equal(our_logits(first), our_logits(second))
        assert not torch.equal(our_logits(first), our_logits(other))

    def test_without_a_seed_torchs_own_rules_and_the_seed_is_said(
        self, odd_config: GPT2Config, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, logger="gptclf"):
            torch.manual_seed(1)
            first = load_gpt2(odd_config, weights="random")
        assert not torch.equal(our_logits(first), our_logits(load_gpt2(odd_config, weights="random")))
        said = int(caplog.messages[0].rpartition("seed ")[2])
        torch.manual_seed(1)
        assert torch.equal(our_logits(load_gpt2(odd_config, weights="random")), our_logits(first))
        assert torch.equal(our_logits(load_gpt2(odd_config, weights="random", seed=said)), our_logits(first))

    def test_weights_are_drawn_as_gpt2_draws_them(self) -> None:
        config = GPT2Config(vocab_size=400, context_length=300, emb_dim=96, n_heads=2, n_layers=8)
        model = load_gpt2(config, weights="random", seed=0)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any(), name
            elif "norm" in name:
                assert bool((parameter == 1).all()), name
            else:
                scale = 0.02 / 4 if name.endswith(("out.weight", "down.weight")) else 0.02
                assert abs(float(parameter.detach().std()) / scale - 1) < 0.05, name

    def test_a_folder_gives_the_shape_alone(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        assert load_gpt2(folder, weights="random", seed=1).config.emb_dim == 24

    def test_a_published_size_needs_no_network(self) -> None:
        # Initialising larger sizes would take seconds.
        assert load_gpt2("124M", weights="random", seed=1).config == PRESETS["gpt2"]

    def test_nano_is_the_same_model_each_time(self) -> None:
        torch.manual_seed(0)
        first = our_logits(load_gpt2("nano"))
        torch.manual_seed(1)
        assert torch.equal(our_logits(load_gpt2("nano")), first)

    @pytest.mark.parametrize("weights", ["pretraind", "", None, True])
    def test_a_misspelt_choice_is_refused_with_the_choices(self, weights: Any) -> None:
        error = ValueError if isinstance(weights, str) else TypeError
        with pytest.raises(error, match="one of pretrained, random"):
            load_gpt2("nano", weights=weights)


class TestDevices:
    @pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
    def test_a_device_that_is_not_there_is_answered_with_those_that_are(self, device: str) -> None:
        with pytest.raises(ValueError, match=rf"device '{device}' cannot be used here.*there is cpu"):
            load_gpt2("nano", device=device)

    def test_it_is_looked_at_before_anything_is_loaded(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="cannot be used here"):
            load_gpt2(tmp_path, device="nonsense")

    @pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
    def test_the_cpu_is_always_there(self, device: Any) -> None:
        assert checks.device(device) == torch.device("cpu")


class TestHeads:
    def test_a_new_head_shares_the_frozen_tensors_and_leaves_the_source_alone(self, folder: Path) -> None:
        source = load_gpt2(folder)
        before = our_logits(source)
        clf = add_classifier_head(source, classes=["a", "b"], seed=1)
        assert clf.trunk.embed.token.weight.data_ptr() == source.trunk.embed.token.weight.data_ptr()
        with torch.no_grad():
            for parameter in clf.parameters():
                if parameter.requires_grad:
                    parameter.add_(1)
        assert torch.equal(our_logits(source), before)

    def test_its_logits_are_its_matrix_on_the_last_hidden_state(self, small_gpt2: GPT2) -> None:
        clf = randomised(add_classifier_head(small_gpt2, num_classes=5, seed=1))
        with torch.no_grad():
            weight, bias = clf.get_parameter("head.output.weight"), clf.get_parameter("head.output.bias")
            want = clf.trunk(IDS)[:, -1] @ weight.T + bias
        torch.testing.assert_close(our_logits(clf), want)
        assert clf.classes == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({}, ValueError, "exactly one of num_classes, classes and task"),
            ({"num_classes": 2, "classes": ["a", "b"]}, ValueError, "exactly one of num_classes, classes and task"),
            ({"num_classes": 1}, ValueError, "at least 2 classes"),
            ({"num_classes": 2.0}, TypeError, "must be an integer"),
            ({"num_classes": True}, TypeError, "must be an integer"),
            ({"classes": "ab"}, TypeError, "classes is a str; it must be a list"),
            ({"classes": ["a", "a"]}, ValueError, "holds a label twice"),
            ({"num_classes": 2, "pooling": "middle"}, ValueError, "last, first, mean, max"),
        ],
        ids=str,
    )
    def test_what_is_no_head_is_refused(
        self, settings: dict[str, Any], error: type[Exception], message: str, small_gpt2: GPT2
    ) -> None:
        with pytest.raises(error, match=message):
            add_classifier_head(small_gpt2, **settings)

    def test_what_is_no_model_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"a Linear; it must be a gptclf GPT2"):
            add_classifier_head(torch.nn.Linear(2, 2), num_classes=2)  # type: ignore[arg-type]

    def test_numpy_scalars_as_classes_become_pythons(self, small_gpt2: GPT2) -> None:
        numpy = pytest.importorskip("numpy")
        clf = add_classifier_head(small_gpt2, classes=numpy.array([3, 1]), seed=1)
        assert [type(label) for label in clf.classes or []] == [int, int]

    def test_the_seed_of_a_head_is_said_and_determines_it(
        self, small_gpt2: GPT2, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = add_classifier_head(small_gpt2, num_classes=3, seed=11)
        assert "drawn from seed 11: head.output.weight (3, 24)" in caplog.text
        second = add_classifier_head(small_gpt2, num_classes=3, seed=11)
        assert torch.equal(first.get_parameter("head.output.weight"), second.get_parameter("head.output.weight"))


def test_a_configurations_dropout_is_kept_unless_another_is_given() -> None:
    config = GPT2Config(vocab_size=257, context_length=8, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.1)
    assert load_gpt2(config, weights="random", seed=1).config.drop_rate == 0.1
    assert load_gpt2(config, weights="random", seed=1, dropout=0.0).config.drop_rate == 0.0


def test_a_seed_without_random_weights_is_an_error() -> None:
    with pytest.raises(ValueError, match="weights='random'"):
        load_gpt2("nano", seed=3)


def test_attention_that_is_not_causal_is_refused(tmp_path: Path) -> None:
    values = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "is_causal": False}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="is_causal"):
        load_gpt2(tmp_path)


def test_a_part_of_a_tensorflow_checkpoint_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "hparams.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no model\.ckpt\.index: OpenAI's TensorFlow checkpoint is incomplete"):
        load_gpt2(tmp_path)


def test_weights_are_float32_whatever_torchs_default_is() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        clf = add_classifier_head(byte_gpt2(), num_classes=2, seed=1)
        assert {parameter.dtype for parameter in clf.parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)
