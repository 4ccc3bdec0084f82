package dev.penumbra.cli;

import dev.penumbra.io.TextFiles;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.StreamSupport;
import picocli.CommandLine;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.ParameterException;
import tools.jackson.core.JacksonException;
import tools.jackson.core.StreamReadFeature;
import tools.jackson.databind.JsonNode;
import tools.jackson.dataformat.yaml.YAMLMapper;

/**
 * Options of a command from a YAML file: {@code --config run.yaml} with {@code lr: 1e-4}. A key is an option's name without
 * its dashes, words parted by {@code -} or {@code _}; a list stands for values parted by commas. The file's options are put
 * before those of the command line, which leave out what they give themselves.
 */
final class ConfigFile {

    static final String OPTION = "--config";
    private static final Set<String> NOT_KEYS = Set.of(OPTION, "--help", "--version");
    private static final YAMLMapper YAML = YAMLMapper.builder()
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
            .build();

    /** The file is not what was expected: wrong usage. */
    static final class Invalid extends Exception {
        private static final long serialVersionUID = 1;

        Invalid(String message) {
            super(message);
        }
    }

    private final String file;
    private final Map<String, String> keys;
    private final String[] arguments;

    private ConfigFile(String file, Map<String, String> keys, String[] arguments) {
        this.file = file;
        this.keys = keys;
        this.arguments = arguments;
    }

    /** The arguments with the file's among them, or as they are when they name no file. */
    static ConfigFile of(CommandLine line, String... arguments) throws Invalid {
        String file = valueOf(OPTION, arguments);
        int at = 0;
        while (at < arguments.length && !line.getSubcommands().containsKey(arguments[at])) {
            at++;
        }
        if (file == null || at == arguments.length) {
            return new ConfigFile("", Map.of(), arguments);
        }
        CommandLine command = line.getSubcommands().get(arguments[at]);
        List<String> merged = new ArrayList<>(Arrays.asList(arguments).subList(0, at + 1));
        Map<String, String> keys = new LinkedHashMap<>();
        for (Map.Entry<String, JsonNode> entry : read(file).properties()) {
            OptionSpec option = option(file, entry.getKey(), command);
            if (Arrays.stream(option.names()).noneMatch(name -> isGiven(name, arguments))) {
                keys.put(option.longestName(), entry.getKey());
                add(merged, file, entry.getKey(), entry.getValue(), option);
            }
        }
        merged.addAll(Arrays.asList(arguments).subList(at + 1, arguments.length));
        return new ConfigFile(file, keys, merged.toArray(String[]::new));
    }

    String[] arguments() {
        return arguments;
    }

    /** File and key that a wrong value came from, as the beginning of a message; empty when it came from elsewhere. */
    String origin(ParameterException wrong) {
        return wrong.getArgSpec() instanceof OptionSpec option && keys.containsKey(option.longestName())
                ? file + ": key " + keys.get(option.longestName()) + ": "
                : "";
    }

    private static boolean isGiven(String name, String... arguments) {
        return Arrays.stream(arguments).anyMatch(a -> a.equals(name) || a.startsWith(name + "="));
    }

    private static String valueOf(String name, String... arguments) {
        String value = null;
        for (int i = 0; i < arguments.length; i++) {
            if (arguments[i].startsWith(name + "=")) {
                value = arguments[i].substring(name.length() + 1);
            } else if (arguments[i].equals(name) && i + 1 < arguments.length) {
                value = arguments[i + 1];
            }
        }
        return value;
    }

    private static JsonNode read(String file) throws Invalid {
        JsonNode root;
        try {
            root = YAML.readTree(TextFiles.read(Path.of(file)));
        } catch (JacksonException broken) {
            throw new Invalid(file + " line " + broken.getLocation().getLineNr() + ": expected YAML: "
                    + TextFiles.problem(broken));
        } catch (IOException failure) {
            throw new Invalid(Failures.message(failure));
        }
        if (!root.isObject() && !root.isMissingNode() && !root.isNull()) {
            throw new Invalid(
                    file + ": expected keys and values, found " + root.getNodeType().name().toLowerCase(Locale.ROOT));
        }
        return root;
    }

    private static OptionSpec option(String file, String key, CommandLine command) throws Invalid {
        String name = "--" + key.replace('_', '-');
        CommandSpec spec = command.getCommandSpec();
        OptionSpec option = NOT_KEYS.contains(name) ? null : spec.findOption(name);
        if (option == null) {
            String nearest = Main.nearestOption(spec, name.substring(2)).filter(n -> !NOT_KEYS.contains("--" + n))
                    .map(n -> "; the nearest is " + n).orElse("");
            throw new Invalid(
                    file + ": expected keys that are options of " + spec.qualifiedName() + ", found " + key + nearest
                            + " (" + spec.qualifiedName() + " --help lists what there is)");
        }
        return option;
    }

    private static void add(List<String> merged, String file, String key, JsonNode value, OptionSpec option) throws Invalid {
        boolean list = value.isArray() && option.splitRegex() != null && !option.splitRegex().isEmpty();
        boolean scalars = list && StreamSupport.stream(value.spliterator(), false).allMatch(JsonNode::isValueNode);
        if (value.isNull() || !value.isValueNode() && !scalars) {
            throw new Invalid(file + ": key " + key + ": expected a value" + (option.isMultiValue() ? " or a list" : "")
                    + ", found " + (value.isNull() ? "nothing" : value));
        }
        if (option.arity().max() > 0) {
            merged.add(option.longestName() + "=" + (list
                    ? StreamSupport.stream(value.spliterator(), false).map(JsonNode::asString)
                            .collect(Collectors.joining(","))
                    : value.asString()));
        } else if (value.isBoolean()) {
            if (value.booleanValue()) {
                merged.add(option.longestName());
            }
        } else {
            throw new Invalid(file + ": key " + key + ": expected true or false, found " + value);
        }
    }
}
