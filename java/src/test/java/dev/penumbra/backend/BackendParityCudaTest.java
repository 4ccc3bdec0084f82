package dev.penumbra.backend;

@NeedsGpu
class BackendParityCudaTest extends BackendParity {

    @Override
    Backend open() {
        return Backends.open(Device.cuda(0), 0, true);
    }
}
