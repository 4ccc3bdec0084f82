package dev.penumbra.cli;

import java.util.Arrays;
import java.util.Locale;
import java.util.stream.Collectors;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/**
 * A constant by its word, as help and messages have it: low-rank. Capitals and {@code _} for {@code -} do as well.
 *
 * @param type of the constants
 */
record Words<E extends Enum<E>>(Class<E> type) implements ITypeConverter<E> {

    @Override
    public E convert(String given) {
        return Arrays.stream(type.getEnumConstants()).filter(constant -> word(constant).equals(lower(given))).findFirst()
                .orElseThrow(() -> new TypeConversionException(
                        "expected one of " + Arrays.stream(type.getEnumConstants()).map(Words::word)
                                .collect(Collectors.joining(", ")) + ", found " + given));
    }

    private static String word(Enum<?> constant) {
        return lower(constant.name());
    }

    private static String lower(String name) {
        return name.toLowerCase(Locale.ROOT).replace('_', '-');
    }
}
