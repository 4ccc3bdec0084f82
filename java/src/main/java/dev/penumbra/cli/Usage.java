package dev.penumbra.cli;

import java.util.function.Supplier;
import picocli.CommandLine;
import picocli.CommandLine.ParameterException;

/** Wrong usage, which ends with exit code 2, beside what fails on the way. */
final class Usage {

    private Usage() {
    }

    /** What options describe; their values being none that it takes is wrong usage. */
    static <T> T of(CommandLine line, Supplier<T> described) {
        try {
            return described.get();
        } catch (IllegalArgumentException wrong) {
            throw new ParameterException(line, wrong.getMessage(), wrong);
        }
    }

    /**
     * Options that would do nothing are not what was meant.
     *
     * @param needed what they do something with
     * @throws ParameterException naming the first of them that was given
     */
    static void requireFor(CommandLine line, boolean holds, String needed, String found, String... options) {
        for (String option : options) {
            require(line, holds || !line.getParseResult().hasMatchedOption(option), needed + " with " + option, found);
        }
    }

    /** @throws ParameterException saying what an option's value was expected to be */
    static void require(CommandLine line, boolean holds, String expected, Object found) {
        if (!holds) {
            throw new ParameterException(line, "expected " + expected + ", found " + found);
        }
    }
}
