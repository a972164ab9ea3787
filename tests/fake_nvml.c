/* A stand-in for libnvidia-ml.so.1: two devices, values that change with time, and a second device that knows little.

   Device 0 draws 300 W, so its energy counter rises by 300 J a second; it reports one XID event (79) at the second look.
   Device 1 refuses everything but its name, its uuid and its temperature. */

#include <stdio.h>
#include <time.h>

enum { OK = 0, NOT_SUPPORTED = 3, TIMEOUT = 10, LOST = 15 };

struct device { int number; };
static struct device devices[2] = {{0}, {1}};

struct event { struct device *device; unsigned long long type, data; unsigned int gpu, compute; };
struct rates { unsigned int gpu, memory; };
struct memory { unsigned long long total, free, used; };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

#define ONLY_FIRST(device) if ((device)->number != 0) return NOT_SUPPORTED

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return OK; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct device **device) { *device = &devices[index]; return OK; }

int nvmlDeviceGetName(struct device *device, char *name, unsigned int length) {
    (void)device;
    snprintf(name, length, "Fake Accelerator");
    return OK;
}

int nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-0000000%d", device->number);
    return OK;
}

int nvmlDeviceGetPowerUsage(struct device *device, unsigned int *milliwatts) {
    ONLY_FIRST(device);
    *milliwatts = 300000;
    return OK;
}

int nvmlDeviceGetTotalEnergyConsumption(struct device *device, unsigned long long *millijoules) {
    ONLY_FIRST(device);
    *millijoules = (unsigned long long)(seconds() * 300000);
    return OK;
}

int nvmlDeviceGetTemperature(struct device *device, unsigned int sensor, unsigned int *degrees) {
    (void)sensor;
    *degrees = 60 + device->number;
    return OK;
}

int nvmlDeviceGetClockInfo(struct device *device, unsigned int domain, unsigned int *megahertz) {
    ONLY_FIRST(device);
    *megahertz = domain == 1 ? 1410 : 1593;
    return OK;
}

int nvmlDeviceGetUtilizationRates(struct device *device, struct rates *rates) {
    ONLY_FIRST(device);
    rates->gpu = 97;
    rates->memory = 40;
    return OK;
}

int nvmlDeviceGetMemoryInfo(struct device *device, struct memory *memory) {
    ONLY_FIRST(device);
    memory->total = 1 << 30;
    memory->used = 1 << 20;
    memory->free = memory->total - memory->used;
    return OK;
}

/* At the power limit always, slowed down by heat from the third reading on; lost after the fortieth. */
int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *device, unsigned long long *reasons) {
    static int asked;
    ONLY_FIRST(device);
    asked++;
    *reasons = 0x1 | 0x4 | (asked > 3 ? 0x40 : 0);
    return asked > 40 ? LOST : OK;
}

int nvmlDeviceGetTotalEccErrors(struct device *device, unsigned int type, unsigned int counter, unsigned long long *count) {
    static int asked;
    (void)counter;
    ONLY_FIRST(device);
    *count = type == 0 ? 5 : asked++;
    return OK;
}

int nvmlEventSetCreate(void **set) { *set = devices; return OK; }

int nvmlDeviceRegisterEvents(struct device *device, unsigned long long types, void *set) {
    (void)types;
    (void)set;
    ONLY_FIRST(device);
    return OK;
}

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned int milliseconds) {
    static int looks;
    (void)set;
    (void)milliseconds;
    if (looks++ != 2) return TIMEOUT;
    event->device = &devices[0];
    event->type = 8;
    event->data = 79;
    return OK;
}
