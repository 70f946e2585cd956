"""Questions in their published forms, and scores worked out by hand."""

import json

import pytest
import torch
from byte_tokens import byte_tokenizer
from evals.test_text_scores import build_bytes

from mixlab.core.errors import DataError
from mixlab.evals.likelihood import Request, Scorer
from mixlab.evals.multiple_choice import Question, encode_pair, read_questions, score_questions

HELLASWAG = {
    "ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he", "ctx": "A man is sitting on a roof. he", "split": "val",
    "endings": ["is using wrap.", "is ripping [title] level tiles off.", "holds a  cube.", "is."],
    "label": 3,
}  # fmt: skip
ARC_HUB = {
    "id": "Mercury_7", "question": "Which factor?", "answerKey": "C",
    "choices": {"text": ["dry palms", "wet palms", "oil", "lotion"], "label": list("ABCD")},
}  # fmt: skip
ARC_ORIGINAL = {
    "id": "Mercury_7", "answerKey": "2",
    "question": {"stem": "Which factor?", "choices": [
        {"text": "dry palms", "label": "1"}, {"text": "wet palms", "label": "2"},
    ]},
}  # fmt: skip


def write(folder, *rows):
    path = folder / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_published_forms_are_read_as_the_harness_reads_them(tmp_path):
    form, (question,) = read_questions(write(tmp_path, HELLASWAG))
    assert form == "HellaSwag"
    assert question.context == "Roof shingle removal: A man is sitting on a roof. He"
    assert question.endings[1:3] == ("is ripping. level tiles off.", "holds a cube.")
    assert question.answer == 3
    form, (question,) = read_questions(write(tmp_path, ARC_HUB))
    assert form == "ARC"
    assert question == Question(
        "Question: Which factor?\nAnswer:", ("dry palms", "wet palms", "oil", "lotion"), 2
    )
    _, (question,) = read_questions(write(tmp_path, ARC_ORIGINAL))
    assert question == Question("Question: Which factor?\nAnswer:", ("dry palms", "wet palms"), 1)
    _, questions = read_questions(
        write(tmp_path, *[{"context": "a", "choices": ["b", "c"], "answer": 0}] * 5), limit=2
    )
    assert questions == [Question("a", ("b", "c"), 0)] * 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "x"}, "its keys are text"),
        ({**ARC_HUB, "answerKey": "E"}, "its answerKey 'E' is none of its labels"),
        ({"context": "a", "choices": ["b", "c"], "answer": 2}, "its answer is number 2 of 2"),
        ({"context": "a", "choices": ["b"], "answer": 0}, "it has 1 endings"),
        ({"context": "a", "choices": ["b", ""], "answer": 0}, "empty or no text"),
        ({"context": "a", "choices": 7, "answer": 0}, "it has another form"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, row, reason):
    with pytest.raises(DataError, match=rf"questions\.jsonl, line 2: .*{reason}"):
        read_questions(write(tmp_path, HELLASWAG, row))


def test_files_that_hold_none_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: No such file"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "prose.jsonl").write_text("Once upon a time\n")
    with pytest.raises(DataError, match=r"prose\.jsonl, line 1: it is not JSON"):
        read_questions(tmp_path / "prose.jsonl")
    with pytest.raises(DataError, match=r"empty\.jsonl: holds none"):
        read_questions(tmp_path / "empty.jsonl")


def test_scores_are_those_of_endings_given_contexts():
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = build_bytes(tokenizer.vocab_size)
    texts = [
        ("one two", ("three", "four and five", "x")),
        ("red", ("green blue", "y", "z")),
        ("up", ("down", "left and right for ever", "q")),
        ("yes", ("no", "perhaps", "w")),
    ]
    questions, normed = [], 0
    for context, endings in texts:
        nats = []
        for ending in endings:
            ids = tokenizer.encode(f"{context} {ending}")
            with torch.no_grad():
                log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(tokenizer.encode(context)), len(ids))
            nats.append(-sum(float(log_probs[t - 1, ids[t]]) for t in places))
        likeliest = min(range(3), key=nats.__getitem__)
        per_char = [x / len(e) for x, e in zip(nats, endings, strict=True)]
        normed += min(range(3), key=per_char.__getitem__) == likeliest
        questions.append(Question(context, endings, likeliest))
    assert normed < 4  # else the two would not be told apart
    found = score_questions(Scorer(model, tokenizer.eos_id), tokenizer, questions, "q")
    assert [(s.metric, s.value) for s in found.scores] == [("acc", 1), ("acc_norm", normed / 4)]
    assert all(s.chance == pytest.approx(1 / 3) and s.n == 4 for s in found.scores)
    assert found.n_cut == 0


def test_no_token_is_torn_at_the_seam():
    tokenizer = byte_tokenizer()
    request = encode_pair(tokenizer, "ab ", "cd")
    assert request == Request(tokenizer.encode("ab"), tokenizer.encode(" cd"))
    assert encode_pair(tokenizer, "", "cd") == Request((), tokenizer.encode("cd"))
