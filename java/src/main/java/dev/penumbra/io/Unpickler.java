package dev.penumbra.io;

import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;

/**
 * Reads the pickle of a dictionary of tensors, and nothing else. A pickle is a program that may name any function of Python
 * and call it; here a name outside {@link #GLOBALS} is refused, and a call makes a description of a tensor.
 *
 * <p>A value is a String, Long, Double, Boolean, {@link #NONE}, List (Python's list), Map (a dictionary), {@link Tuple},
 * {@link Callable}, {@link StorageType}, {@link Storage} or {@link TensorView}. Values may hold one another many
 * times over, or themselves: none is printed, compared or hashed as a whole.
 */
final class Unpickler {

    /** Elements in the zip's entry {@code data/KEY}; the type's name is safetensors'. */
    record Storage(String dtype, String key, long elements) {
    }

    /** A strided view of a storage; offset and strides in elements. */
    record TensorView(Storage storage, long offset, List<Long> shape, List<Long> strides) {
    }

    private record Tuple(List<Object> items) {
    }

    private record StorageType(String dtype) {
    }

    private enum Callable {
        ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER
    }

    private static final Object NONE = new Object();

    private static final int NEWEST_PROTOCOL = 5;

    private static final Map<String, Object> GLOBALS = Map.ofEntries(
            Map.entry("collections.OrderedDict", Callable.ORDERED_DICT),
            Map.entry("torch._utils._rebuild_tensor_v2", Callable.REBUILD_TENSOR),
            Map.entry("torch._utils._rebuild_parameter", Callable.REBUILD_PARAMETER),
            Map.entry("torch.DoubleStorage", new StorageType("F64")),
            Map.entry("torch.FloatStorage", new StorageType("F32")),
            Map.entry("torch.HalfStorage", new StorageType("F16")),
            Map.entry("torch.BFloat16Storage", new StorageType("BF16")),
            Map.entry("torch.LongStorage", new StorageType("I64")),
            Map.entry("torch.IntStorage", new StorageType("I32")),
            Map.entry("torch.ShortStorage", new StorageType("I16")),
            Map.entry("torch.CharStorage", new StorageType("I8")),
            Map.entry("torch.ByteStorage", new StorageType("U8")),
            Map.entry("torch.BoolStorage", new StorageType("BOOL")));

    private final ByteBuffer in;
    private final Function<String, TorchFileException> failure;
    private final Map<Integer, Object> memo = new HashMap<>();
    /** The stacks below the marks that are open. */
    private final Deque<List<Object>> outer = new ArrayDeque<>();
    private List<Object> stack = new ArrayList<>();
    private int opcodeAt;

    private Unpickler(byte[] pickle, Function<String, TorchFileException> failure) {
        this.in = ByteBuffer.wrap(pickle).order(ByteOrder.LITTLE_ENDIAN);
        this.failure = failure;
    }

    /**
     * The tensors of a pickled dictionary, by name.
     *
     * @param failure makes the exception for a message
     */
    static Map<String, TensorView> read(byte[] pickle, Function<String, TorchFileException> failure) {
        Unpickler unpickler = new Unpickler(pickle, failure);
        Object value;
        try {
            value = unpickler.run();
        } catch (BufferUnderflowException ended) {
            throw unpickler.refuse("a whole pickle", "its end");
        }
        if (!(value instanceof Map<?, ?> dictionary)) {
            throw failure.apply("expected a dictionary of tensors, found " + describe(value));
        }
        Map<String, TensorView> tensors = new LinkedHashMap<>();
        dictionary.forEach((name, item) -> {
            if (!(item instanceof TensorView view)) {
                throw failure.apply("expected a dictionary of tensors only, found " + describe(item) + " under " + name);
            }
            tensors.put((String) name, view);
        });
        return tensors;
    }

