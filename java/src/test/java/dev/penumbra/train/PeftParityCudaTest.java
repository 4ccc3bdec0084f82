package dev.penumbra.train;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.NeedsGpu;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** As {@link PeftParityTest}, on a GPU. */
@NeedsGpu
class PeftParityCudaTest {

    @ParameterizedTest
    @ValueSource(strings = {"pre-norm", "post-norm", "some-targets"})
    void logitsLossAndGradientsAreThoseOfPeft(String name) throws IOException {
        try (PeftFixture f = open(PeftFixture.COMMITTED.resolve(name), DType.F32)) {
            System.out.println(name + " on cuda: " + PeftParity.requireF32(name, f));
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"pre-norm-bf16", "post-norm-bf16"})
    void inBf16TheErrorIsAtMostTwicePeftsOwn(String name) throws IOException {
        try (PeftFixture f = open(PeftFixture.COMMITTED.resolve(name), DType.BF16)) {
            System.out.println(name + " on cuda: " + PeftParity.requireBf16(name, f, true));
        }
    }

    @ParameterizedTest(name = "{0}, packed {1}")
    @CsvSource({"pre-norm,true", "post-norm,true", "some-targets,false"})
    void twentyStepsOfAdamWHaveTheLossesOfPyTorch(String name, boolean pack) throws IOException {
        try (PeftFixture f = open(PeftFixture.COMMITTED.resolve(name), DType.F32)) {
            System.out.printf("%s on cuda: worst of 20 losses %.1e%n", name, PeftParity.requireTwentyLosses(name, f, pack));
        }
    }

    /** A bf16 fixture of any size, made by {@code make_fixtures.py} where there is room for it. */
    @Test
    void aLargeModelsErrorIsAtMostTwicePeftsOwn() throws IOException {
        String folder = System.getenv("PENUMBRA_FIXTURE");
        assumeTrue(folder != null, "PENUMBRA_FIXTURE names no fixture");
        try (PeftFixture f = open(Path.of(folder), DType.BF16)) {
            System.out.println(folder + ", " + f.model.config() + ", on cuda: " + PeftParity.requireBf16(folder, f, false));
        }
    }

    private static PeftFixture open(Path folder, DType compute) throws IOException {
        return new PeftFixture(folder, Backends.open(Device.cuda(0), 0, true), compute);
    }
}
