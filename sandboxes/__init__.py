"""What we do: keeps, tasks, sandboxes, checkpoints, and the doors to them."""

from sandkeep.sandboxes.audit import verify_bundle
from sandkeep.sandboxes.execution import Result
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.task import Restored, Task

__all__ = ["Keep", "Restored", "Result", "Task", "verify_bundle"]
