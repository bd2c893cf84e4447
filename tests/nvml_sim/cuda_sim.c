/* A simulated CUDA driver: what tests/gpu/cuda.py and the reclaimers call. It allocates nothing, and says so in the simulated NVML's state. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include "state.h"

enum { OK = 0, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100 };
static const uint64_t CONTEXT = 400ull << 20;

static struct state *state;
static int file, retained[DEVICES];

int cuInit(unsigned flags) {
  (void)flags;
  const char *path = getenv("NVML_SIM_STATE");
  file = path ? open(path, O_RDWR) : -1;
  if (file < 0) return NO_DEVICE;
  void *map = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (map == MAP_FAILED) return NO_DEVICE;
  state = map;
  return OK;
}

/* As with the real one, CUDA_VISIBLE_DEVICES may name a device by UUID. */
int cuDeviceGet(int *device, int ordinal) {
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (!state) return NOT_INITIALIZED;
  for (unsigned i = 0; i < state->gpus; i++)
    if (visible ? !strcmp(visible, state->devices[i].uuid) && !ordinal : (unsigned)ordinal == i) {
      *device = i;
      return OK;
    }
  return NO_DEVICE;
}

int cuDeviceGetCount(int *count) {
  *count = state ? (getenv("CUDA_VISIBLE_DEVICES") ? 1 : state->gpus) : 0;
  return state ? OK : NOT_INITIALIZED;
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  *flags = 0;
  *active = retained[device] > 0;
  return OK;
}

static int use(struct device *device, int64_t more) {
  struct process *mine = NULL;
  uint64_t sum = device->unattributed + device->reserved;
  flock(file, LOCK_EX);
  for (int i = 0; i < PROCESSES; i++) {
    struct process *entry = &device->processes[i];
    if (entry->pid) sum += entry->bytes;
    if (entry->pid == (uint32_t)getpid() || (!entry->pid && !mine)) mine = entry;
  }
  int code = !mine || (more > 0 && sum + more > device->total) ? OUT_OF_MEMORY : OK;
  if (!code) {
    mine->bytes = (mine->pid ? mine->bytes : 0) + more;
    mine->watched = 1;
    mine->pid = mine->bytes ? getpid() : 0;
  }
  flock(file, LOCK_UN);
  return code;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = &state->devices[device];
  return retained[device]++ ? OK : use(*context, CONTEXT);
}

static struct device *current;
int cuCtxSetCurrent(void *context) { current = context; return OK; }
int cuCtxSynchronize(void) { return OK; }

int cuDeviceGetUuid_v2(unsigned char *bytes, int device) {
  const char *text = state->devices[device].uuid + strlen("GPU-");
  for (int i = 0; i < 16; i++, text += 2) {
    text += *text == '-';
    sscanf(text, "%2hhx", &bytes[i]);
  }
  return OK;
}

int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
  uint64_t *kept = malloc(sizeof *kept);
  *kept = size;
  *pointer = (uintptr_t)kept;
  return use(current, size);
}

int cuMemsetD8_v2(uint64_t pointer, unsigned char value, size_t size) {
  (void)value;
  return size <= *(uint64_t *)(uintptr_t)pointer ? OK : 1;
}

int cuMemFree_v2(uint64_t pointer) {
  uint64_t *kept = (uint64_t *)(uintptr_t)pointer;
  int code = use(current, -(int64_t)*kept);
  free(kept);
  return code;
}
