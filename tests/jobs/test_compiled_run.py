"""A run whose blocks are compiled: training is, evaluation is not."""

import torch

from mixlab.jobs import session


def test_evaluation_makes_no_graphs(train_tiny, monkeypatch):
    graphs, modes = [], []

    def compile_blocks(model):
        def keep(graph, inputs):
            graphs.append(graph)
            modes.append(torch.is_grad_enabled())
            return graph.forward

        for block in model.blocks:
            block.compile(backend=keep)

    torch._dynamo.reset()
    monkeypatch.setattr(session, "compile_blocks", compile_blocks)
    result = train_tiny("train.compile=true", "train.length=4", "eval.every=2", "checks=off")
    torch._dynamo.reset()
    assert result.status == "finished"
    assert len(graphs) == 1 and modes == [True]
