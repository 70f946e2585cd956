"""Conversations: what the model is asked, what is remembered, what no longer fits."""

import pytest
import torch
from infer.decoding_models import roughened, small
from tiny_mixers import SEQUENCE

from mixlab.core.errors import LabError
from mixlab.data.chat.messages import Message
from mixlab.data.chat.templates import TEMPLATES, ChatFormat
from mixlab.data.tokenizers.bpe import Bpe
from mixlab.infer.sampler import SamplingConfig
from mixlab.jobs.chat import Conversation, greeting
from mixlab.jobs.trained import TrainedModel

GREEDY = SamplingConfig(temperature=0)


@pytest.fixture(scope="module")
def tokenizer():
    words = iter(["plain words of a small text"] * 20)
    return Bpe(vocab_size=260).build(words, TEMPLATES["chatml"].marks)


@pytest.fixture(scope="module")
def model(tokenizer):
    mixer = {"kind": "attention", **SEQUENCE["attention"]["plain"]}
    cfg = small(mixer, vocab_size=tokenizer.vocab_size + 3, max_seq_len=96)
    return TrainedModel(roughened(cfg, torch.float32), tokenizer, 7)


@pytest.fixture
def begin(model, tokenizer):
    def run(template="chatml", is_tuned=True, **settings):
        style = ChatFormat(TEMPLATES[template], tokenizer, is_tuned=is_tuned)
        return Conversation(model, style, GREEDY, **{"max_new_tokens": 8} | settings)

    return run


def said(conversation, text, notes=None):
    return "".join(conversation.answer(text, (notes if notes is not None else []).append))


def test_an_answer_is_what_the_model_writes_after_the_template(begin, model):
    chat = begin()
    first = said(chat, "one")
    style = chat.format
    ids = style.prompt_ids([Message("user", "one")])
    request = model.request(ids, max_new_tokens=8, sampling=GREEDY, stop_ids=style.stop_ids)
    assert first == "".join(event.text for event in model.events(request))
    second = said(chat, "two")
    so_far = [Message("user", "one"), Message("assistant", first or "..."), Message("user", "two")]
    assert chat.messages == [*so_far, Message("assistant", second or "...")]
    ids = style.prompt_ids(so_far)
    request = model.request(ids, max_new_tokens=8, sampling=GREEDY, stop_ids=style.stop_ids)
    assert second == "".join(event.text for event in model.events(request))


def test_a_system_message_stands_first_and_a_reset_forgets_the_rest(begin):
    chat = begin(system="be brief")
    said(chat, "one")
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    ids = chat._asked([Message("user", "x")], print)
    whole = [Message("system", "be brief"), Message("user", "x")]
    assert ids == chat.format.prompt_ids(whole)
    chat.reset()
    assert chat.messages == [] and chat.system == "be brief"


def test_a_base_model_writes_on_where_the_user_stopped(begin, model):
    chat = begin("plain", is_tuned=False)
    first = said(chat, "def ")
    assert first == model.generate("def ", max_new_tokens=8, sampling=GREEDY)
    more = said(chat, "")
    assert more == model.generate("def " + first, max_new_tokens=8, sampling=GREEDY)
    with pytest.raises(LabError, match="mixlab sft"):
        chat.set_system("x")
    assert "goes on with what you write" in " ".join(greeting(chat))


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(begin):
    chat = begin(max_new_tokens=30)
    pieces = chat.answer("one")
    got = "".join(next(pieces) for _ in range(4))
    pieces.close()
    assert chat.messages == [Message("user", "one"), Message("assistant", got or "...")]


def test_old_turns_leave_when_the_context_is_full_and_that_is_said(begin):
    chat = begin(max_new_tokens=10)
    notes = []
    for i in range(6):
        said(chat, f"question number {i}", notes)
    assert any("no longer fit" in note for note in notes)
    assert chat.messages[0].role == "user" and len(chat.messages) < 12
    assert len(chat._asked([*chat.messages, Message("user", "x")], print)) <= 96 - 10


def test_a_message_that_does_not_fit_is_refused_and_forgotten(begin):
    chat = begin()
    with pytest.raises(LabError, match=r"message of \d+ tokens .* context of 96"):
        said(chat, "z" * 300)
    assert chat.messages == []
    assert said(chat, "one") is not None


def test_a_long_text_of_a_base_model_loses_its_beginning_and_that_is_said(begin, model):
    chat, notes = begin("plain", is_tuned=False), []
    found = said(chat, "ab" * 100, notes)
    assert any("first" in note and "left out" in note for note in notes)
    ids = model.encode("ab" * 100)[-88:]
    request = model.request(ids, max_new_tokens=8, sampling=GREEDY)
    assert found == "".join(event.text for event in model.events(request))


def test_each_answer_has_a_seed_of_its_own(begin):
    def texts(seed):
        chat = begin(seed=seed, max_new_tokens=12)
        chat.sampling = SamplingConfig(temperature=2.0)
        found = []
        for _ in range(2):
            chat.reset()
            found.append(said(chat, "same"))
        return found

    first, second = texts(1)
    assert first != second and texts(1) == [first, second]
