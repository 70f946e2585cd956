"""lm-evaluation-harness on local task files, beside the same figures worked out without it."""

import json
import math
import os
from types import SimpleNamespace

import pytest
import torch
from byte_tokens import byte_tokenizer
from evals.test_text_scores import build_bytes

from mixlab.core.errors import LabError
from mixlab.evals.harness import HarnessModel
from mixlab.evals.harness_tasks import load_tasks, run_tasks
from mixlab.evals.likelihood import Request, Scorer
from mixlab.evals.multiple_choice import read_questions, score_questions
from mixlab.infer.decoding.row_model import row_model
from mixlab.infer.engine import Engine

pytest.importorskip("lm_eval")
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE"):
    os.environ.setdefault(name, "1")  # read when the harness' libraries are imported

TOKENIZER = byte_tokenizer()
COMMON = """\
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
metadata: {{version: 1.0}}
"""
CHOICES = """\
task: local_choices
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """\
task: local_rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{context}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
"""
WRITING = """\
task: local_writing
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, higher_is_better: true}]
"""
ROWS = [
    {"context": "one two", "choices": ["three", "four and five", "x"], "answer": 0},
    {"context": "red", "choices": ["green blue", "y", "z"], "answer": 1},
    {"context": "up", "choices": ["down", "left and right for ever", "q"], "answer": 2},
    {"context": "a longer text than the others, " * 3, "choices": ["no", "w"], "answer": 1},
]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build_bytes(TOKENIZER.vocab_size).float()


@pytest.fixture
def ask(net):
    engine = Engine(row_model(net), TOKENIZER, max_rows=2)
    return HarnessModel(Scorer(net, TOKENIZER.eos_id), TOKENIZER, engine, window=16)


@pytest.fixture
def task_file(tmp_path):
    def write(text):
        data = tmp_path / "rows.jsonl"
        data.write_text("\n".join(json.dumps(row) for row in ROWS))
        path = tmp_path / "task.yaml"
        path.write_text(text + COMMON.format(data=data))
        return path

    return write


def run(model, path, **settings):
    settings = {"n_fewshot": None, "limit": None, "seed": 0, **settings}
    return run_tasks(model, load_tasks([str(path)], None), **settings)


def test_questions_score_as_our_own_scorer_does(net, ask, task_file):
    path = task_file(CHOICES)
    found = {score.metric: score for score in run(ask, path)}
    _, questions = read_questions(path.parent / "rows.jsonl")
    ours = score_questions(Scorer(net, TOKENIZER.eos_id), TOKENIZER, questions, "q").scores
    for score in ours:
        assert found[score.metric].value == score.value
        assert found[score.metric].n == 4
        assert found[score.metric].chance == pytest.approx(score.chance)
        if 0 < score.value < 1:
            assert found[score.metric].standard_error == pytest.approx(score.standard_error)
    assert ask.n_cut == 2  # both endings of the question that is longer than the context


def test_whole_texts_are_scored_in_windows(net, ask, task_file):
    (bits, perplexity) = sorted(run(ask, task_file(ROLLING)), key=lambda s: s.metric)
    if bits.metric != "bits_per_byte":
        bits, perplexity = perplexity, bits
    nats = n_bytes = 0.0
    for row in ROWS:
        ids = TOKENIZER.encode(row["context"])
        n_bytes += len(ids)
        for start in range(0, len(ids), 16):  # windows of 16, one token of context
            # The last window is filled up with earlier tokens.
            first = start - 1 if start + 16 <= len(ids) else max(0, len(ids) - 17)
            context = ids[first:start] if start else ()
            (part,) = Scorer(net, TOKENIZER.eos_id).score(
                [Request(context, ids[start : start + 16])]
            )
            nats += part.nats
    assert bits.value == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert perplexity.value == pytest.approx(math.exp(nats / n_bytes), rel=1e-5)
    assert bits.standard_error > 0 and perplexity.standard_error == pytest.approx(
        perplexity.value * bits.standard_error * math.log(2), rel=1e-9
    )


def test_texts_are_written_up_to_a_stop(net, ask, task_file):
    (score,) = run(ask, task_file(WRITING))
    assert (score.metric, score.n) == ("exact_match", 4)
    assert score.standard_error > 0  # none of four right is no certainty
    prompts = ["ab", "abc"]
    requests = [
        SimpleNamespace(args=(p, {"until": ["q"], "max_gen_toks": 6, "do_sample": False}))
        for p in prompts
    ]
    written = ask.generate_until(requests)
    for prompt, text in zip(prompts, written, strict=True):
        ids = TOKENIZER.encode(prompt)
        for _ in range(6):
            with torch.no_grad():
                logits = net(torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits[: TOKENIZER.vocab_size].argmax()))
        whole = TOKENIZER.decode(ids[len(prompt) :])
        assert whole.startswith(text) and "q" not in text
        assert text == whole.split("q")[0]


def test_only_known_ways_to_write_are_taken(ask):
    request = SimpleNamespace(args=("a", {"until": [], "num_beams": 4}))
    with pytest.raises(LabError, match=r"generation_kwargs\.num_beams = 4: expected one of"):
        ask.generate_until([request])


@pytest.mark.slow  # each run of the harness looks the whole environment over
def test_examples_before_a_question_and_limits(ask, task_file):
    assert run(ask, task_file(CHOICES), n_fewshot=1, limit=2)[0].n == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("doc_to_text: !function code.f\n", "names Python code to run with !function"),
        ("unsafe_code: true\n", "asks to run code that the model writes"),
        ("doc_to_text: [\n", "cannot be loaded"),
    ],
)
def test_task_files_that_run_code_or_are_none_are_refused(task_file, text, words):
    path = task_file(CHOICES + text)
    with pytest.raises(LabError, match=words):
        load_tasks([str(path)], None)


def test_templates_that_do_not_fit_their_data_are_named(ask, task_file):
    path = task_file(CHOICES.replace("{{context}}", "{{kontext}}"))
    with pytest.raises(LabError, match="'kontext' is undefined"):
        run(ask, path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(LabError, match=r"none\.yaml'?: there is no such file"):
        load_tasks([str(tmp_path / "none.yaml")], None)
    with pytest.raises(LabError, match=r"task_dir = .*: there is no such folder"):
        load_tasks(["x"], tmp_path / "none")


def test_a_task_that_would_need_a_download_says_so(tmp_path):
    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: nobody/nothing\noutput_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: ""\ndoc_to_target: 0\ndoc_to_choice: ["a", "b"]\n'
    )
    with pytest.raises(LabError, match=r"is not on this machine .*--download.*--choices FILE"):
        load_tasks(["far"], tmp_path)


@pytest.mark.slow  # reads the 15,000 task files of the harness
def test_a_name_that_is_unknown_suggests_the_nearest():
    with pytest.raises(LabError, match=r"task = 'helaswag': .*Did you mean 'hellaswag'\?"):
        load_tasks(["helaswag"], None)
