// The device itself: what a context says of it, and that CUDA's errors come out as ours.
#include "cuda/harness.cuh"

using namespace test;

int main() {
  expect(backend().describe().find("cuda:0") == 0, "a description that begins with the device, found " + backend().describe());
  bool thrown = false;
  try {
    pnb::cuda::check(cudaErrorMemoryAllocation, "probe");
  } catch (const pnb::Error& error) {
    thrown = error.status() == PNB_ERROR_OUT_OF_MEMORY;
  }
  expect(thrown, "exhausted memory reported as OUT_OF_MEMORY");
  return finish("device");
}
