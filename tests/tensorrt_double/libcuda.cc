// The few functions of libcuda that runtime.driver calls, answering from environment variables:
// STUB_CUDA_VERSION (12060), STUB_CUDA_GPUS ("Orin/87/8000,..."), STUB_CUDA_INIT (a CUresult).
// Nothing else: code that needs more of the driver fails at once, at the missing symbol.

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kInvalidValue = 1, kNotInitialized = 3, kInvalidDevice = 101;
constexpr int kAttributeMajor = 75, kAttributeMinor = 76;

bool started = false;

const char* setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

struct Gpu {
  char name[128];
  int architecture;
  long memory;
};

int count() {
  const char* text = setting("STUB_CUDA_GPUS", "Orin/87/8000");
  if (*text == '\0') return 0;
  int commas = 0;
  for (; *text; ++text) commas += *text == ',';
  return commas + 1;
}

bool read(int index, Gpu* gpu) {
  const char* text = setting("STUB_CUDA_GPUS", "Orin/87/8000");
  for (; index > 0; --index) {
    text = std::strchr(text, ',');
    if (!text) return false;
    ++text;
  }
  return std::sscanf(text, "%127[^/]/%d/%ld", gpu->name, &gpu->architecture, &gpu->memory) == 3;
}

}  // namespace

extern "C" {

int cuGetErrorName(int status, const char** name) {
  *name = status == 100 ? "CUDA_ERROR_NO_DEVICE" : status == 3 ? "CUDA_ERROR_NOT_INITIALIZED" : nullptr;
  return *name ? 0 : kInvalidValue;
}

int cuDriverGetVersion(int* version) {
  *version = std::atoi(setting("STUB_CUDA_VERSION", "12060"));
  return 0;
}

int cuInit(unsigned) {
  int status = std::atoi(setting("STUB_CUDA_INIT", "0"));
  started = status == 0;
  return status;
}

int cuDeviceGetCount(int* found) {
  if (!started) return kNotInitialized;
  *found = count();
  return 0;
}

int cuDeviceGet(int* device, int index) {
  if (!started) return kNotInitialized;
  if (index < 0 || index >= count()) return kInvalidDevice;
  *device = index;
  return 0;
}

int cuDeviceGetName(char* name, int length, int device) {
  Gpu gpu;
  if (!read(device, &gpu)) return kInvalidDevice;
  std::snprintf(name, static_cast<size_t>(length), "%s", gpu.name);
  return 0;
}

int cuDeviceTotalMem_v2(size_t* bytes, int device) {
  Gpu gpu;
  if (!read(device, &gpu)) return kInvalidDevice;
  *bytes = static_cast<size_t>(gpu.memory);
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  Gpu gpu;
  if (!read(device, &gpu)) return kInvalidDevice;
  if (attribute == kAttributeMajor) *value = gpu.architecture / 10;
  else if (attribute == kAttributeMinor) *value = gpu.architecture % 10;
  else return kInvalidValue;
  return 0;
}

}  // extern "C"
