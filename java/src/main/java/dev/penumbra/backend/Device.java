package dev.penumbra.backend;

/** Where memory lies and operations run. */
public record Device(Kind kind, int ordinal) {

    public enum Kind {
        CPU, CUDA
    }

    public static final Device CPU = new Device(Kind.CPU, 0);

    public Device {
        if (ordinal < 0 || (kind == Kind.CPU && ordinal != 0)) {
            throw new IllegalArgumentException("expected ordinal 0 for the CPU, 0 or more for CUDA; found " + ordinal);
        }
    }

    public static Device cuda(int ordinal) {
        return new Device(Kind.CUDA, ordinal);
    }

    public boolean isHost() {
        return kind == Kind.CPU;
    }

    @Override
    public String toString() {
        return isHost() ? "cpu" : "cuda:" + ordinal;
    }
}
