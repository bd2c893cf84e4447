/* A simulated NVML: the entry points that aiogpulock uses, over a state file that processes share.
 *
 * Without NVML_SIM_STATE every nvmlInit answers "driver not loaded". All fields are read anew at each call. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "state.h"

#define NONE_BYTES UINT64_MAX

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9 };
enum { INIT, SHUTDOWN, COUNT, BY_INDEX, BY_UUID, UUID, NAME, INDEX, MEMORY_V1, MEMORY_V2, COMPUTE, GRAPHICS, MIG_MODE,
       MIG_MAX, MIG_BY_INDEX, MIG_PARENT, DRIVER, UTILIZATION };
_Static_assert(UTILIZATION + 1 == CALLS, "state.h");
enum { LIST_ALL, LIST_NOTHING, LIST_NO_BYTES, LIST_ZERO_BYTES };

static struct state *state;
static int inits;
static pid_t owner;

uint64_t sim_state_size(void) { return sizeof(struct state); }

static int enter(int which) {
  if (!state) return UNINITIALIZED;
  struct call *call = &state->calls[which];
  __atomic_add_fetch(&call->count, 1, __ATOMIC_SEQ_CST);
  if (call->delay_ms) usleep(call->delay_ms * 1000);
  while (*(volatile uint32_t *)&call->hang) usleep(2000);
  if (call->error) return call->error;
  return which == INIT || (inits > 0 && owner == getpid()) ? OK : UNINITIALIZED;
}

static void attach(void) {
  const char *path = getenv("NVML_SIM_STATE");
  if (state) munmap(state, sizeof *state);
  state = NULL;
  int fd = path ? open(path, O_RDWR) : -1;
  if (fd < 0) return;
  void *map = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (map != MAP_FAILED) state = map;
}

#define ENTER(which) do { int r = enter(which); if (r) return r; } while (0)
#define ON(which, device) ENTER(which); if ((device)->error) return (device)->error

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  if (owner != getpid()) inits = 0;
  if (!inits) attach();
  if (!state) return NO_DRIVER;
  ENTER(INIT);
  owner = getpid();
  inits++;
  __atomic_add_fetch(&state->inits, 1, __ATOMIC_SEQ_CST);
  return OK;
}

int nvmlShutdown(void) {
  ENTER(SHUTDOWN);
  inits--;
  __atomic_sub_fetch(&state->inits, 1, __ATOMIC_SEQ_CST);
  return OK;
}

const char *nvmlErrorString(int code) { (void)code; return "simulated error"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
  ENTER(DRIVER);
  strncpy(text, "simulated", size);
  return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) { ENTER(COUNT); *count = state->gpus; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
  ENTER(BY_INDEX);
  if (index >= state->gpus) return INVALID;
  *device = &state->devices[index];
  return (*device)->error;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **device) {
  ENTER(BY_UUID);
  for (int i = 0; i < DEVICES; i++)
    if (state->devices[i].present && !strcmp(state->devices[i].uuid, uuid)) {
      *device = &state->devices[i];
      return (*device)->error;
    }
  return NOT_FOUND;
}

int nvmlDeviceGetUUID(struct device *d, char *text, unsigned size) { ON(UUID, d); strncpy(text, d->uuid, size); return OK; }
int nvmlDeviceGetName(struct device *d, char *text, unsigned size) { ON(NAME, d); strncpy(text, d->name, size); return OK; }
int nvmlDeviceGetIndex(struct device *d, unsigned *i) { ON(INDEX, d); *i = d - state->devices; return OK; }

static uint64_t used(struct device *d) {
  uint64_t sum = d->unattributed;
  for (int i = 0; i < PROCESSES; i++) if (d->processes[i].pid) sum += d->processes[i].bytes;
  return sum;
}

struct memory_v1 { uint64_t total, free, used; };
struct memory_v2 { uint32_t version; uint64_t total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo(struct device *d, struct memory_v1 *m) {
  ON(MEMORY_V1, d);
  m->total = d->total;
  m->used = used(d) + d->reserved;
  m->free = m->total - m->used;
  return OK;
}

int nvmlDeviceGetMemoryInfo_v2(struct device *d, struct memory_v2 *m) {
  ON(MEMORY_V2, d);
  m->total = d->total;
  m->reserved = d->reserved;
  m->used = used(d);
  m->free = m->total - m->used - m->reserved;
  return OK;
}

struct process_info { uint32_t pid; uint64_t bytes; uint32_t gpu_instance, compute_instance; };

int nvmlDeviceGetComputeRunningProcesses_v3(struct device *d, unsigned *count, struct process_info *out) {
  ON(COMPUTE, d);
  unsigned room = *count, found = 0;
  for (int i = 0; i < PROCESSES && d->listing != LIST_NOTHING; i++) {
    struct process p = d->processes[i];
    if (!p.pid) continue;
    if (out && found < room) {
      uint64_t shown = d->listing == LIST_NO_BYTES ? NONE_BYTES : d->listing == LIST_ZERO_BYTES ? 0 : p.bytes;
      out[found] = (struct process_info){p.pid, shown, ~0u, ~0u};
    }
    found++;
  }
  *count = found;
  return found > room ? TOO_SMALL : OK;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct device *d, unsigned *count, struct process_info *out) {
  ON(GRAPHICS, d);
  (void)out;
  *count = 0;
  return OK;
}

int nvmlDeviceGetMigMode(struct device *d, unsigned *current, unsigned *pending) {
  ON(MIG_MODE, d);
  if (d->mig == 2) return NOT_SUPPORTED;
  *current = *pending = d->mig;
  return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *d, unsigned *count) { ON(MIG_MAX, d); *count = MIGS; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *d, unsigned index, struct device **mig) {
  ON(MIG_BY_INDEX, d);
  if (index >= MIGS) return INVALID;
  *mig = &state->devices[GPUS + (d - state->devices) * MIGS + index];
  return (*mig)->error ? (*mig)->error : (*mig)->present ? OK : NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct device *mig, struct device **d) {
  ON(MIG_PARENT, mig);
  *d = &state->devices[(mig - state->devices - GPUS) / MIGS];
  return OK;
}

struct utilization { unsigned gpu, memory; };

int nvmlDeviceGetUtilizationRates(struct device *d, struct utilization *u) {
  ON(UTILIZATION, d);
  if (d - state->devices >= GPUS) return NOT_SUPPORTED;  /* a MIG device has no such figure */
  *u = (struct utilization){d->utilization, 0};
  return OK;
}
