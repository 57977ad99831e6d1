/* A libcuda.so.1 without a GPU. What it answers is given when it is compiled. */

#include <string.h>

#ifdef INIT
int cuInit(unsigned flags) {
  return INIT;
}
#endif

int cuDriverGetVersion(int* version) {
  *version = VERSION;
  return 0;
}

int cuDeviceGetCount(int* count) {
  *count = COUNT;
  return 0;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}

/* 75 and 76 are the two parts of the compute capability. */
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? CAPABILITY / 10 : CAPABILITY % 10;
  return 0;
}

int cuDeviceGetName(char* name, int length, int device) {
  strncpy(name, "Old GPU", length);
  return 0;
}

int cuGetErrorString(int error, const char** text) {
  *text = "initialization error";
  return 0;
}

/* The other functions of the driver that the libraries need. None is called. */
#define OTHER(name) \
  int name(void) {  \
    return 999;     \
  }
#include "others.h"
