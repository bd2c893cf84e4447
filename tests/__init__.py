import os

# The campaign and the soak, which run without pytest, and the processes that they start, ask no driver of this machine.
os.environ.setdefault("AIOGPULOCK_GPU_MEMORY_NVML", "off")
