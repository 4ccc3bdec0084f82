package dev.penumbra.backend;

class BackendParityTest extends BackendParity {

    @Override
    Backend open() {
        return Backends.open(Device.CPU, 2, true);
    }
}
