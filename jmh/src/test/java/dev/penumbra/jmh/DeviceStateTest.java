package dev.penumbra.jmh;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.reflect.InvocationHandler;
import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.openjdk.jmh.results.Result;

/** On the CPU's backend, or on one that says of itself that it is asynchronous, allocates nothing and computes nothing. */
class DeviceStateTest {

    private static final double MILLISECONDS_OF_A_GRAPH = 9.6;

    private final List<Operation> ran = new ArrayList<>();
    private long freeBytes = 1L << 40;

    private DeviceState open(boolean asynchronous) {
        Backend cpu = Backends.open(Device.CPU, 1, true);
        InvocationHandler handler = (proxy, method, arguments) -> {
            if (method.getName().equals("run")) {
                ran.add((Operation) arguments[0]);
            }
            if (asynchronous) {
                switch (method.getName()) {
                    case "isAsynchronous" -> {
                        return true;
                    }
                    case "run" -> {
                        return null;
                    }
                    case "allocate" -> {
                        Tensor planned = Tensor.planned((DType) arguments[1], (Shape) arguments[2]);
                        freeBytes -= planned.byteSize();
                        return planned;
                    }
                    case "freeBytes" -> {
                        return OptionalLong.of(freeBytes);
                    }
                    default -> {
                        // as the CPU's
                    }
                }
            }
            Object result = method.invoke(cpu, arguments);
            return method.getName().equals("milliseconds") ? MILLISECONDS_OF_A_GRAPH : result;
        };
        DeviceState state = new DeviceState() {
        };
        state.open((Backend) Proxy.newProxyInstance(Backend.class.getClassLoader(), new Class<?>[]{Backend.class}, handler));
        return state;
    }

    /** A measurement's figures; {@link #ran} has its calls then. */
    private Map<String, Double> measure(DeviceState state, long bytesOfATurn) {
        Meter meter = new Meter();
        List<Tensor> sources = new ArrayList<>();
        meter.beforeIteration(null, null);
        state.measure(() -> {
            Tensor source = state.zeros(DType.F32, bytesOfATurn / 8);
            sources.add(source);
            return new Work(new Convert(source, state.zeros(DType.F32, bytesOfATurn / 8)), 0, bytesOfATurn);
        });
        // First runs and calls alike take turns.
        for (int i = 0; i < ran.size(); i++) {
            assertThat(((Convert) ran.get(i)).s()).as("call %d", i).isSameAs(sources.get(i % sources.size()));
        }
        return meter.afterIteration(null, null, null).stream()
                .collect(Collectors.toMap(Result::getLabel, Result::getScore));
    }

    private long turns() {
        return ran.stream().map(call -> ((Convert) call).s()).distinct().count();
    }

    @Test
    void anAsynchronousDeviceIsTimedOverCallsInTurns() {
        DeviceState state = open(true);

        Map<String, Double> figures = measure(state, 40 << 20);

        assertThat(turns()).isEqualTo(13); // 512 MiB
        int calls = 52; // 48 in whole rounds
        assertThat(ran).hasSize(13 + 2 * calls);
        assertThat(figures).containsEntry(Meter.MILLISECONDS, MILLISECONDS_OF_A_GRAPH / calls)
                .containsEntry(Meter.BYTES, (double) (40 << 20));
        state.close();
    }

    @Test
    void turnsAreAtLeastTwoAndNotMoreThanASmallOperationNeeds() {
        DeviceState large = open(true);
        measure(large, DeviceState.OPERAND_BYTES + 8);
        assertThat(turns()).isEqualTo(2);
        large.close();

        ran.clear();
        DeviceState small = open(true);
        measure(small, 64);
        assertThat(turns()).isEqualTo(DeviceState.MOST_TURNS);
        small.close();
    }

    @Test
    void turnsTakeHalfOfTheFreeMemory() {
        freeBytes = 1 << 20;
        DeviceState state = open(true);

        measure(state, 200_000);

        assertThat(turns()).isEqualTo(3);
        state.close();
    }

    @Test
    void aSynchronousDeviceIsTimedOverOneCall() {
        DeviceState state = open(false);

        assertThat(measure(state, 64)).containsEntry(Meter.MILLISECONDS, MILLISECONDS_OF_A_GRAPH);

        assertThat(turns()).isEqualTo(1);
        assertThat(ran).hasSize(2); // the first run, and the one that is timed
        state.close();
    }

    @Test
    void valuesFillATensorWithinTheirBound() {
        DeviceState state = open(false);

        Tensor values = state.uniform(0.5, DType.F32, 1100, 1000); // more than are drawn
        Tensor others = state.uniform(0.5, DType.F32, 1000);

        float[] read = values.toFloats();
        assertThat(IntStream.range(0, read.length).filter(i -> Math.abs(read[i]) > 0.5)).isEmpty();
        assertThat(IntStream.range(0, read.length).filter(i -> read[i] == 0).count()).isLessThan(10); // one may be drawn
        assertThat(others.toFloats()).isNotEqualTo(Arrays.copyOf(read, 1000));
        state.close();
    }
}
