/* What the simulated NVML and the simulated CUDA share: a state file, mapped by every process.
 *
 * The layout of struct state is repeated in tests/nvml_sim/__init__.py. NVML_SIM_STATE names the file. */
#include <stdint.h>

#define GPUS 8
#define MIGS 4
#define DEVICES (GPUS + GPUS * MIGS)
#define PROCESSES 32
#define CALLS 18

struct call { uint32_t error, delay_ms, hang, count; };
struct process { uint32_t pid, watched; uint64_t bytes; };
struct device {
  char uuid[96], name[96];
  uint64_t total, reserved, unattributed;
  uint32_t present, mig, listing, error, utilization, unused;
  struct process processes[PROCESSES];
};
struct state { uint32_t gpus, inits; struct call calls[CALLS]; struct device devices[DEVICES]; };
