"""Tokenizers: exact round trips, EOS that text cannot forge, and files made elsewhere."""

import json

import numpy as np
import pytest
import tokenizers
from data_samples import random_text
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, DataError
from mixlab.data.tokenizers import TOKENIZERS
from mixlab.data.tokenizers.base import EOS, Tokenizer, load_tokenizer
from mixlab.data.tokenizers.bpe import Bpe

TEXTS = [
    "def run(self):\n    return self.value\n" * 5,
    "na\u00efve caf\u00e9 \U0001f600\n" * 9,
    random_text(1),
]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Bpe(vocab_size=300).build(iter(TEXTS))


def build(kind, **settings):
    return decode(TOKENIZERS[kind], {"kind": kind, **settings}).build(iter(TEXTS))


# --- trained here ---


@given(text=st.text())
def test_any_text_comes_back_exactly(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


@given(text=st.text())
def test_token_bytes_add_up_to_the_bytes_of_the_text(bpe, text):
    assert bpe.token_bytes[bpe.encode(text)].sum() == len(text.encode())


@given(st.lists(st.sampled_from([EOS, "<|", "endoftext", "|>", " ", "x"])).map("".join))
def test_text_never_makes_eos(text):
    tokenizer = Bpe(vocab_size=300).build(iter(TEXTS))
    ids = tokenizer.encode(text)
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == text


def test_eos_in_the_training_text_is_ordinary_text_too(tmp_path):
    tokenizer = Bpe(vocab_size=320).build(iter([f"a {EOS} b {EOS}" * 50]))
    tokenizer.save(tmp_path / "t.json")
    for t in (tokenizer, load_tokenizer(tmp_path / "t.json", EOS)):
        assert t.eos_id not in t.encode(f"one {EOS} two")
        assert t.decode(t.encode(f"one {EOS} two")) == f"one {EOS} two"
        assert t.decode([*t.encode("one"), t.eos_id]) == "one"
        assert t.token_bytes[t.eos_id] == 0


def test_training_twice_gives_the_same_tokenizer(bpe):
    assert Bpe(vocab_size=300).build(iter(TEXTS)).to_json() == bpe.to_json()


def test_vocabulary_size(bpe):
    assert bpe.vocab_size == 300
    assert len(bpe.token_bytes) == 300
    tiny = Bpe(vocab_size=5000).build(iter(["abab abab"]))
    assert 257 <= tiny.vocab_size < 300
    with pytest.raises(ConfigError, match="vocab_size"):
        decode(Bpe, {"vocab_size": 256})


def test_training_stops_at_its_number_of_bytes():
    taken = []

    def texts():
        for i in range(100):
            taken.append(i)
            yield "ten bytes " * 10

    Bpe(max_train_bytes=950).build(texts())
    assert len(taken) <= 11


def test_a_lone_surrogate_is_a_readable_error(bpe):
    with pytest.raises(DataError, match="surrogate"):
        bpe.encode("half \ud800 pair")


# --- made elsewhere ---


@pytest.fixture
def word_level(tmp_path):
    """A lossy tokenizer with everything that could spoil ids: template, padding, truncation."""
    words = ["[UNK]", "[CLS]", "</s>", "self", "def", "run", "return", "value"]
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[CLS]", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A </s>", special_tokens=[("[CLS]", 1), ("</s>", 2)]
    )
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    path = tmp_path / "made" / "tokenizer.json"
    path.parent.mkdir()
    backend.save(str(path))
    return path


def test_ids_stand_for_the_text_and_nothing_else(word_level):
    tokenizer = build("file", path=str(word_level))
    assert tokenizer.eos == "</s>"
    assert tokenizer.encode("def run self return value") == [4, 5, 3, 6, 7]
    assert tokenizer.encode("DEF") == [4]
    assert tokenizer.eos_id not in tokenizer.encode("def </s> run")
    assert not tokenizer.is_byte_level


def test_a_folder_with_settings_names_its_eos(word_level):
    settings = word_level.with_name("tokenizer_config.json")
    settings.write_text(json.dumps({"eos_token": {"content": "[CLS]"}}))
    assert build("file", path=str(word_level.parent)).eos == "[CLS]"
    settings.write_text(json.dumps({"eos_token": "</s>"}))
    assert build("file", path=str(word_level.parent)).eos == "</s>"
    assert build("file", path=str(word_level.parent), eos="value").eos_id == 7


def test_a_token_named_as_eos_is_no_longer_made_by_special_rules(bpe, tmp_path):
    """An ordinary added token, which the library would find in text, is made special."""
    backend = tokenizers.Tokenizer.from_str(bpe.to_json())
    backend.add_tokens([tokenizers.AddedToken("<stop>", special=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = build("file", path=str(tmp_path), eos="<stop>")
    assert tokenizer.eos_id not in tokenizer.encode("go <stop> on")
    assert tokenizer.decode(tokenizer.encode("go <stop> on")) == "go <stop> on"
    assert (tokenizer.vocab_size, tokenizer.is_byte_level) == (301, True)


def test_same_file_same_identity(word_level):
    config = decode(TOKENIZERS["file"], {"kind": "file", "path": str(word_level)})
    other = decode(TOKENIZERS["file"], {"kind": "file", "path": str(word_level), "eos": "[CLS]"})
    assert config.identity() == config.identity() != other.identity()


def test_no_eos_is_an_error_with_the_way_out(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"data\.tokenizer\.eos=TOKEN"):
        build("file", path=str(tmp_path))
    with pytest.raises(DataError, match=r"data\.tokenizer\.eos = 'missing'"):
        build("file", path=str(tmp_path), eos="missing")


@pytest.mark.parametrize("content", [b"{}", b"not json", b"\xff\xfe", b""])
def test_a_file_that_is_no_tokenizer_is_named(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer file .*tokenizer\.json"):
        build("file", path=str(tmp_path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.tokenizer\.path"):
        build("file", path=str(tmp_path / "nowhere"))


class TestHub:
    def test_without_network_the_error_says_what_to_do(self, monkeypatch):
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match=r"data\.tokenizer\.kind=file"):
            build("hub", name="someone/some-model-that-is-not-cached")

    def test_files_of_the_local_cache_are_used(self, monkeypatch, word_level):
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError

        def download(name, file, revision):
            assert (name, revision) == ("someone/model", "main")
            path = word_level.with_name(file)
            if not path.exists():
                raise EntryNotFoundError(file)
            return str(path)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        assert build("hub", name="someone/model").encode("def run") == [4, 5]
        settings = word_level.with_name("tokenizer_config.json")
        settings.write_text(json.dumps({"eos_token": "[CLS]"}))
        assert build("hub", name="someone/model").eos == "[CLS]"


def test_mean_bytes_leave_special_tokens_at_zero(word_level):
    tokenizer = build("file", path=str(word_level))
    tokenizer.set_mean_bytes(2.5)
    assert tokenizer.token_bytes.dtype == np.float32
    assert tokenizer.token_bytes.tolist() == [2.5, 0, 0, 2.5, 2.5, 2.5, 2.5, 2.5]
