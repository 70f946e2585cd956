"""Save a checkpoint of which every rank writes its own rows.

Why not `torch.distributed.checkpoint`: in its own format the index is pickled, its safetensors
files need its reader to be joined again, and neither is hashed or replaced as one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixlab.core.errors import CheckpointError
from mixlab.parallel import World
from mixlab.parallel.shards import is_sharded, own_rows
from mixlab.training import checkpoint, tensor_file
from mixlab.training.parts import part_name

Groups = Mapping[str, Mapping[str, Tensor]]


def is_in_parts(groups: Groups) -> bool:
    """Whether ranks have parts of some of the tensors."""
    return any(is_sharded(t) for members in groups.values() for t in members.values())


def save_in_parts(
    folder: Path, step: int, groups: Groups, state: Mapping[str, Any], world: World
) -> None:
    """As `checkpoint.save`, on the first rank; the others call `give_parts` meanwhile.

    Raises:
        CheckpointError: the system refused here or on another rank.
    """
    with checkpoint.being_saved(folder, step) as tmp:
        world.tell(str(tmp))
        files: dict[str, Any] = {}
        for rank, told in enumerate(world.each_tells(_written(tmp, groups, world))):
            if "error" in told:
                raise CheckpointError(f"{tmp}: rank {rank} could not write: {told['error']}.")
            files |= told["files"]
        parts = {
            group: {"n": world.size, "rows": [n for n, t in members.items() if is_sharded(t)]}
            for group, members in groups.items()
            if any(is_sharded(t) for t in members.values())
        }
        checkpoint.finish_files(tmp, step, files, state, tied={}, parts=parts)


def give_parts(groups: Groups, world: World) -> None:
    """Write what this rank has where the first one says; that one hears of errors."""
    folder = Path(world.tell(None))
    world.each_tells(_written(folder, groups, world))


def _written(folder: Path, groups: Groups, world: World) -> dict[str, Any]:
    """Write this rank's files; their entries for the manifest, or what went wrong."""
    files = {}
    try:
        for group, members in groups.items():
            in_parts = any(is_sharded(t) for t in members.values())
            own = {n: own_rows(t) for n, t in members.items() if world.is_first or is_sharded(t)}
            if in_parts or world.is_first:
                plain = f"{group}.safetensors"
                name = part_name(group, world.rank, world.size) if in_parts else plain
                files[name] = checkpoint.write_synced(folder / name, tensor_file.encode(own))
    except OSError as error:
        return {"error": error.strerror or str(error)}
    return {"files": files}
