# What this project calls of TensorRT-RTX beyond TensorRT's interface.
from typing import ClassVar

class ComputeCapability:
    __members__: ClassVar[dict[str, ComputeCapability]]
