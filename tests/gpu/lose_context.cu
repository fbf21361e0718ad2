// Loses the GPU context of the process that loads it, as a faulty plugin would: once the file TRIGGER is there, a kernel
// writes to an address that is nobody's. Compiled by test_lost_context.py, which also says where TRIGGER is.

#include <thread>
#include <unistd.h>

__global__ void write_to(int* address) { *address = 1; }

static void wait_and_write() {
  while (access(TRIGGER, F_OK) != 0) usleep(10000);
  cudaSetDevice(0);
  write_to<<<1, 1>>>(reinterpret_cast<int*>(0x10));
}

__attribute__((constructor)) static void start() { std::thread(wait_and_write).detach(); }
