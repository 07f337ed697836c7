/* A stand-in for libnvidia-ml.so.1. FAKE_NVML_INIT: the code that initialising returns, or `hang`.
   FAKE_NVML_DRIVER: the driver's version. FAKE_NVML_CUDA: its CUDA's, as `12040`; without it there
   is no libcuda to ask. FAKE_NVML_DEVICES: `name|major|minor|bytes|mig` for each GPU, with `;`
   between; a major of 0 or 0 bytes means that this can't be told, a name `LOST` that nothing can;
   mig is missing where there is no such mode, -1 where it is off, else the number of instances. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { char name[96]; int major, minor; unsigned long long bytes; int mig; } Device;
typedef struct { unsigned long long total, free, used; } Memory;

static Device devices[16];
static unsigned int count;

int nvmlInitWithFlags(unsigned int flags) {
  const char *code = getenv("FAKE_NVML_INIT"), *text = getenv("FAKE_NVML_DEVICES");
  (void)flags;
  if (code && !strcmp(code, "hang"))
    for (;;) pause();
  if (code && atoi(code)) return atoi(code);
  for (count = 0; text && *text && count < 16; count++) {
    Device *device = &devices[count];
    device->mig = -2;
    sscanf(text, "%95[^|]|%d|%d|%llu|%d", device->name, &device->major, &device->minor,
           &device->bytes, &device->mig);
    text = strchr(text, ';');
    if (text) text++;
  }
  return 0;
}
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) {
  return code == 15 ? "GPU is lost" : code == 18 ? "Driver/library version mismatch" : "Unknown Error";
}
int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
  snprintf(version, length, "%s", getenv("FAKE_NVML_DRIVER"));
  return 0;
}
int nvmlDeviceGetCount_v2(unsigned int *found) { *found = count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
  if (!strcmp(devices[index].name, "LOST")) return 15;
  *handle = &devices[index];
  return 0;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned int length) {
  snprintf(name, length, "%s", ((Device *)handle)->name);
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
  if (!((Device *)handle)->major) return 3;
  *major = ((Device *)handle)->major;
  *minor = ((Device *)handle)->minor;
  return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
  unsigned long long bytes = ((Device *)handle)->bytes;
  if (!bytes) return 3;
  memory->total = memory->free = bytes;
  memory->used = 0;
  return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
  const char *text = getenv("FAKE_NVML_CUDA");
  *version = text ? atoi(text) : 0;
  return text ? 0 : 12;
}
int nvmlDeviceGetMigMode(void *handle, unsigned int *current, unsigned int *pending) {
  int mig = ((Device *)handle)->mig;
  *current = *pending = mig >= 0;
  return mig == -2 ? 3 : 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned int *most) {
  *most = ((Device *)handle)->mig == -2 ? 0 : 7;
  return 0;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned int index, void **instance) {
  *instance = handle;
  return (int)index < ((Device *)handle)->mig ? 0 : 6;
}