    private Object run() {
        while (true) {
            opcodeAt = in.position();
            int opcode = u8();
            switch (opcode) {
                case 0x80 -> protocol(u8());
                case 0x95 -> in.getLong(); // FRAME: its length is a hint for streams
                case '.' -> {
                    return pop();
                }
                case 'N' -> push(NONE);
                case 0x88 -> push(true);
                case 0x89 -> push(false);
                case 'K' -> push((long) u8());
                case 'M' -> push((long) Short.toUnsignedInt(in.getShort()));
                case 'J' -> push((long) in.getInt());
                case 0x8a -> push(longOf(u8()));
                case 'G' -> push(Double.longBitsToDouble(Long.reverseBytes(in.getLong())));
                case 'X' -> push(text(Integer.toUnsignedLong(in.getInt())));
                case 0x8c -> push(text(u8()));
                case 0x8d -> push(text(in.getLong()));
                case '}' -> push(new LinkedHashMap<String, Object>());
                case ']' -> push(new ArrayList<>());
                case ')' -> push(new Tuple(List.of()));
                case 0x85 -> push(tuple(1));
                case 0x86 -> push(tuple(2));
                case 0x87 -> push(tuple(3));
                case '(' -> {
                    outer.push(stack);
                    stack = new ArrayList<>();
                }
                case 't' -> push(new Tuple(popMark()));
                case 's' -> {
                    Object value = pop();
                    setItems(List.of(pop(), value));
                }
                case 'u' -> setItems(popMark());
                case 'a' -> appendAll(List.of(pop()));
                case 'e' -> appendAll(popMark());
                case 'q' -> memo.put(u8(), top());
                case 'r' -> memo.put(in.getInt(), top());
                case 0x94 -> memo.put(memo.size(), top());
                case 'h' -> push(remembered(u8()));
                case 'j' -> push(remembered(in.getInt()));
                case 'c' -> push(global(line(), line()));
                case 0x93 -> {
                    String name = pop(String.class, "a name");
                    push(global(pop(String.class, "a module"), name));
                }
                case 'Q' -> push(storage(pop(Tuple.class, "a tuple")));
                case 'R' -> {
                    List<Object> arguments = pop(Tuple.class, "a tuple of arguments").items();
                    push(call(pop(Callable.class, "something to call"), arguments));
                }
                case 'b' -> {
                    // The attributes of a state dictionary: versions of its modules, which no tensor depends on.
                    pop(Map.class, "a dictionary of attributes");
                    require(top(), Map.class, "a dictionary");
                }
                default -> throw refuse("an opcode that a dictionary of tensors needs", String.format("0x%02x", opcode));
            }
        }
    }

    private void protocol(int version) {
        if (version > NEWEST_PROTOCOL) {
            throw refuse("pickle protocol 2 to " + NEWEST_PROTOCOL, String.valueOf(version));
        }
    }

    private Object global(String module, String name) {
        Object known = GLOBALS.get(module + "." + name);
        if (known == null) {
            throw refuse("only what tensors are made of", module + "." + name + ", which is not loaded: a pickle's code is"
                    + " never run here");
        }
        return known;
    }

    /** {@code ('storage', type, key, device, elements)}. */
    private Storage storage(Tuple id) {
        List<Object> items = id.items();
        if (items.size() != 5 || !"storage".equals(items.get(0))) {
            throw refuse("a storage of 5 items", "a tuple of " + items.size());
        }
        return new Storage(require(items.get(1), StorageType.class, "a storage's type").dtype(),
                require(items.get(2), String.class, "a storage's key"),
                require(items.get(4), Long.class, "a storage's size"));
    }

    private Object call(Callable callable, List<Object> arguments) {
        switch (callable) {
            case ORDERED_DICT -> {
                if (!arguments.isEmpty()) {
                    throw refuse("an OrderedDict without arguments", arguments.size() + " of them");
                }
                return new LinkedHashMap<String, Object>();
            }
            case REBUILD_TENSOR -> {
                // storage, offset, size, stride, requires_grad, hooks, and since 2.0 metadata: conjugated, negated
                if (arguments.size() < 6 || arguments.size() > 7 || arguments.size() == 7 && arguments.get(6) != NONE) {
                    throw refuse("a plain tensor of 6 arguments", arguments.size() + " of them, or one with metadata");
                }
                return new TensorView(require(arguments.get(0), Storage.class, "a storage"),
                        require(arguments.get(1), Long.class, "an offset"), longs(arguments.get(2)),
                        longs(arguments.get(3)));
            }
            case REBUILD_PARAMETER -> {
                if (arguments.size() != 3) {
                    throw refuse("a parameter of 3 arguments", arguments.size() + " of them");
                }
                return require(arguments.get(0), TensorView.class, "a tensor");
            }
        }
        throw new IllegalStateException("expected a known callable, found " + callable);
    }

