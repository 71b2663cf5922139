# What this project calls of TensorRT-RTX beyond TensorRT's interface.
from typing import ClassVar

from tensorrt import IHostMemory

class ComputeCapability:
    __members__: ClassVar[dict[str, ComputeCapability]]

class IBuilderConfig:
    num_compute_capabilities: int
    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool: ...

class DynamicShapesKernelSpecializationStrategy:
    EAGER: ClassVar[DynamicShapesKernelSpecializationStrategy]

class IRuntimeCache:
    def deserialize(self, blob: bytes) -> bool: ...
    def serialize(self) -> IHostMemory: ...

class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy: DynamicShapesKernelSpecializationStrategy
    def create_runtime_cache(self) -> IRuntimeCache: ...
    def set_runtime_cache(self, cache: IRuntimeCache) -> bool: ...

class IExecutionContext: ...

class ICudaEngine:
    def create_runtime_config(self) -> IRuntimeConfig: ...
    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext | None: ...
