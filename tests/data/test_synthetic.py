"""Random text is a pure function of seed and position, and packs documents as asked."""

import torch

from mixlab.data.synthetic import RandomText


def test_pure_and_in_range():
    text = RandomText(100, 32, seed=3)
    first, again = text.batch(8, 4), text.batch(8, 4)
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, text.batch(12, 4).tokens)
    assert first.tokens.min() >= 0 and first.tokens.max() < 100
    assert torch.equal(first.tokens[:, 1:], first.targets[:, :-1])
    assert not first.segments.any()


def test_documents_have_the_length_asked_for():
    segments = RandomText(100, 1000, seed=3, mean_document=20).batch(0, 64).segments
    steps = segments.diff(dim=1)
    assert set(steps.unique().tolist()) == {0, 1} and not segments[:, 0].any()
    # 64,000 tokens, 3,200 documents expected with a spread of about 55.
    assert abs(int(segments[:, -1].sum()) + 64 - 3200) < 300
