"""Held-out examples whose question was trained on, which measure memory: they are left out.

Exact copies of examples are gone before. What is left may still ask the same with another answer.
Questions are compared whole, all turns before the last answer, whatever their spacing and capitals.
Overlap of word 13-grams, as of plain text, would say nothing here: questions are short or alike by
form.
"""

from typing import Any

import numpy as np

from mixlab.core.errors import DataError
from mixlab.data.chat.messages import from_text, question_of
from mixlab.data.documents import N_NAMED, counted
from mixlab.data.progress import Progress
from mixlab.data.snapshot import Snapshot
from mixlab.data.split import Split


def leave_out_known_questions(
    snapshot: Snapshot, split: Split, progress: Progress
) -> tuple[Split, dict[str, Any]]:
    """The split without held-out examples that ask what train asks, and the manifest's account.

    Raises:
        DataError: nothing of a held-out split would be left, or a split is empty.
    """
    known = {question_of(from_text(text)) for text in snapshot.texts(split.train)}
    facts: dict[str, Any] = {"of": "questions"}
    kept: dict[str, np.ndarray] = {}
    for name in ("validation", "test"):
        documents = getattr(split, name)
        is_new = np.array(
            [question_of(from_text(text)) not in known for text in snapshot.texts(documents)],
            dtype=bool,
        )
        if not is_new.any():
            raise DataError(
                f"data.corpus: each of the {counted(len(documents), 'example')} of the {name} "
                "split asks what an example of train asks, so nothing is left to measure with. "
                "Give examples with more different questions."
            )
        dropped = documents[~is_new]
        facts[name] = {
            "measured": float(len(dropped) / len(documents)),
            "used": 0.0,
            "documents_dropped": len(dropped),
            "bytes_dropped": int(snapshot.sizes[dropped].sum()),
            "worst": [[snapshot.name(i), 1.0] for i in dropped[:N_NAMED]],
        }
        if len(dropped):
            progress.note(
                f"Questions of {name} that train asks too: {facts[name]['measured']:.1%}; these "
                f"{counted(len(dropped), 'example')} were left out of {name}."
            )
        kept[name] = documents[is_new]
    return Split(split.train, kept["validation"], kept["test"]), facts
