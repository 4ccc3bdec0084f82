package dev.penumbra.train;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FakeBackend;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Against what transformers and PEFT compute; {@code src/test/python/make_fixtures.py} made the fixtures. */
class PeftParityTest {

    @ParameterizedTest(name = "{0} on {1}")
    @CsvSource({"pre-norm,cpu", "post-norm,cpu", "some-targets,cpu", "pre-norm,java", "post-norm,java", "some-targets,java"})
    void logitsLossAndGradientsAreThoseOfPeft(String name, String device) throws IOException {
        try (PeftFixture f = open(name, device, DType.F32)) {
            System.out.println(name + " on " + device + ": " + PeftParity.requireF32(name, f));
        }
    }

    @ParameterizedTest(name = "{0} on {1}")
    @CsvSource({"pre-norm-bf16,cpu", "post-norm-bf16,cpu", "pre-norm-bf16,java", "post-norm-bf16,java"})
    void inBf16TheErrorIsAtMostTwicePeftsOwn(String name, String device) throws IOException {
        try (PeftFixture f = open(name, device, DType.BF16)) {
            System.out.println(name + " on " + device + ": " + PeftParity.requireBf16(name, f, true));
        }
    }

    @ParameterizedTest(name = "{0}, packed {1}")
    @CsvSource({"pre-norm,true", "post-norm,true", "some-targets,true", "pre-norm,false", "post-norm,false"})
    void twentyStepsOfAdamWHaveTheLossesOfPyTorch(String name, boolean pack) throws IOException {
        try (PeftFixture f = open(name, "cpu", DType.F32)) {
            System.out.printf("%s: worst of 20 losses %.1e%n", name, PeftParity.requireTwentyLosses(name, f, pack));
        }
    }

    private static PeftFixture open(String name, String device, DType compute) throws IOException {
        Backend backend = device.equals("java") ? new FakeBackend() : Backends.open(Device.CPU, 1, true);
        return new PeftFixture(PeftFixture.COMMITTED.resolve(name), backend, compute);
    }
}