    private List<Long> longs(Object tuple) {
        List<Long> values = new ArrayList<>();
        for (Object item : require(tuple, Tuple.class, "a tuple of numbers").items()) {
            values.add(require(item, Long.class, "a whole number"));
        }
        return List.copyOf(values);
    }

    @SuppressWarnings("unchecked")
    private void setItems(List<Object> keysAndValues) {
        Map<String, Object> dictionary = require(top(), Map.class, "a dictionary");
        if (keysAndValues.size() % 2 != 0) {
            throw refuse("keys with values", keysAndValues.size() + " items");
        }
        for (int i = 0; i < keysAndValues.size(); i += 2) {
            String key = require(keysAndValues.get(i), String.class, "a name");
            if (dictionary.put(key, keysAndValues.get(i + 1)) != null) {
                throw refuse("each name once", key + " twice");
            }
        }
    }

    @SuppressWarnings("unchecked")
    private void appendAll(List<Object> items) {
        require(top(), List.class, "a list").addAll(items);
    }

    private Tuple tuple(int size) {
        Object[] items = new Object[size];
        for (int i = size - 1; i >= 0; i--) {
            items[i] = pop();
        }
        return new Tuple(List.of(items));
    }

    private void push(Object value) {
        stack.add(value);
    }

    private Object top() {
        if (stack.isEmpty()) {
            throw refuse("a value", "none");
        }
        return stack.getLast();
    }

    private Object pop() {
        Object value = top();
        stack.removeLast();
        return value;
    }

    private <T> T pop(Class<T> type, String what) {
        return require(pop(), type, what);
    }

    private List<Object> popMark() {
        if (outer.isEmpty()) {
            throw refuse("a mark", "none");
        }
        List<Object> items = stack;
        stack = outer.pop();
        return items;
    }

    private Object remembered(int index) {
        Object value = memo.get(index);
        if (value == null) {
            throw refuse("a value remembered as " + index, "none");
        }
        return value;
    }

    private int u8() {
        return Byte.toUnsignedInt(in.get());
    }

    /** A number in two's complement of {@code bytes} bytes. */
    private long longOf(int bytes) {
        if (bytes > Long.BYTES) {
            throw refuse("a number of at most 8 bytes", bytes + " of them");
        }
        long value = 0;
        for (int i = 0; i < bytes; i++) {
            value |= (long) u8() << 8 * i;
        }
        int unused = Long.SIZE - 8 * bytes;
        return bytes == 0 ? 0 : value << unused >> unused;
    }

    private String text(long bytes) {
        if (bytes < 0 || bytes > in.remaining()) {
            throw refuse("a text of " + Long.toUnsignedString(bytes) + " bytes", in.remaining() + " of them");
        }
        return decode((int) bytes);
    }

    private String line() {
        for (int end = in.position(); end < in.limit(); end++) {
            if (in.get(end) == '\n') {
                String text = decode(end - in.position());
                in.get();
                return text;
            }
        }
        throw refuse("a line", "no end of it");
    }

    private String decode(int bytes) {
        ByteBuffer piece = in.slice(in.position(), bytes);
        in.position(in.position() + bytes);
        try {
            return StandardCharsets.UTF_8.newDecoder().decode(piece).toString();
        } catch (CharacterCodingException broken) {
            throw refuse("text in UTF-8", "other bytes");
        }
    }

    private <T> T require(Object value, Class<T> type, String what) {
        if (!type.isInstance(value)) {
            throw refuse(what, describe(value));
        }
        return type.cast(value);
    }

    private TorchFileException refuse(String expected, String found) {
        return failure.apply("pickle at byte " + opcodeAt + ": expected " + expected + ", found " + found);
    }

    private static String describe(Object value) {
        return switch (value) {
            case String text -> "a text";
            case Boolean flag -> "a truth value";
            case Number number -> "a number";
            case Map<?, ?> dictionary -> "a dictionary";
            case List<?> list -> "a list";
            case Tuple tuple -> "a tuple";
            case TensorView view -> "a tensor";
            case Storage storage -> "a storage";
            default -> value == NONE ? "None" : "a type or function";
        };
    }
}
